"""Memory: what an idle flow costs, and that no flood takes more than was configured or starves a session beside it."""
from __future__ import annotations

import os
import struct

import pytest
from wire import ACK, CLIENT, SERVER, SYN, Segment, Wire

from nfqguard.engine import Engine, PacketFlag, Settings

C, S = CLIENT, SERVER
IDLE_FLOWS = 100_000


def resident() -> int:
    """Octets of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


class Flood:
    """Packets of many clients to one server: one template, addresses and ports patched in."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now = 1_700_000_000_000_000_000
        self.templates: dict[tuple, bytearray] = {}

    def template(self, side: int, flags: int, payload: bytes) -> bytearray:
        """From the client side or the server's; client 10.0.0.0 port 0, server 192.0.2.25 port 25."""
        key = (side, flags, payload)
        if key not in self.templates:
            ends = (("10.0.0.0", 0), ("192.0.2.25", 25))
            (source, sport), (destination, dport) = ends if side == C else ends[::-1]
            segment = Segment(source, destination, sport, dport, 0, 0, flags, 65000, payload)
            self.templates[key] = bytearray(segment.build())
        return self.templates[key]

    def send(self, client: int, side: int, seq: int, ack: int, flags: int, payload: bytes = b""):
        packet = self.template(side, flags, payload)
        struct.pack_into("!I", packet, 12 if side == C else 16, 0x0A000000 + client // 50000)
        struct.pack_into("!H", packet, 20 if side == C else 22, 1024 + client % 50000)
        struct.pack_into("!II", packet, 24, seq, ack)
        self.now += 1000
        links = (1, 2) if side == C else (2, 1)
        return self.engine.packet(packet, self.now, 1, *links, PacketFlag.CSUM_VERIFIED)

    def open(self, client: int) -> None:
        """The handshake."""
        self.send(client, C, 100, 0, SYN)
        self.send(client, S, 500, 101, SYN | ACK)
        self.send(client, C, 101, 501, ACK)


def engine_of(**settings: int) -> Engine:
    return Engine(Settings.default(hash_key=bytes(16), **settings), Wire().policy)


def test_an_idle_flow_costs_at_most_640_octets():
    Flood(engine_of(flows=16)).open(1)
    before = resident()
    engine = engine_of(flows=IDLE_FLOWS)
    flood = Flood(engine)
    for client in range(IDLE_FLOWS):
        flood.open(client)
        if client % 256 == 0:
            engine.events()
    assert engine.counters()["flows"] == IDLE_FLOWS
    cost = (resident() - before) / IDLE_FLOWS
    print(f"{cost:.0f} octets for each idle flow")
    assert 400 < cost <= 640


def greeted(wire: Wire) -> Wire:
    wire.open().say(S, b"220 x\r\n")
    return wire


def still_works(wire: Wire, flood: Flood) -> None:
    """The session beside the flood, on the flood's clock."""
    wire.now = flood.now
    before = len(wire.at_server)
    wire.say(C, b"NOOP\r\nEXPN a\r\n")
    wire.say(S, b"250 ok\r\n500 no\r\n")
    assert wire.at_server[before:] == b"NOOP\r\nXXXXXX\r\n"
    flood.now = wire.now
    wire.events.clear()
    wire.senders.clear()


@pytest.mark.parametrize("size", [100_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_half_open_flood(size):
    wire = greeted(Wire(flows=2000))
    flood = Flood(wire.engine)
    flood.now = wire.now
    before = 0
    for client in range(size):
        flood.send(client, C, 100, 0, SYN)
        if client % (size // 20) == 0:
            still_works(wire, flood)
        if client == 5000:
            before = resident()
        if client % 500 == 0:
            wire.engine.events()
    assert wire.counter("flows") == 2000
    assert resident() - before < 1 << 20
    assert wire.counter("drop.flow-table-full") == 0


@pytest.mark.parametrize("size", [40_000, pytest.param(1_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["held", "ahead", "unacknowledged"])
def test_flood_of_octets(size, kind):
    """Open flows send octets behind holes, as commands or as message data, or let the server's pile up."""
    flows = 500
    wire = greeted(Wire(flows=1000, small_blocks=512, large_blocks=64, held=1024, extents=2048))
    flood = Flood(wire.engine)
    flood.now = wire.now
    for client in range(flows):
        flood.open(client)
        if kind == "ahead":
            flood.send(client, C, 101, 501, ACK, b"DATA\r\n")
            flood.send(client, S, 501, 107, ACK, b"220 x\r\n354 go\r\n")
            flood.send(client, C, 107, 515, ACK)
    before = resident()
    for number in range(size):
        client, turn = number % flows, number // flows
        if kind == "unacknowledged":
            flood.send(client, S, 501 + turn % 60 * 1000, 101, ACK, b"250-" + b"z" * 994 + b"\r\n")
        else:
            flood.send(client, C, 1000 + turn % 60 * 1000, 515 if kind == "ahead" else 501, ACK, b"z" * 1000)
        if number % (size // 20) == 0:
            still_works(wire, flood)
        if number % 200 == 0:
            wire.engine.events()
    still_works(wire, flood)
    assert wire.counter("drop.memory") > 0
    assert resident() - before < 4 << 20
    wire.engine.drain(flood.now)
    assert wire.counter("flows") == 0
