"""Real mail through the gateway: a client outside, nfqguard deployed and run, static NAT, a real Postfix inside."""
from __future__ import annotations

import base64
import hashlib
import os
import random
import socket
from collections.abc import Iterator

import pytest
from mail_gateway import checksum_errors
from mail_lab import (
    ADDRESSES,
    INSIDE,
    SENDER,
    MailLab,
    Smtp,
    Tap,
    await_that,
    bound,
    guarded,
    mail_lab,
    records,
    set_offloads,
    stop,
)
from wire import ACK, Segment

from nfqguard.lab import roots
from nfqguard.lab.recorder import Recorder
from nfqguard.lab.topology import COMMAND_TIMEOUT, Host

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

OCTETS = 10_000_000
MSS = 1440
SESSIONS = 20
QUEUES = 4


@pytest.fixture(scope="module")
def mail() -> Iterator[MailLab]:
    with mail_lab() as made:
        yield made


@pytest.fixture(params=ADDRESSES, ids=["ipv4", "ipv6"])
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def large() -> bytes:
    """10 MB in lines of 76, every hundredth of which an inspection or a client could mistake for something else."""
    text = base64.b64encode(random.Random(25).randbytes(OCTETS * 3 // 4)).decode()
    traps = (".", "..", ".EXPN root", "EXPN root", "354 go ahead", "QUIT", "", ". ", "DATA", "220 ready")
    lines = []
    for number, start in enumerate(range(0, len(text), 76)):
        lines.append(text[start:start + 76])
        if number % 100 == 0:
            lines.append(traps[number // 100 % len(traps)])
    return "".join(f"{line}\r\n" for line in lines).encode()


@pytest.mark.parametrize("offloads", [True, False], ids=["offloads-on", "offloads-off"])
def test_a_large_message_arrives_intact(mail: MailLab, address: str, offloads: bool, large: bytes) -> None:
    """Under `asa`, whose masks edit packets in both directions: checksums of ours are on the way, too."""
    lab = mail.lab
    set_offloads(lab, offloads)
    before, mails = [checksum_errors(host) for host in lab.hosts], len(mail.postfix.messages())
    with guarded(lab, "asa") as guard:
        with Smtp(lab.client, address) as smtp:
            smtp.ehlo()
            assert smtp.docmd("EXPN", "root")[0] == 500, "this packet was edited on its way to the server"
            assert smtp.sendmail(SENDER, ["alice@inside.example"], b"Subject: large\r\n\r\n" + large) == {}
        stored = mail.postfix.await_messages(mails + 1)[-1].read_bytes()
        counted = stop(guard)[0]
    head, _, body = stored.partition(b"\n\n")
    assert b"Subject: large" in head
    assert len(body) == len(large.replace(b"\r\n", b"\n")) > OCTETS
    assert hashlib.sha256(body).hexdigest() == hashlib.sha256(large.replace(b"\r\n", b"\n")).hexdigest()
    assert [checksum_errors(host) for host in lab.hosts] == before
    assert (counted["commands-masked"], counted["banners-masked"], counted["messages"]) == (1, 1, 1)
    assert counted["edited"] >= 3, "EXPN, greeting and EHLO reply"
    segments = len(large) // MSS
    assert counted["packets"] < segments if offloads else counted["packets"] > segments, "offloads are not as asked"


def test_a_wrong_checksum_would_be_counted(mail: MailLab, address: str) -> None:
    """The control of the test above: the server's kernel counts what comes to it with a wrong checksum."""
    gateway = "10.10.10.1" if "." in address else "fd00:10::1"
    good = Segment(gateway, INSIDE[address], 40000, 25, 1, 1, ACK, payload=b"EXPN root\r\n").build()
    before = checksum_errors(mail.lab.server)
    _send_raw(mail.lab.gateway, good, INSIDE[address])
    _send_raw(mail.lab.gateway, good[:-4] + b"FOO\n", INSIDE[address])
    await_that(lambda: checksum_errors(mail.lab.server) > before, "it was counted")
    assert checksum_errors(mail.lab.server) == before + 1


def _send_raw(host: Host, packet: bytes, destination: str) -> None:
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    with host.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (destination, 0))


PIPELINED = b"NOOP before\r\nEXPN staff\r\nVRFY alice@inside.example\r\nX-private 25\r\nNOOP behind\r\n"
MASKED = b"NOOP before\r\nXXXXXXXXXX\r\nVRFY alice@inside.example\r\nXXXXXXXXXXXX\r\nNOOP behind\r\n"
OK, NOT_RECOGNIZED = b"250 2.0.0 Ok\r\n", b"500 5.5.2 Error: command not recognized\r\n"
VERIFIED = b"252 2.0.0 alice@inside.example\r\n"


def _say_pipelined(mail: MailLab, address: str) -> tuple[bytes, bytes, int]:
    """One packet of five commands: what the client read for them, what the server received, in how many packets."""
    with Recorder(mail.lab.server) as recorder, mail.dialogue(address) as client:
        seen = recorder.wait(client.port, lambda each: each.to_server.octets.endswith(b"\n"))
        packets, octets = seen.to_server.segments, len(seen.to_server.octets)
        replies = client.ask(PIPELINED) + b"".join(client.reply() for _ in range(4))
        recorder.wait(client.port, lambda each: len(each.to_server.octets) == octets + len(PIPELINED))
        return replies, bytes(seen.to_server.octets[octets:]), seen.to_server.segments - packets


@pytest.mark.parametrize("policy", ["ios-esmtp", "asa"])
def test_the_refusal_reaches_the_client_and_neighbours_are_untouched(mail: MailLab, policy: str) -> None:
    with guarded(mail.lab, policy) as guard:
        said = [_say_pipelined(mail, address) for address in ADDRESSES]
        counted = stop(guard)[0]
    assert said == [(OK + NOT_RECOGNIZED + VERIFIED + NOT_RECOGNIZED + OK, MASKED, 1)] * len(ADDRESSES)
    assert counted["commands-masked"] == 2 * len(ADDRESSES)
    assert counted["banners-masked"] == (len(ADDRESSES) if policy == "asa" else 0)
    told = [each["nfqguard"] for each in records(guard, "smtp")]
    masked = [each["text"] for each in told if each.get("match") == "cmd verb"]
    assert masked == ["EXPN staff", "X-private 25"] * len(ADDRESSES)


def test_without_the_deployment_a_forbidden_command_arrives(mail: MailLab, address: str) -> None:
    """The control: nothing but nfqguard is between client and server."""
    _, received, _ = _say_pipelined(mail, address)
    assert received == PIPELINED


def test_parallel_sessions_use_every_queue(mail: MailLab) -> None:
    mails = len(mail.postfix.messages("bob"))
    source = roots.fetch("postfix").argv([
        "smtp-source", "-s", str(SESSIONS), "-m", str(SESSIONS), "-l", "20000", "-f", SENDER,
        "-t", "bob@inside.example", f"inet:{ADDRESSES[0]}:25"])
    several = guarded(mail.lab, extra=f"[deployment]\nqueue-count = {QUEUES}", queues=QUEUES)
    with several as guard, Tap(mail.lab.server) as tap:
        assert bound(mail.lab) == list(range(QUEUES))
        mail.lab.client.run(source, timeout=COMMAND_TIMEOUT)
        mail.postfix.await_messages(mails + SESSIONS, "bob")
        opened = {each.source_port for each in tap.arrived()}
        counted = stop(guard)
    assert len(mail.postfix.messages("bob")) == mails + SESSIONS
    assert sorted(counted) == list(range(QUEUES))
    assert all(each["packets"] > 0 and each["messages"] > 0 for each in counted.values())
    assert len(opened) == SESSIONS == sum(each["flows-opened"] for each in counted.values())
    assert sum(each["messages"] for each in counted.values()) == SESSIONS
    assert all(each["drop.midstream"] == 0 for each in counted.values()), "a flow's directions are in different queues"
    assert {each["src_port"] for each in records(guard, "flow")} == opened
