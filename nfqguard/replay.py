"""A capture through the engine, with the capture's clock: what would have left, and what would have been told.

A capture knows no interfaces, so the binding to them is off; everything else is what a queue would get: the packets
that the deployment chooses, in order, and the passing of time. No connection belongs to a class that names interfaces.
"""
from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from nfqguard.capture import NANOSECONDS, Record, network_offset, plain_header, turned
from nfqguard.divert import Datagram, Diversion, datagram
from nfqguard.engine import (
    PACKET_MAX,
    Classes,
    Engine,
    Event,
    Output,
    OutputKind,
    PacketFlag,
    Policy,
    Settings,
    Verdict,
)
from nfqguard.policy.compile import compile_classes, compile_policy
from nfqguard.policy.load import Configuration

TICKS_MAX = 8000
"""Ticks of one second for one silence, more than any default timer; what else expires, expires at its end."""
HEADERS_MAX = 65536
"""Directions whose link header is remembered."""

Direction = tuple[bytes, bytes, tuple[int, int]]


@dataclass
class Summary:
    """What a replay did: packets_in - dropped + injected = packets_out.

    packets_in   all packets of the capture
    diverted     those that the engine judged
    edited       left with other octets
    events       events by type; lost ones, which a full ring could not take, are counted under `lost`
    """

    packets_in: int = 0
    diverted: int = 0
    packets_out: int = 0
    edited: int = 0
    dropped: int = 0
    injected: int = 0
    flows: int = 0
    events: Counter[str] = field(default_factory=Counter)

    def as_data(self) -> dict[str, Any]:
        """For JSON: keys with hyphens, as everywhere in what operators see."""
        return {entry.name.replace("_", "-"): getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A packet whose decision is not there yet: link header, what lies behind the IP packet, its lengths."""

    record: Record
    start: int
    end: int


class Replay:
    """One engine fed by one capture."""

    def __init__(self, configuration: Configuration, link_type: int, packet: Callable[[Record], None],
                 event: Callable[[Event], None]) -> None:
        """`packet` gets every packet that leaves, in order; `event` every event. Raises EngineError where the engine
        cannot be made."""
        values = configuration.engine.model_dump()
        # A fixed key: the same capture tells the same twice.
        fixed = {"binding": Settings.BINDINGS["off"], "recorded": 1, "hash_key": bytes(16)}
        settings = Settings.default(**{**values, **fixed})
        self.summary = Summary()
        self._engine = Engine(settings, _policy(configuration))
        self._diversion = Diversion(configuration.deployment)
        self._link_type = link_type
        self._packet, self._event = packet, event
        self._waiting: dict[int, _Waiting] = {}
        self._headers: OrderedDict[Direction, bytes] = OrderedDict()
        self._now = -1

    def run(self, records: Iterable[Record]) -> Summary:
        """Replay all records, end every flow, and give the engine's memory back."""
        try:
            for record in records:
                self._pass_time(record.time)
                self._feed(record)
            self._finish()
        finally:
            self._engine.close()
        return self.summary

    def _pass_time(self, until: int) -> None:
        """A tick at each whole second; the clock never goes back, whatever the capture does."""
        if self._now < 0:
            self._now = until
        second, last = self._now // NANOSECONDS + 1, until // NANOSECONDS
        ticks = [*range(second, min(last + 1, second + TICKS_MAX))]
        if ticks and ticks[-1] != last:
            ticks.append(last)
        for tick in ticks:
            self._now = tick * NANOSECONDS
            self._emit(self._engine.tick(self._now))
        self._now = max(self._now, until)

    def _feed(self, record: Record) -> None:
        """One packet: past the engine, or through it."""
        number = self.summary.packets_in & 0xFFFFFFFF
        self.summary.packets_in += 1
        start = network_offset(self._link_type, record.data)
        found = datagram(record.data[start:]) if start is not None else None
        if start is None or found is None or not self._diversion.chooses(found):
            self._leave(record)
            return
        self.summary.diverted += 1
        self._remember(found, record.data[:start])
        end = min(start + found.length, len(record.data))
        flags = PacketFlag.NONE
        if start + found.length > len(record.data) or end - start > PACKET_MAX:
            flags = PacketFlag.TRUNCATED
        self._waiting[number] = _Waiting(record, start, end)
        self._emit(self._engine.packet(record.data[start:end][:PACKET_MAX], self._now, id=number, flags=flags), number)

    def _emit(self, outputs: Iterable[Output], current: int | None = None) -> None:
        """Everything that leaves now. What was held leaves with the time of its release."""
        for output in outputs:
            if output.kind is OutputKind.INJECTION:
                self._inject(output)
                continue
            waiting = self._waiting.pop(output.id)
            if output.verdict is Verdict.DROP:
                self.summary.dropped += 1
            else:
                self._release(waiting, output.data, held=output.id != current)
        while events := self._engine.events():
            for event in events:
                self.summary.events[event.type.name.lower().replace("_", "-")] += 1
                self._event(event)

    def _release(self, waiting: _Waiting, edited: bytes | None, held: bool) -> None:
        record = waiting.record
        time = self._now if held else record.time
        if edited is None:
            self._leave(Record(time, record.data, record.wire_length))
            return
        self.summary.edited += 1
        # Padding of short frames stays where the packet keeps its length; elsewhere it would be part of nothing.
        trailer = record.data[waiting.end:] if len(edited) == waiting.end - waiting.start else b""
        data = record.data[:waiting.start] + edited + trailer
        self._leave(Record(time, data, len(data)))

    def _inject(self, output: Output) -> None:
        if output.data is None:
            raise RuntimeError("the engine injects a packet without octets")
        self.summary.injected += 1
        data = self._header(output.data) + output.data
        self._leave(Record(self._now, data, len(data)))

    def _leave(self, record: Record) -> None:
        self.summary.packets_out += 1
        self._packet(record)

    def _remember(self, found: Datagram, header: bytes) -> None:
        if found.ports is None:
            return
        direction = (found.source, found.destination, found.ports)
        self._headers[direction] = header
        self._headers.move_to_end(direction)
        if len(self._headers) > HEADERS_MAX:
            self._headers.popitem(last=False)

    def _header(self, packet: bytes) -> bytes:
        """The link header of a packet of the same direction; else that of the other direction, turned."""
        found = datagram(packet)
        if found is not None and found.ports is not None:
            same = self._headers.get((found.source, found.destination, found.ports))
            other = self._headers.get((found.destination, found.source, found.ports[::-1]))
            if same is not None:
                return same
            if other is not None:
                return turned(self._link_type, other)
        return plain_header(self._link_type, packet[0] >> 4)

    def _finish(self) -> None:
        if self._now < 0:
            return
        self._emit(self._engine.drain(self._now))
        while self._engine.counters()["flows"]:
            self._emit(self._engine.drain(self._now))
        if self._waiting:
            raise RuntimeError(f"the engine decided nothing on {len(self._waiting)} packets")
        counters = self._engine.counters()
        self.summary.flows = counters["flows-opened"]
        if counters["events-lost"]:
            self.summary.events["lost"] = counters["events-lost"]


def classes_not_seen(configuration: Configuration) -> tuple[str, ...]:
    """The names of classes to which no connection of a capture belongs, for they name interfaces."""
    return tuple(one.name for one in configuration.classes if one.in_interfaces or one.out_interfaces)


def _policy(configuration: Configuration) -> Policy | Classes:
    used = configuration.policies_in_use
    policies = {name: Policy(compile_policy(name, policy)) for name, policy in used.items()}
    otherwise = policies[configuration.policy]
    unseen = classes_not_seen(configuration)
    seen = [one for one in configuration.classes if one.name not in unseen]
    return Classes(compile_classes(seen, configuration.network), policies, otherwise, {}) if seen else otherwise
