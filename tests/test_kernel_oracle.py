"""The kernel's own TCP at both ends, and a network between that loses, reorders and duplicates: what the applications
read is what they would have read of each other line by line, with the policy's edits and nothing else.

    client ──[cable]── raw PREROUTING  gateway  ──[cable]── raw PREROUTING  server

A cable (bench/cable.c) delays, reorders and duplicates; `-m statistic` in raw PREROUTING loses: on the gateway what has
not reached nfqguard, on client and server what has left it.
"""
from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from bench.cable import Cable, Fault, cable_host, cabled, remove
from linear_mail import EHLO, GREETING, Server, answered, converse, masked_ehlo, removed_ehlo, said, starred
from mail_gateway import checksum_errors
from mail_lab import guarded, records, stop

from nfqguard.lab.topology import RUN, Host, Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

PREFIX = "nqoracle"
LOSS = "0.01"
LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
HASTE = {"net/ipv4/tcp_rto_max_ms": 1000, "net/ipv4/tcp_rto_min_us": 20_000}
"""The hosts' retransmission timers, where the kernel lets them be set: what is lost twice need not cost seconds."""
CHAOS = {False: Fault(delay=200, jitter=3_000, reorder=200, duplicate=150),
         True: Fault(delay=200, jitter=3_000, reorder=1_000, duplicate=800)}
"""By offloads: with them, frames are few and large."""
ADDRESS = {"ipv4": "172.22.1.110", "ipv6": "fd00:10::2"}

TEXT = "a gateway that says rather more about itself than the server behind it ever did, ESMTP"
HEADER = "X-Gateway: inspected by nfqguard on its way in"
ASA_KEEPS = (b"mail.inside.example", b"PIPELINING", b"SIZE", b"8BITMIME", b"DSN")
BASE = '[policies.oracle]\nextends = "asa"\nmask-banner = "none"\nmask-ehlo = false\n'
REMOVES = 'mask-ehlo = true\nremove-ehlo = true\n'
BANNER = f'mask-banner = "text"\nbanner-text = "{TEXT}"\n'
INSERTS = f'insert-header = "{HEADER}"\n'


@dataclass(frozen=True)
class Edits:
    """A policy, and what its edits make of the three places that they touch."""

    policy: str
    extra: str = ""
    greeting: bytes = GREETING
    ehlo: bytes = EHLO
    header: bytes = b""

    @property
    def changes_length(self) -> bool:
        return (len(self.greeting), len(self.ehlo), len(self.header)) != (len(GREETING), len(EHLO), 0)


def changing(*keys: str) -> Edits:
    """A policy of our own with some of the keys that change lengths."""
    extra = BASE.replace("mask-ehlo = false\n", "") if REMOVES in keys else BASE
    extra = extra.replace('mask-banner = "none"\n', "") if BANNER in keys else extra
    return Edits("oracle", extra + "".join(keys),
                 greeting=b"220 " + TEXT.encode() + b"\r\n" if BANNER in keys else GREETING,
                 ehlo=removed_ehlo(ASA_KEEPS) if REMOVES in keys else EHLO,
                 header=HEADER.encode() + b"\r\n" if INSERTS in keys else b"")


POLICIES = {
    "ios-esmtp": Edits("ios-esmtp"),
    "asa": Edits("asa", greeting=starred(GREETING), ehlo=masked_ehlo(ASA_KEEPS)),
    "banner": changing(BANNER),
    "removed": changing(REMOVES),
    "inserted": changing(INSERTS),
    "all-lengths": changing(BANNER, REMOVES, INSERTS),
}


@dataclass(frozen=True)
class Case:
    """One network and one policy."""

    policy: str
    family: str
    offloads: bool
    mtu: int
    trouble: str

    def __str__(self) -> str:
        return f"{self.policy}-{self.family}-offloads-{'on' if self.offloads else 'off'}-{self.mtu}-{self.trouble}"

    def __post_init__(self) -> None:
        assert (self.policy, self.family, self.trouble) in itertools.product(*(VALUES[i] for i in (0, 1, 4)))


VALUES: tuple[tuple[object, ...], ...] = (
    tuple(POLICIES), tuple(ADDRESS), (True, False), (1500, 9000),
    ("before", "behind", "both", "chaos", "chaos-and-both"),
)
PRODUCT = [Case(*values) for values in itertools.product(*VALUES)]  # type: ignore[arg-type]


def pairs(case: Case) -> set[tuple[int, object, int, object]]:
    """Every two of a case's values."""
    values = [getattr(case, each.name) for each in fields(case)]
    return {(i, values[i], j, values[j]) for i, j in itertools.combinations(range(len(values)), 2)}


def pairwise(cases: list[Case], dense: set[int]) -> list[Case]:
    """Few cases in which any two values, of which one is of these fields at least, come together; greedily."""
    missing = {pair for case in cases for pair in pairs(case) if not {pair[0], pair[2]} <= dense}
    chosen = []
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


WIDE = {0, 4}
"""Policy and trouble: 30 pairs, each a case of its own, are for the full product."""
PAIRWISE = pairwise(PRODUCT, WIDE)


def sweep() -> None:
    """Take down what a run that was killed left."""
    for folder in RUN.glob(f"nfqguard-lab-{PREFIX}*"):
        found = re.fullmatch(rf"nfqguard-lab-({PREFIX}(\d+))", folder.name)
        if found and not Path(f"/proc/{found[2]}").exists():
            lab = Lab(found[1])
            for host in (lab.client, lab.server):
                remove(cable_host(host))
            lab.down()


@pytest.fixture(scope="module", autouse=True)
def swept() -> None:
    sweep()


@contextmanager
def losing(host: Host, family: str, matches: list[list[str]]) -> Iterator[list[int]]:
    """A host loses a share of what matches before it looks at it. The list has how many were lost, afterwards."""
    program = "ip6tables" if family == "ipv6" else "iptables"
    for match in matches:
        host.run([program, "-w", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", *match, "-m", "statistic", "--mode",
                  "random", "--probability", LOSS, "-j", "DROP"])
    lost: list[int] = []
    try:
        yield lost
    finally:
        lines = str(host.run([program, "-w", "-t", "raw", "-nvxL", "PREROUTING"]).stdout).splitlines()
        lost += [int(line.split()[0]) for line in lines if "statistic" in line]
        host.run([program, "-w", "-t", "raw", "-F", "PREROUTING"])


@contextmanager
def trouble(lab: Lab, case: Case) -> Iterator[tuple[list[list[int]], list[Cable]]]:
    """The network of a case: what its steps have lost, and its cables, when it is over."""
    up, down = ["--dport", "25"], ["--sport", "25"]
    with ExitStack() as stack:
        lost: list[list[int]] = []
        cables = []
        if "chaos" in case.trouble:
            cables += [stack.enter_context(cabled(lab, host, CHAOS[case.offloads]))
                       for host in (lab.client, lab.server)]
        if case.trouble.endswith(("before", "both")):
            ways = [["-i", "outside", *up], ["-i", "inside", *down]]
            lost.append(stack.enter_context(losing(lab.gateway, case.family, ways)))
        if case.trouble.endswith(("behind", "both")):
            lost.append(stack.enter_context(losing(lab.server, case.family, [up])))
            lost.append(stack.enter_context(losing(lab.client, case.family, [down])))
        yield lost, cables


@contextmanager
def lab_of(case: Case) -> Iterator[Lab]:
    with Lab(f"{PREFIX}{os.getpid()}", mtu=case.mtu, offloads=case.offloads) as lab:
        for host, (key, value) in itertools.product((lab.client, lab.server), HASTE.items()):
            if (Path("/proc/sys") / key).exists():
                host.sysctl(key, value)
        if POLICIES[case.policy].changes_length:
            lab.gateway.sysctl(LIBERAL, 1)
        yield lab


def digest(octets: bytes) -> tuple[int, str]:
    return len(octets), hashlib.sha256(octets).hexdigest()


def difference(got: bytes, wanted: bytes) -> str:
    """For a failure: where two streams part."""
    at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    return f"{len(got)} of {len(wanted)} octets, differing at {at}: {got[at:at + 60]!r}, not {wanted[at:at + 60]!r}"


def ordinary(record: dict[str, Any]) -> bool:
    """A host that has forgotten a connection answers a late duplicate with a RST, and that is not at the other's next
    octet."""
    return bool(record["nfqguard"]["reason"] == "rst-sequence")


def carry(case: Case) -> None:
    """Two sessions at once, one in lockstep, one pipelined, through the network of a case."""
    edits = POLICIES[case.policy]
    with lab_of(case) as lab, guarded(lab, edits.policy, edits.extra) as guard:
        server = Server(lab.server)
        with trouble(lab, case) as (lost, cables), ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(converse, lab, ADDRESS[case.family], seed, seed == 20) for seed in (10, 20)]
            sessions = [each.result() for each in waiting]
        server.close()
        counted = stop(guard)[0]
        for seed, session in zip((10, 20), sessions, strict=True):
            wanted, heard = said(seed, edits.header), bytes(server.heard.get(session.port, b""))
            assert digest(heard) == digest(wanted), f"the server read {difference(heard, wanted)}; {session.failure}"
            wanted, heard = answered(seed, edits.greeting, edits.ehlo), session.heard
            assert digest(heard) == digest(wanted), f"the client read {difference(heard, wanted)}; {session.failure}"
        assert [session.failure for session in sessions] + server.failures == [None, None]
        assert [checksum_errors(host) for host in (lab.client, lab.gateway, lab.server)] == [0, 0, 0]
        assert (counted["resets"], [each for each in records(guard, "drop") if not ordinary(each)]) == (0, [])
        assert {name: counted[name] for name in ("edits-skipped", "verdicts-lost", "edits-lost")} == {
            "edits-skipped": 0, "verdicts-lost": 0, "edits-lost": 0}
        assert (counted["commands-masked"], counted["messages"]) == (4, 4)
    ways = [way for cable in cables for way in cable.counted.values()]
    assert [way["overflowed"] + way["refused"] for way in ways] == [0] * len(ways)
    if not case.offloads and case.mtu == 1500:  # else packets are so few that chance may spare them all
        assert bool(sum(map(sum, lost))) == (case.trouble != "chaos")
        assert bool(cables) == any(way["delayed"] and way["duplicated"] for way in ways)
        assert counted["ahead"] + counted["held"] > 0 or case.trouble == "behind"


@pytest.mark.parametrize("case", PAIRWISE, ids=str)
def test_the_applications_read_what_was_said(case: Case) -> None:
    carry(case)


@pytest.mark.long
@pytest.mark.parametrize("case", [case for case in PRODUCT if case not in PAIRWISE], ids=str)
def test_the_applications_read_what_was_said_in_every_network(case: Case) -> None:
    carry(case)


def test_the_pairs_are_covered() -> None:
    covered = set().union(*map(pairs, PAIRWISE))
    wanted = {pair for case in PRODUCT for pair in pairs(case) if {pair[0], pair[2]} != WIDE}
    assert wanted <= covered
    assert {case.policy for case in PAIRWISE} == set(POLICIES)
