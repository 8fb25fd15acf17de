"""Real mail programs on both sides of a gateway, and what went between them, twice: without inspection and with it.

A scenario is what one client does. What it must not depend on is made equal beforehand (dates, Message-Ids, clients'
own Received lines) or in NORMAL, and nowhere else.
"""
from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mail_lab import PATIENCE, await_that, records

from nfqguard.lab import roots
from nfqguard.lab.exim import Exim
from nfqguard.lab.guard import Guard
from nfqguard.lab.postfix import Postfix
from nfqguard.lab.recorder import Conversation, Recorder
from nfqguard.lab.server import DOMAIN, PASSWORD, MailServer
from nfqguard.lab.topology import Host, Lab

CLIENT_NAME = "client.outside.example"
RECIPIENT = f"alice@{DOMAIN}"
LOGIN = f"alice@{DOMAIN}"
V4, V6 = "172.22.1.110", "fd00:10::2"
SECURED = "secured@outside.example"
"""For whom the clients that relay use IPv6, insist on TLS, and authenticate."""
MAIL_SECONDS = 40.0

NORMAL = (
    (rb"(?<=queued as )[0-9A-Za-z]+", b"ID"),                                           # Postfix, reply
    (rb"(?<=250 OK id=)[0-9A-Za-z]{6}-[0-9A-Za-z]{6}-[0-9A-Za-z]{2}", b"ID"),           # Exim, reply
    (rb"(?<=250 2\.0\.0 )[0-9a-f]{8}(?= Message accepted)", b"ID"),                     # OpenSMTPD, reply
    (rb"(?<=\sid )[0-9A-Za-z-]{8,16}(?=[;\n])", b"ID"),                                 # Received, all of them
    (rb"(?<=;)\s+\w{3}, +\d{1,2} \w{3} \d{4} \d\d:\d\d:\d\d \+0000( \(UTC\))?(?=\n)", b"DATE"),
)


def normal(octets: bytes) -> bytes:
    """Octets of a reply or a mailbox with what differs by nature made equal."""
    for pattern, by in NORMAL:
        octets = re.sub(pattern, by, octets)
    return octets


@dataclass(frozen=True)
class Session:
    """A connection as seen on both sides of the gateway.

    sent, heard    at the client: what it said, what it read
    arrived, said  at the server: what it read, what it said
    """

    port: int
    sent: bytes
    arrived: bytes
    said: bytes
    heard: bytes

    def clear(self) -> tuple[bytes, bytes]:
        """What the client said and heard before TLS began."""
        return tuple(octets.partition(b"\x16\x03")[0] for octets in (self.sent, self.heard))  # type: ignore[return-value]

    def edits(self) -> list[tuple[str, int, int]]:
        """Ranges (direction, first, end) that differ between the two sides, from the view of who sent them."""
        found = []
        for direction, before, behind in (("client", self.sent, self.arrived), ("server", self.said, self.heard)):
            if before == behind:
                continue
            assert len(before) == len(behind), f"lengths differ: {before[-200:]!r} became {behind[-200:]!r}"
            at = 0
            for line_before, line_behind in zip(_lines(before), _lines(behind), strict=True):
                if line_before != line_behind:
                    found.append((direction, at, at + len(line_before)))
                at += len(line_before)
        return found


def _lines(octets: bytes) -> list[bytes]:
    return re.findall(rb"[^\n]*\n|[^\n]+", octets)


@dataclass(frozen=True)
class Outcome:
    """What came of a scenario: the connections in the order in which they began, and what was stored."""

    sessions: list[Session]
    stored: list[bytes]


@dataclass
class Bench:
    """A lab with a server, recorders on both sides, and the clients that need a configuration."""

    lab: Lab
    server: MailServer
    offers: frozenset[str]
    outside: Recorder
    inside: Recorder
    postfix: Postfix
    exim: Exim
    folder: Path
    seen: list[Conversation] = field(default_factory=list)

    @property
    def client(self) -> Host:
        return self.lab.client

    def tool(self, name: str, *words: str) -> str:
        """Run swaks or curl from its root at the client; what it printed."""
        return str(self.client.run(roots.fetch(name).argv([name, *words]), encoding="latin-1").stdout)

    def file(self, octets: bytes) -> str:
        """Octets as a file, for programs that want one."""
        path = self.folder / "message"
        path.write_bytes(octets)
        return str(path)

    def perform(self, scenario: Scenario) -> Outcome:
        """Do it, wait until its connections are over and its mail is stored, and say what came of it."""
        before = {user: self.server.messages(user) for user in ("alice", "bob")}
        self.seen = self.outside.conversations() + self.inside.conversations()
        scenario.play(self)
        stored = []
        for user, count in (("alice", scenario.alice), ("bob", scenario.bob)):
            found = self.server.await_messages(len(before[user]) + count, user, MAIL_SECONDS)
            stored += sorted(normal(path.read_bytes()) for path in found if path not in before[user])
        await_that(lambda: self._over(), "the connections are over")
        return Outcome([_session(*pair) for pair in self._pairs()], stored)

    def _new(self, recorder: Recorder) -> list[Conversation]:
        return [each for each in recorder.conversations() if not any(each is known for known in self.seen)]

    def _over(self) -> bool:
        outside, inside = self._new(self.outside), self._new(self.inside)
        return len(outside) == len(inside) > 0 and all(each.over for each in outside + inside)

    def _pairs(self) -> Iterator[tuple[Conversation, Conversation]]:
        inside = {each.client[1]: each for each in self._new(self.inside)}
        for each in self._new(self.outside):
            yield each, inside[each.client[1]]


def _session(outside: Conversation, inside: Conversation) -> Session:
    ends = (outside.to_server, inside.to_server, inside.to_client, outside.to_client)
    assert outside.to_server.conflicts == 0 == inside.to_client.conflicts, "somebody else sends with our numbers"
    return Session(outside.client[1], *(bytes(each.octets) for each in ends))


@dataclass(frozen=True)
class Scenario:
    """What a client does.

    needs       what the server must offer
    shows       what the client must have said in clear, or it was not what this scenario is for
    alice, bob  how many messages each must get
    """

    name: str
    play: Callable[[Bench], object]
    needs: frozenset[str]
    shows: tuple[bytes, ...]
    alice: int
    bob: int
    long: bool


SCENARIOS: list[Scenario] = []


def scenario(*needs: str, shows: tuple[bytes, ...] = (), alice: int = 1, bob: int = 0,
             long: bool = False) -> Callable[[Callable[[Bench], object]], Callable[[Bench], object]]:
    """Register a function as a scenario of its name."""
    def register(play: Callable[[Bench], object]) -> Callable[[Bench], object]:
        SCENARIOS.append(Scenario(play.__name__.replace("_", "-"), play, frozenset(needs), shows, alice, bob, long))
        return play
    return register


@contextmanager
def relaying_clients(lab: Lab, settings: Mapping[str, str] | None = None) -> Iterator[tuple[Postfix, Exim]]:
    """Postfix and Exim at the client, as senders of others' mail; for SECURED by IPv6, TLS and AUTH, else in clear.

    settings  what is to differ in Postfix
    """
    postfix = Postfix(lab, lab.client, {
        "myhostname": CLIENT_NAME, "virtual_mailbox_domains": "", "mynetworks": "172.22.1.0/24",
        "relayhost": f"[{V4}]", "sender_dependent_relayhost_maps": f"inline:{{{SECURED}=[{V6}]}}",
        "smtp_tls_policy_maps": f"inline:{{[{V6}]=encrypt}}", "smtp_sasl_auth_enable": "yes",
        "smtp_sasl_password_maps": f"inline:{{{{[{V6}]={LOGIN}:{PASSWORD}}}}}",
        "smtp_sasl_security_options": "noanonymous", "smtp_address_preference": "ipv4",
        "header_checks": "regexp:{{/^Received:/ IGNORE}}", **(settings or {}),
    })
    secured = f"${{if eq{{$sender_address}}{{{SECURED}}}"
    always = dict.fromkeys(("hosts_require_tls", "hosts_require_auth"), secured + "{*}{}}")
    exim = Exim(lab, lab.client, {"received_header_text": "", "primary_hostname": CLIENT_NAME},
                smarthost=f"{secured}{{{V6}}}{{{V4}}}}}",
                transport=always | {"hosts_avoid_tls": secured + "{}{*}}", "hosts_try_prdr": ""})
    try:
        postfix.start()
        exim.configure()
        yield postfix, exim
    finally:
        postfix.stop()


@contextmanager
def bench(lab: Lab, server: MailServer, offers: frozenset[str], clients: tuple[Postfix, Exim],
          folder: Path) -> Iterator[Bench]:
    """A server that is started and stopped, and all that watches it."""
    server.start()
    try:
        with Recorder(lab.client) as outside, Recorder(lab.server) as inside:
            yield Bench(lab, server, offers, outside, inside, *clients, folder)
    finally:
        server.stop()


def explained(guard: Guard, session: Session, seconds: float = PATIENCE) -> list[tuple[str, int, int]]:
    """The edits of a session that no event tells, after waiting for events that may still be under way."""
    deadline = time.monotonic() + seconds
    while missing := [edit for edit in session.edits() if not any(_tells(each, edit) for each in told(guard, session))]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return missing


def told(guard: Guard, session: Session) -> list[dict[str, Any]]:
    """What the gateway recorded of a connection so far."""
    return [each for each in records(guard, "smtp") if session.port in (each["src_port"], each["dest_port"])]


def _tells(record: dict[str, Any], edit: tuple[str, int, int]) -> bool:
    of = record["nfqguard"]
    direction, first, end = edit
    return (of.get("direction") == direction and of.get("action") not in (None, "log")
            and of["offset"] < end and of["offset"] + of["length"] >= first)


def changed_lines(session: Session) -> set[tuple[bytes, bytes]]:
    """Each line that the gateway changed: as it was said, as it was heard."""
    found = set()
    for direction, first, end in session.edits():
        before, behind = (session.sent, session.arrived) if direction == "client" else (session.said, session.heard)
        found.add((before[first:end], behind[first:end]))
    return found

