"""Evasions against a real server behind a real gateway: raw packets on one side, on the other what the application
has read.

Each case of tests/evasion is tried three times, under IPv4 and IPv6 where it fits:
- without nfqguard, where it must succeed, or the suite could not fail; those that cannot succeed against Linux say why;
- with nfqguard as deployed, policy ios-esmtp;
- the same with connection tracking told to overlook wrong checksums, windows and RSTs, so that the engine stands alone.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from evasion import CASES, FAMILIES, arena, memory
from evasion.arena import Outcomes

from nfqguard.lab.guard import Guard
from nfqguard.lab.topology import Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]
POLICY = "ios-esmtp"
OVERLOOK = {"nf_conntrack_checksum": 0, "nf_conntrack_tcp_be_liberal": 1, "nf_conntrack_tcp_ignore_invalid_rst": 1}
"""See nf_conntrack-sysctl."""
PORTS = (20_000, 22_000, 24_000, 26_000)
"""First port of each round, below the ephemeral ones."""
EFFECTIVE = [name for name, case in CASES.items() if case.effective]
MASKED = (b"XXXXXXXXX\r\n",)


@dataclass
class Inspected:
    """Both rounds with nfqguard, and what the daemon left."""

    rounds: dict[str, Outcomes] = field(default_factory=dict)
    status: int = -1
    events: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"nqevade{os.getpid()}") as lab:
        arena.prepare(lab)
        yield lab


@pytest.fixture(scope="module")
def uninspected(lab: Lab) -> Outcomes:
    return arena.run(lab, CASES, PORTS[0])


@pytest.fixture(scope="module")
def inspected(lab: Lab, uninspected: Outcomes) -> Inspected:
    guard, done = Guard(lab, POLICY), Inspected()
    guard.write_config()
    guard.rules("apply")
    guard.start()
    done.rounds["as deployed"] = arena.run(lab, CASES, PORTS[1])
    for key, value in OVERLOOK.items():
        lab.gateway.sysctl(f"net/netfilter/{key}", value)
    done.rounds["engine alone"] = arena.run(lab, CASES, PORTS[2])
    done.status = guard.stop()
    done.events = guard.events()
    return done


def test_the_suite_is_large_enough() -> None:
    assert len(EFFECTIVE) >= 60
    for family, cases in FAMILIES.items():
        assert any(case.effective for case in cases), f"nothing in {family} could fail"
        assert len({case.name for case in cases}) == len(cases), f"a name in {family} stands twice"


@pytest.mark.parametrize("name", EFFECTIVE)
def test_without_inspection_the_verb_arrives(uninspected: Outcomes, name: str) -> None:
    case = CASES[name]
    for version in case.versions:
        outcome = uninspected[name, version]
        assert outcome.through, f"IPv{version}: the server has read {outcome.commands}"
        beside = outcome.neighbour or "unharmed"
        assert bool(outcome.neighbour) == case.harms, f"IPv{version}: the session beside: {beside}"


@pytest.mark.parametrize("name", CASES)
def test_the_verb_never_arrives_and_nobody_is_harmed(inspected: Inspected, name: str) -> None:
    for which, outcomes in inspected.rounds.items():
        for version in CASES[name].versions:
            outcome = outcomes[name, version]
            assert not outcome.through, f"{which}, IPv{version}: the server has read {outcome.commands}"
            assert not outcome.neighbour, f"{which}, IPv{version}: the session beside: {outcome.neighbour}"


def test_nobody_is_starved(lab: Lab, inspected: Inspected) -> None:
    """One at a time, for they would starve each other: each alone takes all that the pool gives away."""
    guard = Guard(lab, POLICY, f"[engine]\nsmall-blocks = {memory.SMALL_BLOCKS}\n")
    guard.write_config()
    guard.start()
    for number, case in enumerate(memory.CASES):
        for (_, version), outcome in arena.run(lab, {case.name: case}, PORTS[3] + 2 * number).items():
            assert not outcome.through, f"{case.name}, IPv{version}: the server has read {outcome.commands}"
            assert not outcome.neighbour, f"{case.name}, IPv{version}: the session beside: {outcome.neighbour}"
    assert guard.stop() == 0
    stats = next(event["stats"] for event in reversed(guard.events()) if event["event_type"] == "stats")
    assert stats["drop.memory"] > 0, "the pool was never short, so nothing was tried"


def test_the_plain_line_arrives_masked(inspected: Inspected) -> None:
    """What does not arrive is inspected, and not merely cut off."""
    for outcomes in inspected.rounds.values():
        for version in (4, 6):
            assert outcomes["sequence/plain", version].commands == (MASKED,)


def test_the_daemon_has_kept_up(inspected: Inspected) -> None:
    assert inspected.status == 0
    stats = next(event["stats"] for event in reversed(inspected.events) if event["event_type"] == "stats")
    assert stats["kernel"]["dropped"] == 0, "a full queue drops, too, and then nothing was tried"
    assert stats["verdicts-lost"] == stats["edits-lost"] == 0
