"""Which packets of a capture the deployment would bring to the queue; the others never meet the engine."""
from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address

from nfqguard.policy.model import Deployment

TCP, FRAGMENT, AUTHENTICATION = 6, 44, 51
EXTENSIONS = frozenset({0, 43, 60, 135, 139, 140, FRAGMENT, AUTHENTICATION})
"""IPv6 extension headers that can be walked (RFC 8200, 4; RFC 4302 for the authentication header's length)."""
EXTENSIONS_MAX = 8
FRAGMENTED_MAX = 4096
"""Fragmented datagrams remembered at a time."""


@dataclass(frozen=True, slots=True)
class Datagram:
    """An IP datagram that carries TCP, or a fragment of one.

    source, destination  addresses in network order
    length               octets from the IP header on, as the header says
    ports                (source, destination); None where they lie in another fragment or were cut off
    fragment             names the datagram that this is a piece of; None for a whole one
    first                whether this piece holds the TCP header
    """

    source: bytes
    destination: bytes
    length: int
    ports: tuple[int, int] | None
    fragment: bytes | None
    first: bool


def datagram(data: bytes) -> Datagram | None:
    """The datagram whose IP header `data` begins with; None for what is no TCP over IPv4 or IPv6."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        return _ipv4(data)
    return _ipv6(data) if version == 6 and len(data) >= 40 else None


def _ipv4(data: bytes) -> Datagram | None:
    header = (data[0] & 0x0F) * 4
    if data[9] != TCP or header < 20:
        return None
    place = int.from_bytes(data[6:8])
    offset, more = place & 0x1FFF, place & 0x2000
    return Datagram(data[12:16], data[16:20], int.from_bytes(data[2:4]), _ports(data, header) if offset == 0 else None,
                    data[4:6] + data[12:20] if offset or more else None, offset == 0)


def _ipv6(data: bytes) -> Datagram | None:
    following, at, fragment, offset = data[6], 40, None, 0
    for _ in range(EXTENSIONS_MAX):
        if following not in EXTENSIONS or at + 8 > len(data) or offset:
            break
        if following == FRAGMENT:
            place = int.from_bytes(data[at + 2:at + 4])
            offset = place >> 3
            fragment = data[at + 4:at + 8] + data[8:40] if place & 0xFFF9 else None
            size = 8
        else:
            size = (data[at + 1] + 2) * 4 if following == AUTHENTICATION else (data[at + 1] + 1) * 8
        following, at = data[at], at + size
    if following != TCP:
        return None
    return Datagram(data[8:24], data[24:40], 40 + int.from_bytes(data[4:6]), _ports(data, at) if offset == 0 else None,
                    fragment, offset == 0)


def _ports(data: bytes, at: int) -> tuple[int, int] | None:
    if at + 4 > len(data):
        return None
    return int.from_bytes(data[at:at + 2]), int.from_bytes(data[at + 2:at + 4])


class Diversion:
    """The deployment's choice: TCP from or to its ports, unless an end is exempt.

    The kernel joins fragments before it chooses. Nobody joins them here, so every piece of a datagram whose first piece
    is chosen is chosen, too, and so is what was cut off before its ports: it cannot be told, and is not let through.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._ports = frozenset(deployment.ports)
        self._exempt: tuple[IPv4Network | IPv6Network, ...] = deployment.exempt
        self._fragmented: OrderedDict[bytes, None] = OrderedDict()

    def chooses(self, found: Datagram) -> bool:
        """Whether the queue would get this datagram."""
        if found.fragment is not None and not found.first:
            return found.fragment in self._fragmented
        chosen = found.ports is None or not self._ports.isdisjoint(found.ports)
        chosen = chosen and not self._is_exempt(found.source) and not self._is_exempt(found.destination)
        if found.fragment is not None:
            self._remember(found.fragment, chosen)
        return chosen

    def _remember(self, fragment: bytes, chosen: bool) -> None:
        """What the other pieces of this datagram are to share. The identification comes round: the last one counts."""
        self._fragmented.pop(fragment, None)
        if chosen:
            self._fragmented[fragment] = None
            if len(self._fragmented) > FRAGMENTED_MAX:
                self._fragmented.popitem(last=False)

    def _is_exempt(self, address: bytes) -> bool:
        return any(ip_address(address) in network for network in self._exempt)
