"""Real servers and real clients through a gateway with the preset `modern`, against the same without inspection.

Whatever differs between the two must be told by an event, and be what is written down here.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import live_scenarios  # registers them
import pytest
from live_mail import (
    SCENARIOS,
    Bench,
    Outcome,
    Scenario,
    Session,
    bench,
    changed_lines,
    explained,
    normal,
    relaying_clients,
)
from mail_lab import guarded, live_lab, stop

from nfqguard.lab.exim import Exim
from nfqguard.lab.guard import Guard
from nfqguard.lab.opensmtpd import OpenSmtpd
from nfqguard.lab.postfix import Postfix
from nfqguard.lab.server import MailServer
from nfqguard.lab.topology import Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

POLICY = "modern"
LATE = {"drop.midstream", "drop.flow-is-closed", "drop.rst-sequence"}
"""Drops behind a connection's end: what is left of connections that were not inspected, and what comes and goes where a
client closes without reading the reply to QUIT, and its kernel answers that with RST."""
ALL = frozenset({"PIPELINING", "STARTTLS", "AUTH", "8BITMIME", "DSN", "SMTPUTF8", "CHUNKING"})


@dataclass(frozen=True)
class Server:
    """A kind of server: what it offers, and the lines of its replies that the policy changes, with what they become."""

    kind: type[MailServer]
    offers: frozenset[str]
    edits: dict[bytes, bytes]


SERVERS = {
    "postfix": Server(Postfix, ALL, {
        b"220 mail.inside.example ESMTP Postfix\r\n": b"220 mail.inside.example ESMTP *******\r\n",
    }),
    "exim": Server(Exim, ALL, {
        b"220 mail.inside.example ESMTP Exim 4.96\r\n": b"220 mail.inside.example ESMTP **** ****\r\n",
        b"250-PIPECONNECT\r\n": b"250-XXXXXXXXXXX\r\n",
    }),
    "opensmtpd": Server(OpenSmtpd, frozenset({"8BITMIME", "DSN"}), {
        b"220 mail.inside.example ESMTP OpenSMTPD\r\n": b"220 mail.inside.example ESMTP *********\r\n",
    }),
}
BY_NAME = {each.name: each for each in SCENARIOS}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each server's class tries the scenarios for which it offers enough."""
    if metafunc.cls is not None and "name" in metafunc.fixturenames:
        offers = SERVERS[metafunc.cls.server].offers
        metafunc.parametrize("name", [pytest.param(each.name, marks=[pytest.mark.long] if each.long else [])
                                      for each in SCENARIOS if each.needs <= offers])


@dataclass(frozen=True)
class Compared:
    """A server behind the gateway that inspects by now, and what came of each scenario before."""

    server: Server
    bench: Bench
    guard: Guard
    without: dict[str, Outcome]


@pytest.fixture(scope="module")
def lab_with_clients() -> Iterator[tuple[Lab, tuple[Postfix, Exim]]]:
    with live_lab() as lab, relaying_clients(lab) as clients:
        yield lab, clients


@pytest.fixture(scope="class")
def compared(request: pytest.FixtureRequest, lab_with_clients: tuple[Lab, tuple[Postfix, Exim]],
             tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    lab, clients = lab_with_clients
    server = SERVERS[request.cls.server]
    running = server.kind(lab, secure="AUTH" in server.offers)
    folder: Path = tmp_path_factory.mktemp("live")
    with bench(lab, running, server.offers, clients, folder) as made:
        without = {each.name: made.perform(each) for each in _selected(request)}
        with guarded(lab, POLICY) as guard:
            yield Compared(server, made, guard, without)
            counted = stop(guard)[0]
    wrong = ("drop.", "resets", "events-lost", "edits-lost", "edits-skipped", "verdicts-lost")
    assert {name for name, each in counted.items() if each and name.startswith(wrong)} <= LATE


def _selected(request: pytest.FixtureRequest) -> list[Scenario]:
    """The scenarios that this run will try with this server."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.cls is request.cls]
    return [BY_NAME[item.callspec.params["name"]] for item in items]


class Servers:
    """The same for each server."""

    def test_only_what_an_event_tells_differs(self, compared: Compared, name: str) -> None:
        scenario, without = BY_NAME[name], compared.without[name]
        inspected = compared.bench.perform(scenario)
        for words in scenario.shows:
            assert any(words in session.clear()[0] for session in without.sessions), f"the client never said {words!r}"
        assert inspected.stored == without.stored
        for before, now in zip(without.sessions, inspected.sessions, strict=True):
            assert before.edits() == [], "something edits though nothing inspects"
            assert changed_lines(now) == set(compared.server.edits.items())
            assert explained(compared.guard, now) == []
            assert now.clear()[0] == before.clear()[0]
            assert normal(now.clear()[1]) == normal(_edited(compared.server, before))


class TestPostfix(Servers):
    server = "postfix"


class TestExim(Servers):
    server = "exim"


class TestOpenSmtpd(Servers):
    server = "opensmtpd"


def _edited(server: Server, session: Session) -> bytes:
    heard = session.clear()[1]
    for line, becomes in server.edits.items():
        heard = heard.replace(line, becomes)
    return heard


def test_every_feature_has_its_scenario() -> None:
    assert set().union(*(each.needs for each in SCENARIOS)) == ALL
    programs = {each.name.partition("-")[0] for each in SCENARIOS}
    assert programs >= {"smtplib", "swaks", "curl", "postfix", "exim"}
    assert live_scenarios.LARGE_OCTETS == 30_000_000
