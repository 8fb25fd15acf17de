"""Real mail programs through a policy that changes lengths in both directions, while one packet in a hundred is lost.

A line of the EHLO reply goes, the greeting gets longer, each message gets another header line: a Postfix that relays to
the Postfix inside, swaks, and Python's client with 10 MB must notice nothing of it.
"""
from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import os
import random
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest
from mail_gateway import checksum_errors
from mail_lab import ADDRESSES, SENDER, MailLab, Smtp, guarded, mail_lab, set_offloads, stop

from nfqguard.lab import roots
from nfqguard.lab.guard import Guard
from nfqguard.lab.postfix import Postfix
from nfqguard.lab.topology import Host, Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

LOSS = "0.01"
LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
RECIPIENT = "alice@inside.example"
OCTETS = 10_000_000
SECONDS = 40.0
TEXT = "this gateway has rather more to say for itself than the mail server that stands behind it, ESMTP"
NAME, VALUE = "X-Gateway", "inspected by nfqguard on its way in"
POLICY = f"""\
[policies.lengths]
extends = "ios-esmtp"
max-data = 0
mask-ehlo = true
remove-ehlo = true
ehlo-keywords = ["PIPELINING", "SIZE", "ENHANCEDSTATUSCODES", "8BITMIME", "DSN"]
mask-banner = "text"
banner-text = "{TEXT}"
insert-header = "{NAME}: {VALUE}"
"""


def _lose(lab: Lab) -> dict[Host, list[str]]:
    """The steps that lose: before the gateway looks, both ways, and at both ends what has left it."""
    both = ["--dport 25", "--sport 25"]
    return {lab.gateway: both, lab.server: both[:1], lab.client: both[1:]}


@pytest.fixture(scope="module")
def mail() -> Iterator[MailLab]:
    with mail_lab() as made:
        made.lab.gateway.sysctl(LIBERAL, 1)
        set_offloads(made.lab, False)   # so that single packets are lost
        yield made


@pytest.fixture
def guard(mail: MailLab) -> Iterator[Guard]:
    """The policy in force and the loss in place; afterwards the edits were made, and nothing else went wrong."""
    lab = mail.lab
    before = [checksum_errors(host) for host in lab.hosts]
    with guarded(lab, "lengths", POLICY) as running:
        for host, matches in _lose(lab).items():
            for program in ("iptables", "ip6tables"):
                host.run([program + "-restore", "-w", "--noflush"], input=_steps(matches))
        try:
            yield running
        finally:
            for host in _lose(lab):
                for program in ("iptables", "ip6tables"):
                    host.run([program, "-w", "-t", "raw", "-F", "PREROUTING"])
        counted = stop(running)[0]
        assert [checksum_errors(host) for host in lab.hosts] == before
        assert (counted["resets"], counted["edits-skipped"], counted["banners-masked"]) == (0, 0, 0)
        assert counted["banners-replaced"] > 0 and counted["keywords-removed"] > 0


def _steps(matches: list[str]) -> str:
    chance = f"-m statistic --mode random --probability {LOSS}"
    return "\n".join(["*raw", *(f"-A PREROUTING -p tcp {match} {chance} -j DROP" for match in matches), "COMMIT", ""])


def _lost(host: Host) -> int:
    shown = [str(host.run([program, "-w", "-t", "raw", "-nvxL", "PREROUTING"]).stdout)
             for program in ("iptables", "ip6tables")]
    return sum(int(line.split()[0]) for text in shown for line in text.splitlines() if "statistic" in line)


def _large() -> bytes:
    """Lines of base64 with a dot, or what looks like SMTP, here and there."""
    text = base64.b64encode(random.Random(7).randbytes(OCTETS * 3 // 4))
    traps = (b".", b"..", b"EXPN root", b"354 go ahead", b"", b".QUIT")
    lines = []
    for number, at in enumerate(range(0, len(text), 76)):
        lines.append(text[at:at + 76])
        if number % 100 == 0:
            lines.append(traps[number // 100 % len(traps)])
    return b"\r\n".join(lines) + b"\r\n"


def _stored(path: Path) -> tuple[list[str], str]:
    """The inserted headers of a stored message, each once, and a hash of its body."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    headers = email.message_from_bytes(head + b"\n\n", policy=email.policy.default)
    return [str(value) for value in headers.get_all(NAME, [])], hashlib.sha256(body).hexdigest()


def _hash(body: bytes) -> str:
    return hashlib.sha256(body.replace(b"\r\n", b"\n")).hexdigest()


@pytest.mark.parametrize("address", ADDRESSES, ids=["ipv4", "ipv6"])
def test_ten_megabytes(mail: MailLab, guard: Guard, address: str) -> None:
    body, before = _large(), len(mail.postfix.messages())
    with Smtp(mail.lab.client, address) as smtp:
        assert smtp.ehlo()[0] == 250
        assert {"pipelining", "size", "8bitmime"} <= smtp.esmtp_features.keys()
        assert not {"vrfy", "etrn", "chunking", "smtputf8"} & smtp.esmtp_features.keys()
        for _ in range(2):  # the second begins behind the first one's edits
            assert smtp.sendmail(SENDER, [RECIPIENT], b"Subject: large\r\n\r\n" + body) == {}
    for path in mail.postfix.await_messages(before + 2, seconds=SECONDS)[-2:]:
        assert _stored(path) == ([VALUE], _hash(body))
    assert all(_lost(host) > 0 for host in _lose(mail.lab))


def _message(octets: int, number: int) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = SENDER, RECIPIENT, f"relayed {number}"
    message.set_content(f"number {number}\n.\n.. and dots\n")
    message.add_attachment(random.Random(number).randbytes(octets), maintype="application", subtype="octet-stream",
                           filename="random")
    return message


def _log_with(client: Postfix, deliveries: int) -> str:
    """The client's log once it tells of as many deliveries, or after five seconds: it may be behind the mailbox."""
    end = time.monotonic() + 5
    while (log := client.log.read_text()).count("status=sent") < deliveries and time.monotonic() < end:
        time.sleep(0.05)
    return log


def test_postfix_relays_to_postfix(mail: MailLab, guard: Guard) -> None:
    """Several messages, some small, one of 7 MB; Postfix's client pipelines, and takes sessions up again."""
    client = Postfix(mail.lab, mail.lab.client, {
        "myhostname": "client.outside.example", "virtual_mailbox_domains": "", "mynetworks": "172.22.1.0/24",
        "relayhost": f"[{mail.lab.public_ipv4}]:25", "default_destination_concurrency_limit": "2",
    })
    before = len(mail.postfix.messages())
    messages = [_message(octets, number) for number, octets in enumerate([100, 20_000, 5_000_000, 300, 100_000, 1])]
    try:
        client.start()
        for message in messages:
            client.run(["/usr/sbin/sendmail", "-i", "-f", SENDER, RECIPIENT], input=message.as_string())
        stored = mail.postfix.await_messages(before + len(messages), seconds=SECONDS)[before:]
        log = _log_with(client, len(messages))
    finally:
        client.stop()
    arrived = {str(found["Subject"]): found for found in
               (email.message_from_bytes(path.read_bytes(), policy=email.policy.default) for path in stored)}
    for message in messages:
        found = arrived[str(message["Subject"])]
        assert found.get_all(NAME) == [VALUE]
        parts, sent = ([part.get_content() for part in each.iter_parts()] for each in (found, message))
        assert parts == sent
    assert log.count("status=sent") == len(messages) and "status=deferred" not in log


@pytest.mark.parametrize("address", ADDRESSES, ids=["ipv4", "ipv6"])
def test_swaks(mail: MailLab, guard: Guard, address: str, tmp_path: Path) -> None:
    before = len(mail.postfix.messages("bob"))
    file = tmp_path / "attached"
    file.write_bytes(random.Random(3).randbytes(300_000))
    swaks = roots.fetch("swaks")
    said = str(mail.lab.client.run(swaks.argv([
        "swaks", "--server", address, "--helo", "client.outside.example", "--from", SENDER,
        "--to", "bob@inside.example", "--header", "Subject: by swaks",
        "--body", "a line\n.\n..\nEXPN root\n", "--attach", f"@{file}"])).stdout)
    assert f"<-  220 {TEXT}\n" in said
    assert "250-SIZE" in said and "VRFY" not in said and "CHUNKING" not in said
    stored = mail.postfix.await_messages(before + 1, "bob", SECONDS)[-1]
    found = email.message_from_bytes(stored.read_bytes(), policy=email.policy.default)
    assert found.get_all(NAME) == [VALUE]
    text, attached = found.iter_parts()
    assert text.get_content().rstrip("\n") == "a line\n.\n..\nEXPN root"
    assert attached.get_content() == file.read_bytes()
