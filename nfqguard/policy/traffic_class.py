"""Traffic classes: which connections have another policy than the one in force, or none. `[[classes]]`."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal

from pydantic import Field, StrictBool

from nfqguard.policy.section import Section
from nfqguard.policy.text import OneOrMore

Port = Annotated[int, Field(ge=1, le=65535)]
Address = IPv4Network | IPv6Network
Networks = Annotated[tuple[Address, ...], OneOrMore]
Interfaces = Annotated[tuple[Annotated[str, Field(pattern=r"^[^\s/]{1,15}$")], ...], OneOrMore]



class Network(Section):
    """What lies where, seen from the gateway."""

    inside: Networks = ()
    """Our own networks: what `direction` of a class is measured by."""


class TrafficClass(Section):
    """One class. Every key that is written has to fit; of a list, one entry has to."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,30}$")]
    """For messages; no other class has it."""
    clients: Networks = ()
    """Who opens the connection."""
    servers: Networks = ()
    """Who is connected to, as the packets say where they are inspected."""
    ports: tuple[Port, ...] = ()
    """The server's ports."""
    in_interfaces: Interfaces = ()
    """Where the client's packets come in."""
    out_interfaces: Interfaces = ()
    """Where they go out."""
    direction: Literal["inbound", "outbound"] | None = None
    """inbound: the server is inside and the client is not. outbound: the client is inside and the server is not."""
    policy: str | None = None
    """The policy of these connections."""
    exempt: StrictBool = False
    """These connections are not inspected."""

    def lies_inside(self, inside: Sequence[Address]) -> bool:
        """Can the end that `direction` wants inside be there?"""
        ends = {"inbound": self.servers, "outbound": self.clients, None: ()}[self.direction]
        return not ends or any(one.overlaps(other) for one in ends for other in inside)


Fault = tuple[int, str, str, str]
"""(place in the list, key, what is wrong, remedy)"""
Placed = Sequence[tuple[int, TrafficClass]]
"""(place in the list, class), in order; places of classes that could not be read are left out."""


def faults(classes: Placed, network: Network) -> Iterator[Fault]:
    """What is wrong with classes, but for policies that do not exist."""
    names: set[str] = set()
    for place, one in classes:
        if one.name in names:
            yield place, "name", f"there is a class '{one.name}' already", "give each class a name of its own"
        names.add(one.name)
        if one.exempt and one.policy is not None:
            yield place, "exempt", "a class is exempt or has a policy, not both", "keep one of them"
        if not one.exempt and one.policy is None:
            yield place, "policy", "it is not said what becomes of this class", 'write policy = "..." or exempt = true'
        if one.direction and not network.inside:
            yield (place, "direction", "it is not said which networks are inside",
                   'write [network] and inside = ["192.0.2.0/24"]')


def covered(classes: Placed) -> Iterator[tuple[int, TrafficClass]]:
    """Classes that can never be hit, by place, each with the earlier one that takes all its connections."""
    for index, (place, later) in enumerate(classes):
        earlier = next((one for _, one in classes[:index] if _covers(one, later)), None)
        if earlier is not None:
            yield place, earlier


def same_connections(one: TrafficClass, other: TrafficClass) -> bool:
    """Do both take exactly the same connections?"""
    return _covers(one, other) and _covers(other, one)


def _covers(earlier: TrafficClass, later: TrafficClass) -> bool:
    return (_networks_cover(earlier.clients, later.clients) and _networks_cover(earlier.servers, later.servers) and
            all(not wide or (bool(narrow) and set(narrow) <= set(wide)) for wide, narrow in _lists(earlier, later)) and
            earlier.direction in (None, later.direction))


def _lists(earlier: TrafficClass, later: TrafficClass) -> Iterator[tuple[Sequence[object], Sequence[object]]]:
    yield earlier.ports, later.ports
    yield earlier.in_interfaces, later.in_interfaces
    yield earlier.out_interfaces, later.out_interfaces


def _networks_cover(wide: Sequence[Address], narrow: Sequence[Address]) -> bool:
    return not wide or (bool(narrow) and all(any(_within(one, other) for other in wide) for one in narrow))


def _within(one: Address, other: Address) -> bool:
    if isinstance(one, IPv4Network):
        return isinstance(other, IPv4Network) and one.subnet_of(other)
    return isinstance(other, IPv6Network) and one.subnet_of(other)
