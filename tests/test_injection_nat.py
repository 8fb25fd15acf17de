"""Packets of our own where addresses are translated: they reach both ends, as if each end had sent them itself."""
from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mail_lab import Tap, await_that, guarded, stop

from nfqguard.lab.dialogue import Dialogue
from nfqguard.lab.topology import Host, Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

GREETING = b"220 mail.inside.example ESMTP\r\n"
REFUSAL = "554 5.7.1 Refused by the gateway"
POLICY = """\
policy = "tested"
[policies.tested]
extends = "ios-esmtp"
max-data = 1000
refusal = "{refusal}"
"""
BODY = 2_000_000
RTO_MIN = 0.18
"""Seconds: before Linux sends anything a second time (TCP_RTO_MIN, 0.2)."""
PUBLIC_IPV6 = "fd00:22::110"
IPV4_SERVER, IPV6_SERVER = "10.10.10.2", "fd00:10::2"


@dataclass(frozen=True)
class Translation:
    """A case: where the client connects to, and what the gateway's nat table holds instead of the lab's."""

    name: str
    address: str
    steps: str
    twice: bool = False


DNAT6 = f"-A PREROUTING -i outside -d {PUBLIC_IPV6} -j DNAT --to-destination {IPV6_SERVER}\n"
DNAT4 = "-A PREROUTING -i outside -d 172.22.1.110 -j DNAT --to-destination 10.10.10.2\n"
SNAT4, SNAT6 = ("-A POSTROUTING -o inside -j MASQUERADE\n",) * 2
CASES = (
    Translation("none-ipv4", IPV4_SERVER, ""),
    Translation("none-ipv6", IPV6_SERVER, ""),
    Translation("dnat-ipv4", "172.22.1.110", DNAT4),
    Translation("dnat-ipv6", PUBLIC_IPV6, DNAT6),
    Translation("masquerade-ipv4", IPV4_SERVER, SNAT4),
    Translation("masquerade-ipv6", IPV6_SERVER, SNAT6),
    Translation("both-ipv4", "172.22.1.110", DNAT4 + SNAT4, twice=True),
    Translation("both-ipv6", PUBLIC_IPV6, DNAT6 + SNAT6, twice=True),
)


@dataclass
class Server:
    """Accepts on port 25 inside, greets, answers DATA, and notes how and when each connection ended."""

    host: Host
    ended: list[tuple[float, str]] = field(default_factory=list)
    heard: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._listener = self.host.call(lambda: socket.create_server(
            ("::", 25), family=socket.AF_INET6, dualstack_ipv6=True))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.sendall(GREETING)
        how = "end of stream"
        try:
            with connection:
                while octets := connection.recv(65536):
                    self.heard += octets
                    if octets.endswith(b"NOOP\r\n"):
                        connection.sendall(b"250 fine\r\n")
                    if octets.endswith(b"DATA\r\n"):
                        connection.sendall(b"354 go ahead\r\n")
        except OSError as error:
            how = type(error).__name__
        self.ended.append((time.monotonic(), how))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"nqnat{os.getpid()}") as made:
        made.gateway.run(["ip", "address", "add", f"{PUBLIC_IPV6}/128", "dev", "outside"])
        made.client.run(["ip", "route", "add", "10.10.10.0/24", "via", made.gateway.ipv4])
        for program in ("iptables", "ip6tables"):
            for table in ("nat", "filter"):
                made.gateway.run([program, "-t", table, "-F"])
        yield made


@contextmanager
def translated(lab: Lab, case: Translation) -> Iterator[None]:
    restore = ["ip6tables-restore" if ":" in case.address else "iptables-restore"]
    lab.gateway.run(restore, input=f"*nat\n{case.steps}COMMIT\n")
    try:
        yield
    finally:
        lab.gateway.run(restore, input="*nat\nCOMMIT\n")


@dataclass
class Session:
    """One client with its server; `seconds` is a measured round trip through the gateway and back."""

    client: Dialogue
    server: Server
    seconds: float

    def allowed(self) -> float:
        """What one round trip may take on a busy machine."""
        return 0.5 + 20 * self.seconds


@contextmanager
def session(lab: Lab, case: Translation, refusal: str) -> Iterator[tuple[Session, dict[str, int]]]:
    """A greeted session, and afterwards the engine's counters."""
    counters: dict[str, int] = {}
    with ExitStack() as stack:
        stack.enter_context(translated(lab, case))
        guard = stack.enter_context(guarded(lab, "tested", POLICY.replace('policy = "tested"\n', "").format(
            refusal=refusal)))
        server = Server(lab.server)
        stack.callback(server.close)
        client = stack.enter_context(Dialogue(lab.client, case.address, seconds=5))
        assert client.reply() == GREETING
        began = time.monotonic()
        assert client.ask(b"NOOP\r\n") == b"250 fine\r\n"
        yield Session(client, server, time.monotonic() - began), counters
        counters |= stop(guard)[0]


def resets_quickly(connection: socket.socket, seconds: float) -> bool:
    """Whether the socket is reset within that time."""
    ready, _, _ = select.select([connection], [], [], seconds)
    if not ready:
        return False
    try:
        connection.recv(1)
    except ConnectionResetError:
        return True
    return False


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_reset_reaches_both_ends_within_one_round_trip(lab: Lab, case: Translation) -> None:
    with session(lab, case, refusal="") as (talk, counted):
        assert talk.client.ask(b"DATA\r\n") == b"354 go ahead\r\n"
        began = time.monotonic()
        talk.client.send(b"z" * 1200)
        assert resets_quickly(talk.client._socket, talk.allowed()), "the client was not reset"
        await_that(lambda: talk.server.ended, "the server's connection ended", talk.allowed())
        ((ended, how),) = talk.server.ended
    assert how == "ConnectionResetError"
    assert ended - began < talk.allowed()
    assert (counted["resets"], counted["inject-failed"], counted["inject-unasked"]) == (1, 0, 0)
    assert counted["injected"] == 2, "each end believed the first one"
    assert counted["inject-untracked"] == {"none": 0, "both": 2}.get(case.name.split("-")[0], 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_connection_tracking_forgets_what_was_reset(lab: Lab, case: Translation) -> None:
    with session(lab, case, refusal="") as (talk, _):
        assert talk.client.ask(b"DATA\r\n") == b"354 go ahead\r\n"
        assert CLOSED < remaining(lab, talk.client.port) <= ESTABLISHED
        talk.client.send(b"z" * 1200)
        await_that(lambda: talk.server.ended, "the server's connection ended", talk.allowed())
        assert remaining(lab, talk.client.port) <= CLOSED


ESTABLISHED, CLOSED = 432_000, 10
"""Seconds: nf_conntrack_tcp_timeout_established and nf_conntrack_tcp_timeout_close."""


def remaining(lab: Lab, port: int) -> int:
    """How long the gateway's connection tracking will remember the client's connection; 0: it has forgotten it."""
    table = lab.gateway.call(Path("/proc/thread-self/net/nf_conntrack").read_text)
    found = [line.split() for line in table.splitlines() if f" sport={port} " in line]
    assert len(found) <= 1, "a packet of ours was taken for another connection"
    return int(found[0][4]) if found else 0


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_client_in_mid_message_reads_the_refusal_and_the_server_is_reset(lab: Lab, case: Translation) -> None:
    """Our acknowledgements have to arrive, too: without them the client gets no further than its first window."""
    with session(lab, case, REFUSAL) as (talk, counted):
        assert talk.client.ask(b"DATA\r\n") == b"354 go ahead\r\n"
        began = time.monotonic()
        talk.client.send(b"z" * BODY)
        await_that(lambda: talk.server.ended, "the server's connection ended", talk.allowed())
        assert talk.client.read_to_end() == REFUSAL.encode() + b"\r\n"
        assert time.monotonic() - began < talk.allowed()
        ((_, how),) = talk.server.ended
    assert how == "ConnectionResetError"
    assert b"z" not in talk.server.heard
    assert (counted["refusals"], counted["inject-failed"], counted["inject-unasked"]) == (1, 0, 0)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_was_held_reaches_the_server_as_from_the_client(lab: Lab, case: Translation) -> None:
    """What a client says behind DATA, before the reply, leaves as a packet of our own; the client's comes later."""
    behind = b"Subject: early\r\n\r\nbody\r\n.\r\n"
    with session(lab, case, REFUSAL) as (talk, counted), Tap(lab.server) as tap:
        talk.client.send(b"DATA\r\n" + behind)
        assert talk.client.reply() == b"354 go ahead\r\n"
        await_that(lambda: talk.server.heard.endswith(b"DATA\r\n" + behind), "the server has read it all", RTO_MIN)
        speaking = {(each.source, each.source_port) for each in tap.arrived()}
        await_that(lambda: acknowledged(talk.client), "the client knows that all has arrived", RTO_MIN)
    assert len(speaking) == 1, "the server saw packets of two connections"
    assert (counted["injected"], counted["inject-failed"], counted["inject-unasked"]) == (1, 0, 0)


def acknowledged(client: Dialogue) -> bool:
    """Whether nothing of the client's is under way (tcp(7), SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(client._socket, termios.TIOCOUTQ, b"\0" * 4))[0] == 0
