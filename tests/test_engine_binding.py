"""The binding: errors become exceptions with sentences, structures become dataclasses, lifetimes hold."""
from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest
from nfqguard._engine import lib

from nfqguard.engine import (
    COUNTER_NAMES,
    PACKET_MAX,
    Engine,
    EngineError,
    EventType,
    Output,
    OutputKind,
    Policy,
    Queue,
    QueueSettings,
    Settings,
    Verdict,
)
from nfqguard.policy.compile import PolicySpec, compile_policy
from nfqguard.policy.load import load_preset

NETLINK_NETFILTER = 12
"""linux/netlink.h; the socket module has no name for it."""

START = 1_700_000_000_000_000_000
SECOND = 1_000_000_000
CLIENT, SERVER = ("192.0.2.1", 40001), ("198.51.100.2", 25)


def spec(**changes: Any) -> PolicySpec:
    configuration = load_preset("ios-esmtp")
    return replace(compile_policy("ios-esmtp", configuration.policy_in_force), **changes)


def settings(**changes: Any) -> Settings:
    """Small, and the same on every run."""
    small = {"flows": 64, "large_blocks": 64, "small_blocks": 256, "extents": 256, "held": 64, "held_per_flow": 16,
             "events": 64, "hash_key": bytes(16)}
    return Settings.default(**{**small, **changes})


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(settings(), Policy(spec()))
    yield engine
    engine.close()


class Wire:
    """One connection's packets, as the two ends would send them, given to the engine one by one."""

    def __init__(self, engine: Engine, client: tuple[str, int] = CLIENT) -> None:
        self.engine = engine
        self.client = client
        self.now = START
        self._next = {client: 1000, SERVER: 9000}
        self._id = 0

    def open(self) -> None:
        self.send(self.client, flags="S")
        self.send(SERVER, flags="SA")
        self.send(self.client)

    def send(self, source: tuple[str, int], payload: bytes = b"", flags: str = "A") -> list[Output]:
        from scapy.layers.inet import IP, TCP

        other = self.client if source == SERVER else SERVER
        acknowledged = self._next[other] if "A" in flags else 0
        segment = TCP(sport=source[1], dport=other[1], seq=self._next[source], ack=acknowledged, flags=flags)
        packet = bytes(IP(src=source[0], dst=other[0]) / segment / payload)
        self._next[source] += len(payload) + ("S" in flags) + ("F" in flags)
        self._id += 1
        self.now += SECOND // 1000
        interfaces = (3, 2) if source == SERVER else (2, 3)
        return self.engine.packet(packet, self.now, self._id, *interfaces)


def payload_of(data: bytes) -> bytes:
    from scapy.layers.inet import IP, TCP

    packet = IP(data)
    assert bytes(packet) == data
    return bytes(packet[TCP].payload)


def checksums_hold(data: bytes) -> bool:
    from scapy.layers.inet import IP, TCP

    packet = IP(data)
    given = packet.chksum, packet[TCP].chksum
    del packet.chksum, packet[TCP].chksum
    packet = IP(bytes(packet))
    return given == (packet.chksum, packet[TCP].chksum)


def greeted(engine: Engine) -> Wire:
    wire = Wire(engine)
    wire.open()
    wire.send(SERVER, b"220 mail.example ESMTP\r\n", "PA")
    wire.send(CLIENT, b"EHLO client.example\r\n", "PA")
    wire.send(SERVER, b"250 mail.example\r\n", "PA")
    return wire


def test_an_allowed_packet_leaves_as_it_came(engine: Engine) -> None:
    wire = Wire(engine)
    wire.open()
    banner = wire.send(SERVER, b"220 mail.example ESMTP\r\n", "PA")
    command = wire.send(CLIENT, b"EHLO client.example\r\n", "PA")
    assert banner == [Output(OutputKind.DECISION, 4, Verdict.ACCEPT, None)]
    assert command == [Output(OutputKind.DECISION, 5, Verdict.ACCEPT, None)]


def test_a_masked_packet_comes_back_whole_with_its_checksums(engine: Engine) -> None:
    outputs = greeted(engine).send(CLIENT, b"EXPN staff\r\n", "PA")
    assert [(output.kind, output.id, output.verdict) for output in outputs] == [
        (OutputKind.DECISION, 7, Verdict.ACCEPT)]
    assert outputs[0].data is not None
    assert payload_of(outputs[0].data) == b"XXXXXXXXXX\r\n"
    assert checksums_hold(outputs[0].data)


def test_the_callers_octets_are_never_written_to(engine: Engine) -> None:
    wire = greeted(engine)
    given: list[tuple[bytearray, bytes]] = []
    judge = engine.packet

    def spy(data: bytes, *rest: Any) -> list[Output]:
        mutable = bytearray(data)
        given.append((mutable, data))
        return judge(mutable, *rest)

    wire.engine = type("Spy", (), {"packet": staticmethod(spy)})()
    outputs = wire.send(CLIENT, b"EXPN staff\r\n", "PA")
    assert outputs[0].data is not None, "nothing was edited, so nothing was tried"
    assert [bytes(mutable) == original for mutable, original in given] == [True]


def test_events_tell_what_was_masked(engine: Engine) -> None:
    wire = greeted(engine)
    wire.send(CLIENT, b"EXPN staff\r\n", "PA")
    event, = engine.events()
    assert event.type is EventType.MASK_COMMAND
    assert event.time == wire.now
    assert (str(event.client), event.client_port, str(event.server), event.server_port) == (*CLIENT, *SERVER)
    assert isinstance(event.client, IPv4Address)
    assert (event.policy, event.reason, event.text, event.length) == ("ios-esmtp", "command", b"EXPN staff", 10)
    assert (event.direction, event.line, event.offset) == (0, 2, len(b"EHLO client.example\r\n"))
    assert engine.events() == []


def test_drain_ends_flows_and_tells_their_records(engine: Engine) -> None:
    wire = greeted(engine)
    engine.drain(wire.now + SECOND)
    event, = engine.events()
    assert (event.type, event.time, event.reason) == (EventType.FLOW, wire.now + SECOND, "stopped")
    assert event.packets == (3, 3)
    assert START < event.started < event.time


def test_drain_loses_no_record_though_the_ring_is_small() -> None:
    engine = Engine(settings(flows=64, events=8), Policy(spec()))
    for port in range(20):
        wire = Wire(engine, (CLIENT[0], 50_000 + port))
        wire.send(wire.client, flags="S")
    records = []
    while engine.counters()["flows"]:
        engine.drain(START + SECOND)
        records += engine.events()
    assert sorted(record.client_port for record in records) == list(range(50_000, 50_020))
    assert engine.counters()["events-lost"] == 0
    engine.close()


def test_tick_forgets_a_half_open_connection(engine: Engine) -> None:
    Wire(engine).send(CLIENT, flags="S")
    engine.tick(START + 5 * SECOND)
    assert engine.events() == []
    for seconds in range(6, 40):
        engine.tick(START + seconds * SECOND)
    assert [event.reason for event in engine.events()] == ["timeout"]


def test_counters_have_names_and_count(engine: Engine) -> None:
    assert len(set(COUNTER_NAMES)) == len(COUNTER_NAMES)
    greeted(engine).send(CLIENT, b"EXPN staff\r\n", "PA")
    counters = engine.counters()
    assert tuple(counters) == COUNTER_NAMES
    assert (counters["packets"], counters["edited"], counters["commands-masked"]) == (7, 1, 1)


def test_a_policy_installed_later_is_for_later_flows(engine: Engine) -> None:
    early = greeted(engine)
    engine.install(Policy(spec(name="open", mask_verbs=False)))
    gc.collect()
    assert early.send(CLIENT, b"EXPN staff\r\n", "PA")[0].data is not None
    engine.drain(early.now)
    assert greeted(engine).send(CLIENT, b"EXPN staff\r\n", "PA")[0].data is None


def test_event_types_are_those_of_the_engine() -> None:
    assert {kind.name: kind.value for kind in EventType} == {
        name.removeprefix("NQ_EVENT_"): getattr(lib, name) for name in dir(lib) if name.startswith("NQ_EVENT_")}


def test_a_packet_that_is_too_long_is_refused_before_the_engine_sees_it(engine: Engine) -> None:
    with pytest.raises(ValueError, match="65536 octets is longer than 65535"):
        engine.packet(bytes(PACKET_MAX + 1), START)
    assert engine.counters()["packets"] == 0


def test_no_packet_is_too_strange(engine: Engine) -> None:
    for data in (b"", b"\x45", bytes(20), bytes(PACKET_MAX)):
        assert [output.verdict for output in engine.packet(data, START)] == [Verdict.DROP]


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"name": "n" * 32}, "longer than 31 octets"),
    ({"exceptions": {"gap": "drop"}}, "exceptions must be exactly midstream, gap, memory, unparsable, truncated"),
    ({"exceptions": dict.fromkeys(("midstream", "gap", "memory", "unparsable", "truncated"), "maybe")},
     "the answer to midstream is 'maybe'"),
])
def test_a_specification_that_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Policy(spec(**changes))


@pytest.mark.parametrize("word", ["", "TWO WORDS", "W" * 64, "UMLÄUT"])
def test_the_engines_own_refusal_of_a_policy_is_a_sentence(word: str) -> None:
    with pytest.raises(EngineError, match=r"\w+ \w+"):
        Policy(spec(verbs=("HELO", word)))


def test_the_engines_own_refusal_of_settings_is_a_sentence() -> None:
    with pytest.raises(EngineError, match=r"\w+ \w+"):
        Engine(settings(events=63), Policy(spec()))


@pytest.mark.parametrize("changes", [{"flows": -1}, {"flows": 1 << 32}, {"hash_key": b"short"}])
def test_settings_are_checked_before_the_engine_sees_them(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"flows is|hash key has 5"):
        Engine(settings(**changes), Policy(spec()))


def test_the_hash_key_is_random_unless_given() -> None:
    assert Settings.default().hash_key != Settings.default().hash_key
    with pytest.raises(TypeError):
        Settings.default(no_such_setting=1)


def test_a_closed_engine_says_so_and_closes_once() -> None:
    engine = Engine(settings(), Policy(spec()))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.packet(b"", START)


def test_the_engine_keeps_its_policy_alive() -> None:
    engine = Engine(settings(), Policy(spec()))
    gc.collect()
    assert greeted(engine).send(CLIENT, b"EXPN staff\r\n", "PA")[0].data is not None
    engine.close()


@pytest.mark.parametrize(("queue", "sentence"), [
    (QueueSettings(70000), "number and length go up to 65535"),
    (QueueSettings(7, length=0), "length begins at 1"),
    (QueueSettings(7), "is the descriptor a netlink socket"),
])
def test_a_queue_that_cannot_be_configured_says_why(engine: Engine, queue: QueueSettings, sentence: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other, pytest.raises(EngineError, match=sentence):
        Queue(engine, other.fileno(), queue)


@pytest.mark.skipif(os.geteuid() != 0, reason="netlink answers root only")
def test_a_queue_that_nobody_bound_cannot_be_configured(engine: Engine) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as unbound:
        unbound.bind((0, 0))
        with pytest.raises(EngineError, match="queue 65000: the queue's length was refused"):
            Queue(engine, unbound.fileno(), QueueSettings(65000))


def test_the_engine_may_be_used_by_a_thread_that_did_not_make_it(engine: Engine) -> None:
    outputs: list[Output] = []
    thread = threading.Thread(target=lambda: outputs.extend(greeted(engine).send(CLIENT, b"EXPN staff\r\n", "PA")))
    thread.start()
    thread.join()
    assert outputs[0].data is not None
