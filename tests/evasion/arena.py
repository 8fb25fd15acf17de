"""All cases at once in one lab, each with a neighbour beside it, and what came of them."""
from __future__ import annotations

import asyncio
from dataclasses import dataclass

from evasion import neighbour
from evasion.attacker import Attacker, Victim
from evasion.case import VERB, Case, Version
from evasion.link import ADDRESSES, Link
from evasion.neighbour import Neighbour
from evasion.packet import Ends
from evasion.server import Server
from nfqguard.lab.topology import Lab

AT_ONCE = 64
SETTLE = 0.5
"""Seconds for what a kernel or the inspector still holds."""
FAST_OPEN = 0x1 | 0x2 | 0x200
"""Client, server, and data in a SYN believed without a cookie: the worst that an operator may have set (ip-sysctl)."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case under one version of IP.

    commands   what the server's application has read, by connection
    neighbour  what went wrong with the session beside it; "" where nothing did
    """

    opened: bool
    commands: tuple[tuple[bytes, ...], ...]
    through: bool
    neighbour: str


Outcomes = dict[tuple[str, Version], Outcome]


def prepare(lab: Lab) -> None:
    """Make the server what an attacker wishes for: data in SYN is believed, and a hop lies in front of it that spends a
    small TTL (without the ICMP that a router would send)."""
    lab.server.sysctl("net/ipv4/tcp_fastopen", FAST_OPEN)
    # A packet from the wrong side makes the gateway tell the server of a better way, before any chain of FORWARD; a
    # server that believes it loses its clients. IPv6 has no sysctl against the telling (ip6_output.c).
    lab.server.sysctl(f"net/ipv6/conf/{lab.server.device}/accept_redirects", 0)
    for program, match in (("iptables", ("ttl", "--ttl-lt")), ("ip6tables", ("hl", "--hl-lt"))):
        lab.server.run([program, "-w", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "-m", match[0], match[1], "2",
                        "-j", "DROP"])


def run(lab: Lab, cases: dict[str, Case], first_port: int) -> Outcomes:
    """Try every case under every IP version that it is for; ports count from first_port."""
    return asyncio.run(_Arena(lab, cases, first_port).run())


class _Arena:
    def __init__(self, lab: Lab, cases: dict[str, Case], first_port: int) -> None:
        self._lab = lab
        self._tries = [(name, case, version) for name, case in cases.items() for version in case.versions]
        self._first_port = first_port

    async def run(self) -> Outcomes:
        self._link, self._server = Link(self._lab), Server(self._lab.server)
        self._room = asyncio.Semaphore(AT_ONCE)
        try:
            self._link.start()
            await self._server.start()
            ports = [case.port or port for port, (_, case, _) in enumerate(self._tries, self._first_port)]
            ends = await asyncio.gather(*(
                self._try(case, version, port) for (_, case, version), port in zip(self._tries, ports, strict=True)))
            await asyncio.sleep(SETTLE)
            return {(name, version): self._outcome(port, version, *end) for (name, _, version), port, end
                    in zip(self._tries, ports, ends, strict=True)}
        finally:
            self._link.close()
            self._server.close()

    def _ends(self, source: str, port: int) -> Ends:
        version6 = ":" in source
        outside = self._lab.public_ipv6 if version6 else self._lab.public_ipv4
        inside = self._lab.server.ipv6 if version6 else self._lab.server.ipv4
        return Ends(source, outside, inside, port, 25)

    async def _try(self, case: Case, version: Version, port: int) -> tuple[bool, str]:
        async with self._room:
            own = self._lab.client.ipv6 if version == 6 else self._lab.client.ipv4
            ends = self._ends(ADDRESSES[version], port)
            beside = Neighbour(self._lab.client, ends.destination)
            with beside.socket:
                beside.socket.bind((own, 0))
                victim = Victim(self._link, self._ends(own, beside.port))
                attacker = Attacker(self._link, case, ends, victim)
                wrong = await beside.begin() or await beside.speak(neighbour.BEFORE)
                await attacker.attack()
                await asyncio.sleep(SETTLE)
                wrong = wrong or await beside.speak(neighbour.BEHIND) or self._read_by_server(own, beside.port)
            attacker.leave()
            return attacker.opened, wrong

    def _read_by_server(self, address: str, port: int) -> str:
        """What the server has read from the neighbour must be what the neighbour has said."""
        found = self._server.of(address, port)[-1]
        if found.commands != neighbour.COMMANDS or found.messages != [neighbour.BODY]:
            return f"the server has read {found.commands} and {found.messages}"
        return ""

    def _outcome(self, port: int, version: Version, opened: bool, wrong: str) -> Outcome:
        talks = self._server.of(ADDRESSES[version], port)
        return Outcome(opened, tuple(tuple(talk.commands) for talk in talks), any(VERB in talk.verbs for talk in talks),
                       wrong)
