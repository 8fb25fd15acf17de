"""What the engine tells: one event, as a value. The engine makes them, reports write them; neither knows the other."""
from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address


class EventType(IntEnum):
    """What an event tells; the numbers of enum nq_event_type in csrc/engine.h."""

    FLOW = 1
    MASK_COMMAND = 2
    MASK_KEYWORD = 3
    MASK_BANNER = 4
    RESET = 5
    DROP = 6
    TRANSITION = 7
    REMOVE_KEYWORD = 8
    REPLACE_BANNER = 9
    INSERT_HEADER = 10
    REJECT = 11
    MATCH = 12
    ANSWER = 13
    START = 14


class Doing(IntEnum):
    """What a rule does; the numbers of enum nq_do in csrc/engine.h."""

    LOG = 0
    ALLOW = 1
    MASK = 2
    REPLACE = 3
    REMOVE = 4
    DROP_CONNECTION = 5
    RESET = 6
    REJECT = 7
    RATE_LIMIT = 8


@dataclass(frozen=True, slots=True)
class RuleHit:
    """The rule that an event is about.

    name    as the policy calls it
    place   its place in the policy's list, from 1
    match   what it looks at: a name of csrc/matches.def
    action  what it does
    value   what was measured, where it measures
    bound   the bound that was passed; of `size exceeded` the declared size
    """

    name: str
    place: int
    match: str
    action: Doing
    value: int
    bound: int


@dataclass(frozen=True, slots=True)
class Event:
    """What happened, to whom, and why; the fields of struct nq_event.

    Times are nanoseconds since the Unix epoch by the caller's clock; `packets` and `octets` count by direction, first
    from the client, then from the server, and are filled for `EventType.FLOW` only; `direction` is 0 for what the
    client sent and 1 for what the server sent; `reason` is None where there is none; `text` holds the line's first
    octets as they came.
    """

    type: EventType
    time: int
    flow: int
    started: int
    client: IPv4Address | IPv6Address
    client_port: int
    server: IPv4Address | IPv6Address
    server_port: int
    direction: int
    policy: str
    reason: str | None
    line: int
    offset: int
    length: int
    text: bytes
    packets: tuple[int, int]
    octets: tuple[int, int]
    after: bytes = b""
    rule: RuleHit | None = None
    dry_run: bool = False
    code: int = 0
