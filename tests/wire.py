"""A wire for tests: two simple TCP ends with the real engine between them, and dialogues written as they are spoken.

The ends check every packet that reaches them (lengths, checksums, sequence) and keep what an application would read.
"""
from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from nfqguard.engine import Engine, OutputKind, PacketFlag, Policy, Settings, Verdict
from nfqguard.policy.compile import PolicySpec, compile_policy
from nfqguard.policy.load import load_preset
from nfqguard.report.event import Event

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
SECOND = 1_000_000_000
CLIENT, SERVER = 0, 1
SIDES = ("client", "server")
ADDRESSES = {4: ("192.0.2.10", "198.51.100.25"), 6: ("2001:db8::10", "2001:db8:1::25")}
PORTS = (40000, 25)
LINKS = ((11, 22), (22, 11))


def folded(data: bytes) -> int:
    """The one's complement sum of RFC 1071 in network order, folded to 16 bits."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass(frozen=True)
class Segment:
    """A TCP segment with its addresses; `build` makes the packet, `parse` takes one apart and checks it."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    window: int = 65000
    payload: bytes = b""
    options: bytes = b""
    urgent: int = 0

    def build(self) -> bytes:
        """The packet from the IP header on, checksums complete."""
        family = socket.AF_INET6 if ":" in self.source else socket.AF_INET
        source, destination = (socket.inet_pton(family, text) for text in (self.source, self.destination))
        options = self.options + b"\0" * (-len(self.options) % 4)
        offset = (20 + len(options)) // 4 << 4
        tcp = struct.pack("!HHIIBBHHH", self.source_port, self.destination_port, self.seq & 0xFFFFFFFF,
                          self.ack & 0xFFFFFFFF, offset, self.flags, self.window, 0, self.urgent)
        tcp += options + self.payload
        pseudo = source + destination + struct.pack("!II", len(tcp), 6)
        tcp = tcp[:16] + struct.pack("!H", folded(pseudo + tcp) ^ 0xFFFF) + tcp[18:]
        if family == socket.AF_INET6:
            return struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + source + destination + tcp
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0x4000, 64, 6, 0) + source + destination
        return header[:10] + struct.pack("!H", folded(header) ^ 0xFFFF) + header[12:] + tcp

    @classmethod
    def parse(cls, packet: bytes) -> Segment:
        """Raises AssertionError where a length or a checksum is wrong."""
        if packet[0] >> 4 == 6:
            family, header, ends = socket.AF_INET6, 40, (8, 24, 40)
            assert len(packet) == 40 + struct.unpack("!H", packet[4:6])[0], "IPv6 payload length"
        else:
            family, header, ends = socket.AF_INET, (packet[0] & 15) * 4, (12, 16, 20)
            assert len(packet) == struct.unpack("!H", packet[2:4])[0], "IPv4 total length"
            assert folded(packet[:header]) == 0xFFFF, "IPv4 header checksum"
        source, destination = packet[ends[0]:ends[1]], packet[ends[1]:ends[2]]
        tcp = packet[header:]
        assert folded(source + destination + struct.pack("!II", len(tcp), 6) + tcp) == 0xFFFF, "TCP checksum"
        *ports, seq, ack, offset, flags, window, _, urgent = struct.unpack("!HHIIBBHHH", tcp[:20])
        start = (offset >> 4) * 4
        return cls(socket.inet_ntop(family, source), socket.inet_ntop(family, destination), *ports, seq, ack, flags,
                   window, tcp[start:], tcp[20:start], urgent)


@dataclass
class End:
    """One end of the connection: what it has sent, what its application has read."""

    address: str
    port: int
    isn: int
    sent: int = 0
    heard: bytearray = field(default_factory=bytearray)
    peer_isn: int = 0
    reset: bool = False
    finished: bool = False
    segments: list[Segment] = field(default_factory=list)

    def take(self, segment: Segment) -> bool:
        """A segment has arrived. Returns whether it must be acknowledged."""
        self.segments.append(segment)
        if segment.flags & RST:
            self.reset = True
            return False
        if segment.flags & SYN:
            if not self.peer_isn:
                self.peer_isn = segment.seq
            return False
        at = (segment.seq - self.peer_isn - 1) & 0xFFFFFFFF
        if at >= 1 << 31:
            at -= 1 << 32
        if segment.payload and at <= len(self.heard):
            self.heard += segment.payload[max(len(self.heard) - at, 0):]
        if segment.flags & FIN and at + len(segment.payload) == len(self.heard):
            self.finished = True
        return bool(segment.payload or segment.flags & FIN)

    @property
    def rcv_nxt(self) -> int:
        """What this end acknowledges."""
        return self.peer_isn + 1 + len(self.heard) + self.finished


class Wire:
    """A connection through the engine. `say` sends octets in one segment or as cut; both ends acknowledge at once."""

    def __init__(self, policy: str | Policy = "ios-esmtp", family: int = 4, isn: tuple[int, int] = (1000, 9000),
                 **settings: int) -> None:
        self.policy = policy if isinstance(policy, Policy) else preset(policy)
        self.engine = Engine(Settings.default(**{"hash_key": bytes(16), **SMALL, **settings}), self.policy)
        self.ends = tuple(End(ADDRESSES[family][side], PORTS[side], isn[side]) for side in (CLIENT, SERVER))
        self.now = 1_700_000_000 * SECOND
        self.serial = 0
        self.events: list[Event] = []
        self.dropped: list[int] = []
        self.decided: set[int] = set()
        self.senders: dict[int, bytes] = {}
        self.acknowledge = True

    def open(self) -> Wire:
        """The handshake."""
        client, server = self.ends
        mss = b"\x02\x04\x05\xb4"
        self.send(self.segment(CLIENT, seq=client.isn, ack=0, flags=SYN, options=mss))
        self.send(self.segment(SERVER, seq=server.isn, ack=client.isn + 1, flags=SYN | ACK, options=mss))
        self.send(self.segment(CLIENT))
        return self

    def segment(self, side: int, payload: bytes = b"", **fields: int | bytes) -> Segment:
        """The next segment of `side`; any field may be given another value."""
        own, peer = self.ends[side], self.ends[1 - side]
        values: dict[str, int | bytes] = {
            "seq": own.isn + 1 + own.sent, "ack": own.rcv_nxt, "flags": ACK | (PSH if payload else 0), **fields}
        return Segment(own.address, peer.address, own.port, peer.port, payload=payload, **values)  # type: ignore[arg-type]

    def send(self, segment: Segment, links: tuple[int, int] | None = None, flags: PacketFlag = PacketFlag.NONE) -> int:
        """Put a segment on the wire as it is; returns its packet id. Interfaces follow the source address."""
        side = CLIENT if segment.source == self.ends[CLIENT].address else SERVER
        return self.send_packet(segment.build(), links or LINKS[side], flags)

    def send_packet(self, packet: bytes, links: tuple[int, int], flags: PacketFlag = PacketFlag.NONE) -> int:
        """Put a packet on the wire, whatever it is."""
        self.serial += 1
        self.senders[self.serial] = packet
        self.now += 1000
        outputs = self.engine.packet(packet, self.now, self.serial, *links, flags)
        self._deliver(outputs)
        return self.serial

    def tick(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * SECOND)
        self._deliver(self.engine.tick(self.now))

    def drain(self) -> None:
        """End the engine's work."""
        self._deliver(self.engine.drain(self.now))

    def _deliver(self, outputs: Iterable) -> None:
        arrived = []
        for output in outputs:
            if output.kind is OutputKind.DECISION:
                assert output.id not in self.decided, "two verdicts on one packet"
                self.decided.add(output.id)
                if output.verdict is Verdict.DROP:
                    self.dropped.append(output.id)
                    continue
            arrived.append(Segment.parse(output.data or self.senders[output.id]))
        while events := self.engine.events():
            self.events += events
        for segment in arrived:
            side = CLIENT if segment.destination == self.ends[CLIENT].address else SERVER
            if self.ends[side].take(segment) and self.acknowledge:
                self.send(self.segment(side))

    def say(self, side: int, octets: bytes, cuts: Sequence[int] = ()) -> None:
        """Send octets, in segments that end at each of `cuts` (offsets, ascending) and at the end."""
        start = 0
        for end in [*cuts, len(octets)]:
            if end > start:
                self.send(self.segment(side, octets[start:end]))
                self.ends[side].sent += end - start
                start = end

    def close(self) -> None:
        """FIN from the client, then from the server."""
        for side in (CLIENT, SERVER):
            self.send(self.segment(side, flags=FIN | ACK))
            self.ends[side].sent += 1
        self.send(self.segment(CLIENT))

    @property
    def at_server(self) -> bytes:
        """What the server's application has read."""
        return bytes(self.ends[SERVER].heard)

    @property
    def at_client(self) -> bytes:
        """What the client's application has read."""
        return bytes(self.ends[CLIENT].heard)

    def counter(self, name: str) -> int:
        """One of the engine's counters."""
        return self.engine.counters()[name]


SMALL = {"flows": 64, "large_blocks": 16, "small_blocks": 64, "extents": 256, "held": 64, "held_per_flow": 32,
         "events": 1024}
"""Sizes that a test needs; the defaults would take 100 MB for each engine."""

_presets: dict[str, Policy] = {}


def preset(name: str) -> Policy:
    """A shipped policy, compiled once."""
    if name not in _presets:
        _presets[name] = Policy(preset_spec(name))
    return _presets[name]


def preset_spec(name: str, **changes: object) -> PolicySpec:
    """A shipped policy as flat tables, with some fields changed."""
    configuration = load_preset(name)
    return replace(compile_policy(name, configuration.policies[name]), **changes)  # type: ignore[arg-type]


Dialogue = Sequence[tuple[int, bytes]]


def play(dialogue: Dialogue, policy: str | Policy, cuts: dict[int, Sequence[int]] | None = None, step: int = 0,
         family: int = 4) -> Wire:
    """Speak a dialogue: entries in turn, entry i cut at cuts[i], or every entry cut each `step` octets."""
    wire = Wire(policy, family).open()
    for index, (side, octets) in enumerate(dialogue):
        wire.say(side, octets, range(step, len(octets), step) if step else (cuts or {}).get(index, ()))
    return wire


def two_way_cuts(dialogue: Dialogue) -> Iterable[dict[int, Sequence[int]]]:
    """Each place where one entry of the dialogue can be cut in two."""
    for index, (_, octets) in enumerate(dialogue):
        for at in range(1, len(octets)):
            yield {index: (at,)}


def told(wire: Wire) -> list[tuple]:
    """The events without what depends on time and segmentation."""
    return [(event.type, event.direction, event.reason, event.line, event.offset, event.length, event.text)
            for event in wire.events]
