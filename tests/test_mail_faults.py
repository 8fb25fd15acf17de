"""What an attacker, a crash and an operator's stop do to real mail: killed, forged, started twice, stopped under load.

The mail server is a real Postfix; what reaches it is captured on its interface, beneath its kernel.
"""
from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pytest
from mail_gateway import Client
from mail_lab import (
    ADDRESSES,
    INSIDE,
    PATIENCE,
    SENDER,
    MailLab,
    Seen,
    Tap,
    await_that,
    bound,
    guarded,
    joined,
    mail_lab,
    records,
    run,
    smtpd_stands_still,
    statistics,
    stop,
)
from wire import ACK, PSH, SYN, Segment

from nfqguard.lab.dialogue import Dialogue
from nfqguard.lab.guard import Guard
from nfqguard.lab.topology import Lab, LabError

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

OUTAGE = 2.2
"""Seconds without a daemon."""
SETTLE = 0.3
"""Seconds after which what is on its way between two namespaces has arrived."""
MIDSTREAM = '[policies.tested]\nextends = "ios-esmtp"\n[policies.tested.exceptions]\nmidstream = "{answer}"'


@pytest.fixture(scope="module")
def mail() -> Iterator[MailLab]:
    with mail_lab() as made:
        yield made


@pytest.fixture(params=ADDRESSES, ids=["ipv4", "ipv6"])
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Pour:
    """A session in the middle of its message data, which a thread sends for as long as it can; a context manager."""

    LINE = b"EXPN is no command in message data, and this line is 76 octets with its end\r\n"

    def __init__(self, mail: MailLab, address: str) -> None:
        self._client = Client(mail.lab, family_of(address))
        self.port = self._client.socket.getsockname()[1]
        assert self._client.hear().startswith(b"220 ")
        for command in ("EHLO client.example", f"MAIL FROM:<{SENDER}>", "RCPT TO:<alice@inside.example>", "DATA"):
            assert self._client.say(f"{command}\r\n".encode())[:1] in b"23"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Pour:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with suppress(OSError):
            self._client.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread; closing alone does not
        self._thread.join()
        self._client.socket.close()

    def _run(self) -> None:
        with suppress(OSError):
            while not self._stopping.is_set():
                self._client.socket.sendall(self.LINE * 50)
                time.sleep(0.001)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def new_sessions(lab: Lab) -> Iterator[list[socket.socket]]:
    """Within, the client opens a session every 0.05 s, over IPv4 and IPv6 in turn."""
    sockets: list[socket.socket] = []
    stopping = threading.Event()

    def open_them() -> None:
        for address in itertools.cycle(ADDRESSES):
            if stopping.wait(0.05):
                return
            sockets.append(lab.client.socket(family_of(address)))
            sockets[-1].setblocking(False)
            with suppress(BlockingIOError):
                sockets[-1].connect((address, 25))

    thread = threading.Thread(target=open_them)
    thread.start()
    try:
        yield sockets
    finally:
        stopping.set()
        thread.join()
        for each in sockets:
            each.close()


@pytest.mark.parametrize("answer", ["drop", "reset"])
def test_killed_in_the_middle_lets_nothing_pass_and_recovers(mail: MailLab, answer: str) -> None:
    """Over each of IPv4 and IPv6 one session stands and one is in the middle of its message data."""
    with ExitStack() as stack:
        guard = stack.enter_context(guarded(mail.lab, "tested", MIDSTREAM.format(answer=answer)))
        patience = 2.5 if answer == "drop" else PATIENCE
        standing = [stack.enter_context(mail.dialogue(address, patience)) for address in ADDRESSES]
        pouring = [stack.enter_context(Pour(mail, address)) for address in ADDRESSES]
        tap = stack.enter_context(Tap(mail.lab.server))
        time.sleep(SETTLE)
        assert guard.stop(signal.SIGKILL) == -signal.SIGKILL
        before = _settle(tap)
        assert all(len(_said(each.port, before)) > 10_000 for each in pouring), "it was not pouring"
        with new_sessions(mail.lab) as opened:
            _say_in_vain(standing, OUTAGE)
            reached, tried = tap.arrived(), len(opened)
        assert reached == [], "packets reached the server while nobody inspected"
        assert tried >= OUTAGE / 0.05 / 2
        assert records(guard, "flow") == [], "killed, it had no time for records"
        run(guard)
        for address in ADDRESSES:
            mail.deliver(address)
        for old in standing:
            _what_becomes_of(old, answer, tap)
        assert stop(guard)[0]["drop.midstream"] > 0
        for old in standing:
            reasons = {each["nfqguard"]["reason"] for each in records(guard, "drop", old.port)}
            assert "midstream" in reasons, "the old session did not try again, so nothing was tried"


def _settle(tap: Tap) -> list[Seen]:
    """What arrived until now. The verdicts of the last moment are on their way still when the process is reaped."""
    time.sleep(SETTLE)
    return tap.arrived()


def _said(port: int, packets: list[Seen]) -> bytes:
    return joined([each for each in packets if each.source_port == port])


def _say_in_vain(clients: list[Dialogue], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for client in clients:
            client.send(b"EXPN root\r\n")
        time.sleep(0.05)


def _what_becomes_of(old: Dialogue, answer: str, tap: Tap) -> None:
    """`drop`: it stays silent at both ends. `reset`: what the client sends again resets both."""
    if answer == "drop":
        with pytest.raises(LabError, match="did not come within"):
            old.reply()
        assert [each for each in _settle(tap) if each.source_port == old.port] == []
    else:
        with pytest.raises(ConnectionResetError):
            old.read_to_end()


def test_without_the_deployment_the_outage_would_let_all_pass(mail: MailLab) -> None:
    """The control of the test above: the same, with the steps taken away, reaches the server."""
    with mail.dialogue(ADDRESSES[0]) as v4, mail.dialogue(ADDRESSES[1]) as v6, Tap(mail.lab.server) as tap:
        with new_sessions(mail.lab):
            _say_in_vain([v4, v6], SETTLE)
        reached = _settle(tap)
        assert all(b"EXPN root" in _said(client.port, reached) for client in (v4, v6))
    new = [each for each in reached if each.flags & SYN]
    assert {each.source for each in new} == {mail.lab.client.ipv4, mail.lab.client.ipv6}


def test_accepting_in_absence_only_where_asked(mail: MailLab) -> None:
    """The other control: what passes or not during the outage is the deployment's doing."""
    with guarded(mail.lab, extra='[deployment]\non-absent = "accept"') as guard, ExitStack() as stack:
        clients = [stack.enter_context(mail.dialogue(address)) for address in ADDRESSES]
        guard.stop(signal.SIGKILL)
        for client in clients:
            with Tap(mail.lab.server) as tap:
                client.ask(b"EXPN root\r\n")
                assert b"EXPN root\r\n" in joined(tap.arrived())


# ---- forged by the client, in the server's name ----

FORGED = {b"DATA\r\n": b"354 forged\r\n", b"STARTTLS\r\n": b"220 forged\r\n"}
"""What is said, and the reply that would open a mode in which commands pass as they are."""
ATTACKED = """
[policies.tested]
extends = "ios-esmtp"
verbs = ["DATA", "EHLO", "MAIL", "QUIT", "RCPT", "STARTTLS"]
[engine]
binding = "{binding}"
"""


@dataclass
class Attacker:
    """The client, with a tap on its own interface: there it reads its connection's numbers, and forges."""

    client: Dialogue
    tap: Tap
    seen: list[Seen]
    forged: int = 0

    def look(self) -> None:
        self.seen += self.tap.packets()

    def forge(self, source: str, payload: bytes = b"") -> None:
        """A segment from the server's address `source` to ourselves, exactly where the server's next octets belong,
        acknowledging all that we have sent; out into the wire, to the gateway."""
        self.look()
        ours = [each for each in self.seen if each.source_port == self.client.port and not each.arriving]
        last = ours[-1]
        sent = max((each.seq + len(each.payload) for each in ours), key=lambda end: (end - ours[0].seq) & 0xFFFFFFFF)
        flags = ACK | (PSH if payload else 0)
        packet = Segment(source, last.source, 25, self.client.port, last.ack, sent, flags, payload=payload).build()
        self.tap.send(last.frame[:14] + packet)
        self.forged += 1

    def got_forged(self) -> bool:
        """Whether anything of ours came back through the gateway."""
        self.look()
        return any(b"forged" in each.payload for each in self.seen if each.arriving)


@contextmanager
def attacking(mail: MailLab, address: str) -> Iterator[Attacker]:
    with Tap(mail.lab.client) as tap, mail.dialogue(address) as client:
        yield Attacker(client, tap, [])


@pytest.fixture
def loose_gateway(mail: MailLab) -> Iterator[None]:
    """The gateway's own defences off, so that it is nfqguard that must stop a forgery: reverse path filter, and the
    refusal of packets from one of its own addresses (the static one is).

    The mail server takes no redirects. A gateway's kernel sends one, to the address that a packet bears, before
    Netfilter's FORWARD sees the packet; over IPv6 nothing turns that off, and the server would believe that the client
    is its neighbour, and answer it no more.
    """
    lab = mail.lab
    keys = {f"net/ipv4/conf/{device}/{key}": (lab.gateway, int(key == "accept_local"))
            for device in ("all", "outside") for key in ("rp_filter", "accept_local")}
    keys["net/ipv6/conf/eth0/accept_redirects"] = (lab.server, 0)
    before = {key: int(host.run(["cat", f"/proc/sys/{key}"]).stdout) for key, (host, _) in keys.items()}
    for key, (host, value) in keys.items():
        host.sysctl(key, value)
    yield
    for key, (host, _) in keys.items():
        host.sysctl(key, before[key])


def _attack(mail: MailLab, attacker: Attacker, said: bytes, sources: tuple[str, ...], tap: Tap) -> bytes:
    """Say a command and forge its reply while the server is silent, before and after a forbidden command is sent
    behind it. Returns what the server received in that time."""
    with smtpd_stands_still(mail.postfix):
        attacker.client.send(said)
        received = b""
        await_that(lambda: said in joined(tap.packets()), f"{said!r} reaches the server")
        for _ in range(2):
            for source in sources:
                attacker.forge(source)
                attacker.forge(source, FORGED[said])
            time.sleep(SETTLE)
            attacker.client.send(b"EXPN root\r\n")
            time.sleep(SETTLE)
            received += joined(tap.arrived())
    return received


@pytest.mark.usefixtures("loose_gateway")
def test_forged_replies_change_nothing(mail: MailLab, address: str) -> None:
    sources = tuple({address, INSIDE[address]})
    with guarded(mail.lab, "tested", ATTACKED.format(binding="strict")) as guard:
        for said in FORGED:
            with attacking(mail, address) as attacker, Tap(mail.lab.server) as tap:
                received = _attack(mail, attacker, said, sources, tap)
                assert b"EXPN" not in received
                replies = [attacker.client.reply() for _ in range(3)]
                assert not attacker.got_forged()
                assert replies[0][:1] == b"5", "the server's own reply, the first that the client reads"
                assert replies[1:] == [b"500 5.5.2 Error: command not recognized\r\n"] * 2
                assert b"forged" not in attacker.client.received
                assert received + joined(tap.arrived()) == b"XXXXXXXXX\r\n" * 2
                _expect_drops(guard, attacker)
        counted = stop(guard)[0]
    assert counted["drop.midstream"] == 2 * attacker.forged, "each forgery met nfqguard, and nothing else stopped one"
    assert (counted["commands-masked"], counted["resets"]) == (4, 0)


def _expect_drops(guard: Guard, attacker: Attacker) -> None:
    """Every forgery is told, with the addresses that it bore."""
    def told() -> int:
        return len([each for each in records(guard, "drop")
                    if attacker.client.port in (each["src_port"], each["dest_port"])
                    and each["nfqguard"]["reason"] == "midstream"])

    await_that(lambda: told() == attacker.forged, f"{attacker.forged} drops are told, not {told()}")


@pytest.mark.usefixtures("loose_gateway")
def test_without_the_binding_a_forged_reply_opens_the_gate(mail: MailLab, address: str) -> None:
    """The control: the forgeries are good ones. Where interfaces are not looked at, they come through and are believed,
    and the forbidden command reaches the server as it is."""
    with guarded(mail.lab, "tested", ATTACKED.format(binding="off")):
        for said in FORGED:
            with attacking(mail, address) as attacker, Tap(mail.lab.server) as tap:
                received = _attack(mail, attacker, said, (INSIDE[address],), tap)
                assert attacker.got_forged()
                assert b"EXPN root\r\n" in received


# ---- the operator ----

def test_a_second_daemon_is_refused_and_the_first_goes_on(mail: MailLab) -> None:
    with guarded(mail.lab) as guard, mail.dialogue(ADDRESSES[0]) as client:
        again = [sys.executable, "-m", "nfqguard", "run", "--config", str(guard.config), "--events", "-"]
        second = mail.lab.gateway.run(again, check=False)
        assert second.returncode == 1
        assert "queue 0 is bound already" in second.stderr
        assert "Traceback" not in second.stderr
        assert client.ask(b"EXPN root\r\n").startswith(b"500 "), "the session that stood goes on, inspected"
        for address in ADDRESSES:
            mail.deliver(address)
        counted = stop(guard)[0]
    assert counted["commands-masked"] == 1
    assert counted["messages"] == len(ADDRESSES)


def test_stopped_in_the_middle_of_traffic(mail: MailLab) -> None:
    with guarded(mail.lab) as guard, ExitStack() as stack:
        tap = stack.enter_context(Tap(mail.lab.server))
        pouring = [stack.enter_context(Pour(mail, address)) for address in ADDRESSES]
        steps = guard.steps()
        assert any("NFQUEUE" in step for step in steps)
        time.sleep(SETTLE)
        began = time.monotonic()
        status = guard.stop()
        took = time.monotonic() - began
        passed = _settle(tap)
        assert (status, bound(mail.lab)) == (0, [])
        assert took < 2
        assert guard.steps() == steps
        assert guard.rules("check") == "Netfilter is as planned.\n"
        assert _settle(tap) == [], "stopped, it lets nothing pass"
        for each in pouring:
            _expect_record(guard, each.port, len(_said(each.port, passed)))
        assert statistics(guard)[0]["flows"] == 0
        run(guard)
        mail.deliver(ADDRESSES[0])


def _expect_record(guard: Guard, port: int, octets: int) -> None:
    """The one record of a flow that the stop ended, after so many octets of payload had reached the server."""
    assert octets > 10_000, "nothing flowed, so nothing was tried"
    flows = records(guard, "flow", port)
    assert [each["nfqguard"]["reason"] for each in flows] == ["stopped"]
    assert flows[0]["flow"]["bytes_toserver"] > octets
