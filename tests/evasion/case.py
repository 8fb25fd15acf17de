"""The words in which an evasion is written down: a case is a row of steps, and a step is data.

Octets of the attacker's stream are named by their offset: 0 is the first octet behind its SYN. A forbidden line and the
decoy that may stand in its place have the same length, so that either can be sent for the same sequence numbers.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FORBIDDEN = b"EXPN root\r\n"
"""What must never be read by the server's application as a command."""
DECOY = b"NOOP root\r\n"
"""A permitted line of the same length."""
VERB = b"EXPN"

MSS = b"\x02\x04\x05\xb4"
Checksum = Literal["right", "wrong", "zero", "pseudo", "inside"]
"""right: as RFC 9293 has it; wrong: one bit off; zero: not filled in; pseudo: the pseudo-header's alone, as a sender
leaves it to its network card; inside: right for the server's address behind the translation."""
Version = Literal[4, 6]
BOTH: tuple[Version, ...] = (4, 6)


@dataclass(frozen=True)
class Put:
    """A segment.

    at          offset of its first octet; -1 is the SYN's place
    ack         added to the right acknowledgement number
    options     TCP options, padded with end-of-list to a multiple of four
    timestamp   TSval (RFC 7323), echoing the server's; None: none, unless the case uses timestamps
    offset      the data offset field in place of the right one
    hops        TTL or hop limit; 2 is spent before a host behind the server's link would be reached
    broken_ip   IPv4 header checksum one off
    trailer     octets behind the end of the IP packet
    extension   IPv6 extension headers in front of TCP, each (its own number, its octets without the next-header octet)
    flawed_length  added to IPv6's payload length or IPv4's total length
    """

    payload: bytes = b""
    at: int = 0
    flags: str = "PA"
    ack: int = 0
    window: int = 65000
    options: bytes = b""
    timestamp: int | None = None
    urgent: int = 0
    offset: int | None = None
    checksum: Checksum = "right"
    hops: int = 64
    ip_options: bytes = b""
    broken_ip: bool = False
    trailer: bytes = b""
    extension: tuple[tuple[int, bytes], ...] = ()
    flawed_length: int = 0


@dataclass(frozen=True)
class Piece:
    """A fragment: octets start to end of the IP payload (TCP header included); end None is its end.

    decoy  the octets are the decoy's; more: MF in place of what is true; hops as in Put
    """

    start: int
    end: int | None = None
    decoy: bool = False
    more: bool | None = None
    hops: int = 64


@dataclass(frozen=True)
class Fragments:
    """A segment in fragments, sent in this order. `decoy` replaces the payload where a piece says so.

    extension  IPv6: in the fragmentable part, in front of TCP
    """

    pieces: tuple[Piece, ...]
    payload: bytes = FORBIDDEN
    decoy: bytes = DECOY
    at: int = 0
    extension: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True)
class Forge:
    """A segment from the attacker's link with the server's address, to the attacker's own connection.

    as_public  the address that the outside knows, else the server's own
    at         offset into the server's stream from what the attacker has received
    ack        offset into the attacker's stream
    """

    payload: bytes = b""
    flags: str = "PA"
    at: int = 0
    ack: int = 0
    window: int = 65000
    as_public: bool = False


@dataclass(frozen=True)
class Harm:
    """A segment against the neighbour's connection, forged by somebody who listens on its link.

    speaks  for whom: with the client's address to the server, or with the server's address to the client
    at, ack  added to the place where the speaker stands, and to what it has acknowledged
    """

    speaks: Literal["client", "server"]
    flags: str
    at: int = 0
    ack: int = 0
    payload: bytes = b""
    checksum: Checksum = "right"


@dataclass(frozen=True)
class Answer:
    """Wait for the SYN-ACK."""


@dataclass(frozen=True)
class Hear:
    """Wait until the server's reply number `count` (from 1, the greeting) is complete, or until it is clear that it
    does not come: an inspector may have ended the attempt, and the attacker goes on."""

    count: int


@dataclass(frozen=True)
class Pause:
    """Let seconds pass."""

    seconds: float = 0.1


@dataclass(frozen=True)
class Restart:
    """Begin a new connection with the same ports; the initial sequence number moves on by `step`."""

    step: int = 100_000


Step = Put | Fragments | Forge | Harm | Answer | Hear | Pause | Restart

SYN = Put(at=-1, flags="S", options=MSS)
HANDSHAKE: tuple[Step, ...] = (SYN, Answer(), Put(flags="A"))
OPENING: tuple[Step, ...] = (*HANDSHAKE, Hear(1))


@dataclass(frozen=True)
class Case:
    """An attempt to bring FORBIDDEN to the server.

    name        within the family, kebab-case
    steps       what the attacker does
    harmless    why it cannot succeed against a Linux server even without an inspector; "" where it does succeed
    opening     what comes before; ends with the greeting read
    versions    of IP
    isn         the attacker's initial sequence number; None: any
    timestamps  RFC 7323 timestamps on every segment
    port        the attacker's; None: one of its own. No two cases may have the same
    harms       without an inspector the neighbour's session is damaged
    """

    name: str
    steps: tuple[Step, ...]
    harmless: str = ""
    opening: tuple[Step, ...] = OPENING
    versions: tuple[Version, ...] = BOTH
    isn: int | None = None
    timestamps: bool = False
    port: int | None = None
    harms: bool = False

    @property
    def effective(self) -> bool:
        """Whether the verb arrives where nobody inspects."""
        return not self.harmless


def decoy_first(name: str, harmless: str = "", versions: tuple[Version, ...] = BOTH, payload: bytes = DECOY,
                **how: object) -> Case:
    """The commonest attempt: a decoy that the server will not take, then the forbidden line in its place."""
    return Case(name, (Put(payload, **how), Put(FORBIDDEN)), harmless, versions=versions)  # type: ignore[arg-type]


def straight(name: str, harmless: str = "", versions: tuple[Version, ...] = BOTH, **how: object) -> Case:
    """The forbidden line itself, in an odd segment."""
    return Case(name, (Put(FORBIDDEN, **how),), harmless, versions=versions)  # type: ignore[arg-type]


def in_body(*steps: Step) -> tuple[Step, ...]:
    """Steps whose offsets count from the first octet of message data, behind the server's 354."""
    return (Put(ENVELOPE[0]), Hear(2), Put(ENVELOPE[1], at=len(ENVELOPE[0])), Hear(3),
            Put(ENVELOPE[2], at=len(ENVELOPE[0] + ENVELOPE[1])), Hear(4), *steps)


ENVELOPE = (b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n", b"DATA\r\n")
BODY_AT = sum(map(len, ENVELOPE))
