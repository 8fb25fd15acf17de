"""The configuration as pydantic models: names, types, ranges and defaults, and nothing that reads a file.

Keys are written with hyphens in TOML (`max-data`) and with underscores in Python (`max_data`).
"""
from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, Self

from pydantic import Field, StrictBool, StrictInt, model_validator

from nfqguard.policy.match import Match
from nfqguard.policy.section import Section, hyphenate
from nfqguard.policy.text import OneLine, OneOrMore, Reply, Words
from nfqguard.policy.traffic_class import Network, Port, TrafficClass

__all__ = [
    "POLICY_NAME", "Answer", "Deployment", "Document", "Engine", "Events", "Exceptions", "Kind", "Network", "Policy",
    "hyphenate",
]

Absent = Literal["drop", "accept"]


class Deployment(Section):
    """How packets are brought to us: the steps in Netfilter."""

    hook: Literal["forward", "host"] = "forward"
    """forward: mangle FORWARD of a gateway. host: mangle INPUT and OUTPUT of a mail host."""
    ports: tuple[Port, ...] = (25,)
    queue_first: Annotated[int, Field(ge=0, le=65535)] = 0
    queue_count: Annotated[int, Field(ge=1, le=15)] = 1
    connmark_mask: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] = 0xF000000
    """The bits of the connmark that are ours; one run of adjacent bits that can count to queue-count."""
    own_mark: Annotated[int, Field(ge=1, le=0xFFFFFFFE)] = 0x6E660001
    """The packet mark of what we send ourselves; exempt where our own packets would be queued. The next number is ours,
    too: see untracked_mark."""
    offload_mark: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] = 0x10000000
    """Bits of the packet mark by which the engine hands a connection over to the kernel; ours on diverted ports. The
    connmark keeps it as the highest value of connmark-mask, so that one stands for no queue. 0: every packet of every
    connection comes to us."""
    on_absent: Absent = "drop"
    """No process is bound to the queue: drop, or accept uninspected."""
    on_overload: Absent = "drop"
    """The queue is full: drop, or accept uninspected."""
    exempt: tuple[IPv4Network | IPv6Network, ...] = ()
    """Hosts or networks whose mail is not inspected, whichever end they are."""
    chain: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,23}$")] = "NFQGUARD"

    @property
    def untracked_mark(self) -> int:
        """The packet mark of what we send ourselves and connection tracking must leave alone: own-mark + 1."""
        return self.own_mark + 1

    @model_validator(mode="after")
    def _numbers_fit(self) -> Self:
        if self.queue_first + self.queue_count > 65536:
            raise ValueError(
                f"queue-first {self.queue_first} and queue-count {self.queue_count} pass the last queue, 65535: "
                "lower one of them")
        shift = (self.connmark_mask & -self.connmark_mask).bit_length() - 1
        values = self.connmark_mask >> shift
        if values & (values + 1):
            raise ValueError(
                f"connmark-mask {self.connmark_mask:#x} has a hole between its bits: "
                "give one run of adjacent bits, such as 0xf000000")
        if values < self.queue_count:
            raise ValueError(
                f"connmark-mask {self.connmark_mask:#x} counts to {values}, too small for queue-count "
                f"{self.queue_count}: give it more bits or use fewer queues")
        if self.offload_mark and values == self.queue_count:
            raise ValueError(
                f"connmark-mask {self.connmark_mask:#x} counts to {values}, and its highest value stands for "
                f"connections that the kernel has taken over, so queue-count {self.queue_count} is one too many: give "
                "the mask one more bit, use fewer queues, or write offload-mark = 0")
        return self

    @model_validator(mode="after")
    def _marks_differ(self) -> Self:
        for mark in (self.own_mark, self.untracked_mark):
            if self.offload_mark and mark & self.offload_mark == self.offload_mark:
                raise ValueError(
                    f"offload-mark {self.offload_mark:#x} lies within {mark:#x}, the mark of packets that nfqguard "
                    "sends itself (own-mark and the next number): choose bits that are not all set there")
        return self


Kind = Literal["smtp", "esmtp"]
Answer = Literal["drop", "reset", "pass"]
POLICY_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,30}$"
"""What a policy may be called: it appears in every event, and the engine keeps 31 octets of it."""



class Exceptions(Section):
    """What is done where the inspection cannot tell. Closed by default."""

    midstream: Answer = "drop"
    """A segment of a connection whose opening was not seen."""
    gap: Answer = "drop"
    """Octets that never came."""
    memory: Answer = "drop"
    """A bound was reached."""
    unparsable: Answer = "drop"
    """The protocol cannot be followed."""
    truncated: Answer = "drop"
    """A packet that came incomplete."""


class Policy(Section):
    """One inspection: what client and server may say. A key that is not written is inherited from `extends`."""

    extends: Annotated[tuple[str, ...], OneOrMore] = ()
    """Presets or policies of the same configuration; of several, the later ones win."""
    inspect: Annotated[tuple[Kind, ...], OneOrMore] = ()
    """smtp or esmtp: IOS's two inspections. Both at once is an error that loading reports."""
    verbs: Words = ()
    """What a client may say."""
    mask_verbs: StrictBool = True
    """A command with another verb becomes X."""
    ehlo_keywords: Words = ()
    """What a server may offer in its reply to EHLO."""
    mask_ehlo: StrictBool = False
    """Another keyword, with its arguments, becomes X."""
    remove_ehlo: StrictBool = False
    """With mask-ehlo: the lines of other keywords are taken out of the reply. One that comes in pieces becomes X."""
    mask_banner: Literal["none", "asa", "modern", "text"] = "none"
    """asa: in the greeting all but `2`, `0`, the code's separator and the blank after it becomes `*`. modern: the code,
    the host's name and the word ESMTP stay. text: the greeting's text becomes that of banner-text."""
    banner_text: OneLine = ""
    """What the greeting says instead, without its code."""
    insert_header: OneLine = ""
    """A header line that is put before each message, such as "X-Gateway: mail.example.net"."""
    refusal: Reply = ""
    """The reply that a client reads when its session is ended, such as "554 5.7.1 Refused by policy". Empty: both
    ends are reset without a word."""
    max_data: Annotated[StrictInt, Field(ge=0, le=2**63 - 1)] = 0
    """Octets of message data in one session; beyond it the session is closed. 0: no limit."""
    timeout: Annotated[StrictInt, Field(ge=0, le=604800)] = 0
    """Seconds of silence after which a session is forgotten. 0: as idle of [engine] says."""
    alert: StrictBool = True
    """Edits and matches are told. false: they are counted only; the ends of sessions are told always."""
    audit_trail: StrictBool = False
    """The beginning of a session is told, too."""
    dry_run: StrictBool = False
    """Tell what would be done, and change nothing."""
    offload_tls: StrictBool = True
    """Once TLS has begun the kernel may take the connection over: nothing can be inspected any more."""
    exceptions: Exceptions = Exceptions()
    matches: tuple[Match, ...] = ()
    """What is looked for beside the words above, in order."""


class Engine(Section):
    """The bounds of one engine (one queue). Defaults are those of csrc/nq.h; all memory is taken at the start."""

    flows: Annotated[StrictInt, Field(ge=16, le=1 << 24)] = 65536
    large_blocks: Annotated[StrictInt, Field(ge=8, le=1 << 18)] = 1024
    """For packets of up to 64 KiB; 66 KiB each."""
    small_blocks: Annotated[StrictInt, Field(ge=8, le=1 << 22)] = 16384
    """2 KiB each."""
    extents: Annotated[StrictInt, Field(ge=8, le=1 << 22)] = 32768
    """Runs of stored octets, all flows together."""
    held: Annotated[StrictInt, Field(ge=1, le=1 << 20)] = 4096
    """Packets held, all flows together."""
    held_per_flow: Annotated[StrictInt, Field(ge=1, le=1000)] = 256
    """Packets held, one direction of one flow."""
    store_per_stream: Annotated[StrictInt, Field(ge=1 << 16, le=1 << 30)] = 16 << 20
    """Octets stored, one direction of one flow; at least the largest window that a host advertises."""
    events: Annotated[StrictInt, Field(ge=16, le=1 << 20)] = 8192
    """Slots of the event ring."""
    synwait: Annotated[StrictInt, Field(ge=1, le=3600)] = 30
    """Seconds until a half-open connection is forgotten."""
    finwait: Annotated[StrictInt, Field(ge=1, le=3600)] = 5
    """Seconds that a closed connection is kept."""
    idle: Annotated[StrictInt, Field(ge=1, le=604800)] = 3600
    """Seconds of silence after which a connection is forgotten."""
    tombstone: Annotated[StrictInt, Field(ge=1, le=3600)] = 120
    """Seconds that a dropped connection is remembered."""
    binding: Literal["strict", "off"] = "strict"
    """strict: each direction of a connection stays on the interfaces of its opening. off: multipath routing."""

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.events & (self.events - 1):
            near = 1 << (self.events.bit_length() - 1)
            raise ValueError(f"events {self.events} is no power of two: write {near} or {near * 2}")
        if self.held_per_flow > self.held:
            raise ValueError(f"held-per-flow {self.held_per_flow} is above held {self.held}: raise held")
        return self


class Events(Section):
    """Where the record of what was done goes."""

    file: Annotated[str, Field(min_length=1)] = "/var/log/nfqguard/eve.json"
    """EVE JSON lines; `-` is standard output."""


class Document(Section):
    """A whole configuration as written, its files merged."""

    policy: str | None = None
    """The name of the policy in force."""
    policies: dict[Annotated[str, Field(pattern=POLICY_NAME)], Policy] = Field(default_factory=dict)
    network: Network = Network()
    classes: tuple[TrafficClass, ...] = ()
    """The first one that fits a connection decides; where none fits, the policy in force."""
    deployment: Deployment = Deployment()
    engine: Engine = Engine()
    events: Events = Events()
