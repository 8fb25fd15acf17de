"""Refusal and reset as real programs live through them: Python's smtplib and swaks outside, a real Postfix inside."""
from __future__ import annotations

import os
import random
import select
import smtplib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mail_lab import ADDRESSES, SENDER, MailLab, Smtp, Tap, await_that, guarded, joined, mail_lab, stop
from wire import RST

from nfqguard.lab import roots
from nfqguard.lab.guard import Guard

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

ALICE = "alice@inside.example"
MAX_DATA = 100_000
TEXT = "5.7.1 Refused by the gateway"
POLICY = """\
[policies.tested]
extends = "ios-esmtp"
max-data = {max_data}
refusal = "{refusal}"
"""
REFUSING = POLICY.format(max_data=MAX_DATA, refusal=f"554 {TEXT}")
RESETTING = POLICY.format(max_data=MAX_DATA, refusal="")
SOON = 1.0
"""Seconds; the round trip takes less than a millisecond, a retransmission 0.2 seconds and more."""


@pytest.fixture(scope="module")
def mail() -> Iterator[MailLab]:
    with mail_lab() as made:
        yield made


@pytest.fixture(params=ADDRESSES, ids=["ipv4-dnat", "ipv6"])
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def message(octets: int) -> bytes:
    """Random text in lines of 75; half of any size class is not special."""
    line = random.Random(octets).randbytes(37).hex().encode() + b"\r\n"
    return b"Subject: too large\r\n\r\n" + line * (octets // len(line))


def told_lost(mail: MailLab, since: int) -> int:
    """How often Postfix has said that a connection was lost within a message."""
    return mail.postfix.log.read_bytes()[since:].count(b"lost connection after DATA")


def unharmed(mail: MailLab, mails: int, since: int, smtpd: set[int]) -> None:
    """Nothing was delivered, the server noticed the loss, and its next session works."""
    assert len(mail.postfix.messages()) == mails
    await_that(lambda: told_lost(mail, since) == 1, "Postfix has noticed that the connection is lost")
    said = mail.postfix.log.read_bytes()[since:]
    assert b"fatal:" not in said and b"panic:" not in said
    assert smtpd <= set(smtpds(mail)), "the process that was reset lives on"


def smtpds(mail: MailLab) -> list[int]:
    return [pid for pid in mail.postfix.home.pids() if _name(pid) == "smtpd"]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def refused(guard: Guard) -> None:
    """Stop, and look whether it was the refusal that we think it was."""
    counted = stop(guard)[0]
    assert (counted["refusals"], counted["resets"]) == (1, 0)
    assert (counted["inject-failed"], counted["inject-unasked"]) == (0, 0)


@pytest.mark.parametrize("octets", [MAX_DATA + 10_000, 10_000_000], ids=["just-above", "10-MB"])
def test_smtplib_reports_the_refusal(mail: MailLab, address: str, octets: int) -> None:
    mails, since = len(mail.postfix.messages()), mail.postfix.log.stat().st_size
    with guarded(mail.lab, "tested", REFUSING) as guard, Tap(mail.lab.server) as tap:
        with Smtp(mail.lab.client, address) as smtp:
            smtp.ehlo()
            processes = set(smtpds(mail))
            with pytest.raises(smtplib.SMTPDataError) as reported:
                smtp.sendmail(SENDER, [ALICE], message(octets))
        assert (reported.value.smtp_code, reported.value.smtp_error) == (554, TEXT.encode())
        unharmed(mail, mails, since, processes)
        arrived = tap.arrived()
        assert any(each.flags & RST for each in arrived)
        assert sum(len(each.payload) for each in arrived) < MAX_DATA + 2000, "what the policy forbids did not arrive"
        mail.deliver(address)
        refused(guard)
    assert len(mail.postfix.messages()) == mails + 1


def test_swaks_reports_the_refusal(mail: MailLab, address: str, tmp_path: Path) -> None:
    mails, since = len(mail.postfix.messages()), mail.postfix.log.stat().st_size
    (tmp_path / "message").write_bytes(message(10_000_000).replace(b"\r\n", b"\n"))
    command = roots.fetch("swaks").argv([
        "swaks", "--server", address, "--ehlo", "client.outside.example", "--from", SENDER, "--to", ALICE,
        "--data", f"@{tmp_path / 'message'}", "--suppress-data", "--timeout", "30"])
    with guarded(mail.lab, "tested", REFUSING) as guard:
        done: subprocess.CompletedProcess[str] = mail.lab.client.run(command, check=False, timeout=90)
        assert f"<** 554 {TEXT}" in done.stdout, done.stdout[-2000:] + done.stderr
        assert done.returncode == SWAKS_REFUSED_MESSAGE
        unharmed(mail, mails, since, set())
        mail.deliver(address)
        refused(guard)
    assert len(mail.postfix.messages()) == mails + 1


SWAKS_REFUSED_MESSAGE = 26
"""swaks(1), EXIT CODES: error in the reply to DATA."""


def test_a_message_within_the_limit_is_not_refused(mail: MailLab, address: str) -> None:
    """The control: the same policy, the same clients."""
    mails = len(mail.postfix.messages())
    with guarded(mail.lab, "tested", REFUSING) as guard:
        with Smtp(mail.lab.client, address) as smtp:
            assert smtp.sendmail(SENDER, [ALICE], message(MAX_DATA - 10_000)) == {}
        mail.postfix.await_messages(mails + 1)
        assert stop(guard)[0]["refusals"] == 0


def test_without_a_text_both_ends_are_reset_at_once(mail: MailLab, address: str) -> None:
    mails, since = len(mail.postfix.messages()), mail.postfix.log.stat().st_size
    with guarded(mail.lab, "tested", RESETTING) as guard, Tap(mail.lab.server) as tap:
        with mail.dialogue(address) as client:
            for line in (f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{ALICE}>", "DATA"):
                assert client.ask(f"{line}\r\n".encode())[:1] in b"23"
            body, seen = message(MAX_DATA)[:MAX_DATA - 1000], bytearray()
            client.send(body)
            await_that(lambda: seen.extend(joined(tap.arrived())) or bytes(seen).endswith(body[-100:]),
                       "the server has it")
            began = time.monotonic()
            client.send(b"z" * 1400)
            assert select.select([client._socket], [], [], SOON)[0], "the client hears nothing"
            with pytest.raises(ConnectionResetError):
                client._socket.recv(1)
            await_that(lambda: told_lost(mail, since) == 1, "Postfix has lost the connection", SOON)
            assert time.monotonic() - began < SOON
        assert any(each.flags & RST for each in tap.arrived())
        unharmed(mail, mails, since, set())
        mail.deliver(address)
        counted = stop(guard)[0]
    assert (counted["resets"], counted["refusals"]) == (1, 0)


def test_smtplib_sees_a_reset_in_the_middle_of_a_message(mail: MailLab, address: str) -> None:
    mails, since = len(mail.postfix.messages()), mail.postfix.log.stat().st_size
    with guarded(mail.lab, "tested", RESETTING) as guard:
        smtp, began = Smtp(mail.lab.client, address), time.monotonic()
        try:
            with pytest.raises((ConnectionResetError, BrokenPipeError, smtplib.SMTPServerDisconnected)):
                smtp.sendmail(SENDER, [ALICE], message(10_000_000))
        finally:
            smtp.close()
        assert time.monotonic() - began < 5 * SOON, "this was smtplib's own patience, not a reset"
        unharmed(mail, mails, since, set())
        mail.deliver(address)
        assert stop(guard)[0]["resets"] == 1
