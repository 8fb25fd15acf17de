"""A class as the engine takes it: lists of what a connection's opening must show, free of TOML and of `direction`."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

AnyNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True)
class ClassSpec:
    """A class for the engine; mirrors struct nq_class_spec in csrc/engine.h. An empty list asks for nothing.

    policy           the name of a policy; None: exempt
    clients          who opens the connection lies in one of these
    clients_except   and in none of these
    servers, servers_except   likewise who is connected to
    ports            the server's
    in_interfaces    where the opening comes in, by name
    out_interfaces   where it goes out
    """

    name: str
    policy: str | None = None
    clients: tuple[AnyNetwork, ...] = ()
    clients_except: tuple[AnyNetwork, ...] = ()
    servers: tuple[AnyNetwork, ...] = ()
    servers_except: tuple[AnyNetwork, ...] = ()
    ports: tuple[int, ...] = ()
    in_interfaces: tuple[str, ...] = ()
    out_interfaces: tuple[str, ...] = ()

    @property
    def interfaces(self) -> tuple[str, ...]:
        """Every interface that it names."""
        return self.in_interfaces + self.out_interfaces


def common(some: Iterable[AnyNetwork], others: Iterable[AnyNetwork]) -> tuple[AnyNetwork, ...]:
    """What lies in one of `some` and in one of `others`: of two networks that meet, one lies in the other."""
    return tuple(dict.fromkeys(smaller for one in some for other in others if (smaller := _smaller(one, other))))


def _smaller(one: AnyNetwork, other: AnyNetwork) -> AnyNetwork | None:
    if not one.overlaps(other):
        return None
    return one if one.prefixlen >= other.prefixlen else other
