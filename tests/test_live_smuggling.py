"""SMTP smuggling (CVE-2023-51764) against a Postfix that has no defence of its own, with and without the gateway.

A false end of data is what one server takes for the end of a message and another for a part of it. The server of the
attacker lets it pass as a part; what stands behind it is a second message to a server inside that takes it for the end.
"""
from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from mail_lab import ADDRESSES, MailLab, guarded, mail_lab, records, stop

from nfqguard.lab.dialogue import Dialogue

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

FALSE_ENDS = (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\n.\r", b"\r.\n", b"\r\n\0.\r\n")
SMUGGLED = (b"MAIL FROM:<root@inside.example>\r\nRCPT TO:<bob@inside.example>\r\nDATA\r\n"
            b"From: root@inside.example\r\nSubject: smuggled %d\r\n\r\nsend money\r\n.\r\n")
OPENING = (b"EHLO client.outside.example\r\n", b"MAIL FROM:<carol@outside.example>\r\n",
           b"RCPT TO:<alice@inside.example>\r\n", b"DATA\r\n")
SETTLE = 0.5


@pytest.fixture(scope="module")
def mail() -> Iterator[MailLab]:
    with mail_lab() as made:
        yield made


def _attack(mail: MailLab, address: str, number: int, pieces: int) -> None:
    """One session: a message with a false end and a whole transaction behind it, in pieces of that many octets."""
    body = (b"From: carol@outside.example\r\nSubject: outer %d\r\n\r\nhello" % number + FALSE_ENDS[number]
            + SMUGGLED % number)
    with Dialogue(mail.lab.client, address, seconds=20) as client:
        client.reply()
        for line in OPENING:
            assert client.ask(line)[:1] in b"23", client.received
        for at in range(0, len(body), pieces):
            client.send(body[at:at + pieces])
        assert client.reply().startswith(b"250 "), client.received
        client.send(b"QUIT\r\n")
        client.read_to_end()    # a smuggled transaction has its replies before that to QUIT


def _subjects(mail: MailLab, user: str) -> list[str]:
    return [line for path in mail.postfix.messages(user) for line in path.read_text(errors="replace").splitlines()
            if line.startswith("Subject: ")]


def _campaign(mail: MailLab) -> tuple[list[str], list[str]]:
    """Every false end by IPv4 in one piece and by IPv6 octet by octet; what alice and bob have got of it."""
    for user in ("alice", "bob"):
        for path in mail.postfix.messages(user):
            path.unlink()
    for number in range(len(FALSE_ENDS)):
        _attack(mail, ADDRESSES[0], number, 1 << 16)
        _attack(mail, ADDRESSES[1], number, 1)
    mail.postfix.await_messages(2 * len(FALSE_ENDS))
    mail.deliver(ADDRESSES[0], "postmaster")   # what was taken before this one has been delivered before it, or soon is
    time.sleep(SETTLE)
    return _subjects(mail, "alice"), _subjects(mail, "bob")


def test_no_false_end_yields_a_second_message(mail: MailLab) -> None:
    version = str(mail.postfix.run(["postconf", "-h", "mail_version", "smtpd_forbid_bare_newline"]).stdout).split()
    assert version[0].startswith("3.7.") and version[1] == "no", "this Postfix defends itself: nothing would be proved"
    _, without = _campaign(mail)
    assert len(without) >= 2, "without the gateway nothing is smuggled either: nothing is proved"
    assert len(without) % 2 == 0, "in one piece and octet by octet are the same to Postfix"
    with guarded(mail.lab, "modern") as guard:
        outer, smuggled = _campaign(mail)
        stop(guard)
    assert smuggled == []
    texts = [f"Subject: {what} {number}" for number in range(len(FALSE_ENDS)) for what in ("outer", "smuggled")]
    assert sorted(outer) == sorted(texts * len(ADDRESSES)), "what was to be smuggled is text of the message"
    told = [each for each in records(guard, "smtp") if each["nfqguard"].get("match") == "smuggling"]
    assert len({each["src_port"] for each in told}) == 2 * len(FALSE_ENDS)
