"""The thin binding: the engine's border (csrc/engine.h) as classes, and the only importer of the C module.

Every length is checked before C sees it, every return code becomes an exception with the sentence that C wrote, and
every structure becomes a dataclass. `Engine.packet()` copies what it is given: it is there for replay and tests. The
live path is `Queue.run()`, which stays in C, with the GIL released, until it is stopped.
"""
from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, ClassVar, Self

from nfqguard._engine import ffi, lib
from nfqguard.report.event import Doing, RuleHit
from nfqguard.report.event import Event as Event
from nfqguard.report.event import EventType as EventType

if TYPE_CHECKING:
    from nfqguard.policy.compile import ClassSpec, PolicySpec, RuleSpec
    from nfqguard.policy.regex import Automaton

PACKET_MAX = 65535
"""Octets of the longest packet that `Engine.packet()` takes."""

_EVENTS_AT_ONCE = 256


class EngineError(RuntimeError):
    """The engine refused; the message says what and why."""


class PacketFlag(IntFlag):
    """What is known of a packet beside its octets (NQ_CSUM_*, NQ_TRUNCATED)."""

    NONE = 0
    CSUM_NOT_READY = lib.NQ_CSUM_NOT_READY
    CSUM_VERIFIED = lib.NQ_CSUM_VERIFIED
    TRUNCATED = lib.NQ_TRUNCATED


class Verdict(IntEnum):
    """Netfilter's own numbers (linux/netfilter.h)."""

    DROP = lib.NQ_DROP
    ACCEPT = lib.NQ_ACCEPT


class OutputKind(IntEnum):
    """A verdict on a packet of the caller's, or a packet of the engine's own."""

    DECISION = lib.NQ_DECISION
    INJECTION = lib.NQ_INJECTION


@dataclass(frozen=True, slots=True)
class Output:
    """One thing that leaves, in the order in which things leave.

    `data` is None where a packet leaves as it came; otherwise it is the whole packet from the IP header on, its
    checksums complete. `offload`: the kernel may have the packet's connection from now on.
    """

    kind: OutputKind
    id: int
    verdict: Verdict
    data: bytes | None
    offload: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes and times of one engine (struct nq_settings). `Settings.default()` holds the values of csrc/nq.h."""

    flows: int
    large_blocks: int
    small_blocks: int
    extents: int
    held: int
    held_per_flow: int
    store_per_stream: int
    edit_logs: int
    events: int
    synwait: int
    finwait: int
    idle: int
    tombstone: int
    binding: int
    offload: int
    recorded: int
    hash_key: bytes

    BINDINGS: ClassVar[dict[str, int]] = {"off": lib.NQ_BIND_OFF, "strict": lib.NQ_BIND_STRICT}

    @classmethod
    def default(cls, **changes: Any) -> Self:
        """The engine's own defaults with `changes`, and a random key for the flow table unless one is given.

        Raises TypeError for a name that is no setting.
        """
        native = ffi.new("struct nq_settings *")
        lib.nq_settings_default(native)
        values = {field.name: getattr(native, field.name) for field in fields(cls) if field.name != "hash_key"}
        return cls(**{**values, "hash_key": secrets.token_bytes(16), **changes})

    def native(self) -> Any:
        """The C structure. Raises ValueError where a value does not fit 32 bits or the key is not 16 octets."""
        if len(self.hash_key) != 16:
            raise ValueError(f"the hash key has {len(self.hash_key)} octets, not 16")
        native = ffi.new("struct nq_settings *")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "hash_key":
                ffi.memmove(native.hash_key, value, 16)
            elif not 0 <= value < 1 << 32:
                raise ValueError(f"setting {field.name} is {value}, outside 0 to 4294967295")
            else:
                setattr(native, field.name, value)
        return native


def _all_names(name: Callable[[int], Any]) -> tuple[str, ...]:
    """The names of a table of the engine, in its order: name() is NULL above the last."""
    found: list[str] = []
    while (text := name(len(found))) != ffi.NULL:
        found.append(ffi.string(text).decode())
    return tuple(found)


class Policy:
    """A compiled policy; engines share it and it never changes."""

    _ANSWERS: ClassVar[dict[str, int]] = {
        "drop": lib.NQ_ANSWER_DROP,
        "reset": lib.NQ_ANSWER_RESET,
        "pass": lib.NQ_ANSWER_PASS,
    }
    _BANNERS: ClassVar[dict[str, int]] = {
        "pass": lib.NQ_BANNER_PASS,
        "asa": lib.NQ_BANNER_ASA,
        "text": lib.NQ_BANNER_TEXT,
        "modern": lib.NQ_BANNER_MODERN,
    }
    _EXCEPTIONS: ClassVar[dict[str, int]] = {
        "midstream": lib.NQ_EXC_MIDSTREAM,
        "gap": lib.NQ_EXC_GAP,
        "memory": lib.NQ_EXC_MEMORY,
        "unparsable": lib.NQ_EXC_UNPARSABLE,
        "truncated": lib.NQ_EXC_TRUNCATED,
    }

    def __init__(self, spec: PolicySpec) -> None:
        """Compile `spec`. Raises EngineError with the engine's sentence where the tables do not fit, ValueError for an
        exception or answer that does not exist."""
        self.name = spec.name
        native, words = self._native(spec)
        error = ffi.new("char[]", lib.NQ_ERROR_MAX)
        pointer = lib.nq_policy_new(native, error)
        del words
        if pointer == ffi.NULL:
            raise EngineError(_sentence(error))
        self.pointer = ffi.gc(pointer, lib.nq_policy_free)

    @classmethod
    def _native(cls, spec: PolicySpec) -> tuple[Any, list[Any]]:
        """The C structure, and what must live as long as it is read."""
        if len(spec.name.encode()) > 31:
            raise ValueError(f"the policy's name {spec.name!r} is longer than 31 octets")
        native = ffi.new("struct nq_policy_spec *")
        kept: list[Any] = []
        native.name = _text(spec.name, kept)
        native.verbs, native.verb_count = _texts(spec.verbs, kept), len(spec.verbs)
        native.keywords, native.keyword_count = _texts(spec.keywords, kept), len(spec.keywords)
        native.banner_text = _text_or_none(spec.banner_text, kept)
        native.insert_header = _text_or_none(spec.insert_header, kept)
        native.refusal = _text_or_none(spec.refusal, kept)
        native.remove_keywords = spec.remove_keywords
        native.mask_verbs = spec.mask_verbs
        native.mask_keywords = spec.mask_keywords
        native.banner = cls._BANNERS[spec.banner]
        native.max_data = spec.max_data
        native.timeout, native.alert, native.audit_trail = spec.timeout, spec.alert, spec.audit_trail
        native.dry_run, native.offload = spec.dry_run, spec.offload
        native.rules, native.rule_count = _rules(spec.rules, kept), len(spec.rules)
        cls._answers(native, spec.exceptions)
        return native, kept

    @classmethod
    def _answers(cls, native: Any, exceptions: dict[str, str]) -> None:
        """Fill the table of answers; every exception must have one, for there is no safe guess."""
        if exceptions.keys() != cls._EXCEPTIONS.keys():
            raise ValueError(f"exceptions must be exactly {', '.join(cls._EXCEPTIONS)}, not {', '.join(exceptions)}")
        for name, answer in exceptions.items():
            if answer not in cls._ANSWERS:
                raise ValueError(f"the answer to {name} is {answer!r}, not one of {', '.join(cls._ANSWERS)}")
            native.exceptions[cls._EXCEPTIONS[name]] = cls._ANSWERS[answer]


MATCH_NAMES = _all_names(lib.nq_match_name)
"""What a rule may look at, in the engine's order."""

_MATCHES = {name: number for number, name in enumerate(MATCH_NAMES)}

_ACTIONS = {
    "log": lib.NQ_DO_LOG, "allow": lib.NQ_DO_ALLOW, "mask": lib.NQ_DO_MASK, "replace": lib.NQ_DO_REPLACE,
    "remove": lib.NQ_DO_REMOVE, "drop-connection": lib.NQ_DO_DROP, "reset": lib.NQ_DO_RESET,
    "reject": lib.NQ_DO_REJECT, "rate-limit": lib.NQ_DO_RATE_LIMIT,
}


def _keep(made: Any, kept: list[Any]) -> Any:
    """What cffi has made lives as long as something in Python refers to it."""
    kept.append(made)
    return made


def _text(text: str, kept: list[Any]) -> Any:
    return _keep(ffi.new("char[]", text.encode()), kept)


def _text_or_none(text: str, kept: list[Any]) -> Any:
    """The border says NULL where there is none."""
    return _text(text, kept) if text else ffi.NULL


def _texts(texts: tuple[str, ...], kept: list[Any]) -> Any:
    return _keep(ffi.new("const char *[]", [_text(text, kept) for text in texts]), kept)


def _rules(rules: tuple[RuleSpec, ...], kept: list[Any]) -> Any:
    """struct nq_rule_spec[]. Raises ValueError for a match or an action that the engine does not know."""
    table = _keep(ffi.new("struct nq_rule_spec[]", len(rules)), kept)
    for native, rule in zip(table, rules, strict=True):
        if rule.match not in _MATCHES or rule.action not in _ACTIONS:
            raise ValueError(f"rule {rule.name}: there is no match {rule.match!r} or no action {rule.action!r}")
        native.name, native.reply = _text(rule.name, kept), _text_or_none(rule.reply, kept)
        native.match, native.action = _MATCHES[rule.match], _ACTIONS[rule.action]
        native.negate, native.log, native.dry_run = rule.negate, rule.log, rule.dry_run
        native.rate, native.bound = rule.rate, rule.bound
        native.words, native.word_count = _texts(rule.words, kept), len(rule.words)
        native.except_words = rule.except_words
        native.codes = _keep(ffi.new("uint16_t[]", [code for pair in rule.codes for code in pair]), kept)
        native.code_pairs = len(rule.codes)
        native.regex = _regex(rule.regex, kept)
    return table


def _regex(automaton: Automaton | None, kept: list[Any]) -> Any:
    """struct nq_regex_spec *; C copies the tables, so they are lent as they are."""
    if automaton is None:
        return ffi.NULL
    native = _keep(ffi.new("struct nq_regex_spec *"), kept)
    native.states, native.classes = automaton.states, automaton.classes
    native.class_of = _keep(ffi.from_buffer("uint8_t[]", automaton.class_of), kept)
    native.next = _keep(ffi.from_buffer("uint16_t[]", automaton.next), kept)
    native.accepts = _keep(ffi.from_buffer("uint8_t[]", automaton.accepts), kept)
    return native


class Engine:
    """One flow table with all its memory. It belongs to one thread, but for `install`, `counters` and `events`."""

    def __init__(self, settings: Settings, policy: Policy | Classes) -> None:
        """Take all memory. Raises EngineError where settings are out of range or memory is short."""
        error = ffi.new("char[]", lib.NQ_ERROR_MAX)
        first = policy.otherwise if isinstance(policy, Classes) else policy
        pointer = lib.nq_engine_new(settings.native(), first.pointer, error)
        if pointer == ffi.NULL:
            raise EngineError(_sentence(error))
        self._policies: list[Policy | Classes] = [first]
        self._pointer: Any = ffi.gc(pointer, partial(_free_engine, self._policies))
        self._buffer = ffi.new("uint8_t[]", PACKET_MAX)
        self._packet = ffi.new("struct nq_packet *")
        self._events = ffi.new("struct nq_event[]", _EVENTS_AT_ONCE)
        if policy is not first:
            self.install(policy)

    @property
    def pointer(self) -> Any:
        """The C engine. Raises EngineError once the engine is closed."""
        if self._pointer is None:
            raise EngineError("this engine is closed")
        return self._pointer

    def install(self, policy: Policy | Classes) -> None:
        """The policy, or the classes that choose one, for flows that begin from now on. Flows under way keep theirs, so
        what was installed earlier stays alive."""
        self._policies.append(policy)
        if isinstance(policy, Classes):
            lib.nq_engine_install_classes(self.pointer, policy.pointer)
        else:
            lib.nq_engine_install(self.pointer, policy.pointer)

    def packet(
        self,
        data: bytes | bytearray,
        now_ns: int,
        id: int = 0,
        in_ifindex: int = 0,
        out_ifindex: int = 0,
        flags: PacketFlag = PacketFlag.NONE,
    ) -> list[Output]:
        """Judge one packet, `data` from the IP header on (at most 65,535 octets, network order), at `now_ns`
        nanoseconds since the epoch. Returns what leaves now; a held packet's decision comes out of a later call under
        its `id`. Raises ValueError for a packet that is too long."""
        if len(data) > PACKET_MAX:
            raise ValueError(f"a packet of {len(data)} octets is longer than {PACKET_MAX}")
        ffi.memmove(self._buffer, data, len(data))
        packet = self._packet
        packet.id, packet.in_ifindex, packet.out_ifindex, packet.flags = id, in_ifindex, out_ifindex, flags
        packet.data, packet.len, packet.block = self._buffer, len(data), ffi.NULL
        return _outputs(lib.nq_engine_packet(self.pointer, packet, now_ns))

    def tick(self, now_ns: int) -> list[Output]:
        """Let time pass: expire what is due at `now_ns`."""
        return _outputs(lib.nq_engine_tick(self.pointer, now_ns))

    def drain(self, now_ns: int) -> list[Output]:
        """End flows, for a stop: their records become events and what they hold is dropped. Ends no more of them than
        the event ring has room for: take the events and call again until the counter "flows" is 0."""
        return _outputs(lib.nq_engine_drain(self.pointer, now_ns))

    def counters(self) -> dict[str, int]:
        """Every counter by name, since the engine was made."""
        pointer = self.pointer
        return {name: lib.nq_engine_counter(pointer, number) for number, name in enumerate(COUNTER_NAMES)}

    def events(self) -> list[Event]:
        """Take the events that wait, oldest first; at most 256, so call again until there are none."""
        count = lib.nq_engine_events(self.pointer, self._events, _EVENTS_AT_ONCE)
        return [_event(self._events[index]) for index in range(count)]

    def close(self) -> None:
        """Give all memory back. No queue may run on this engine any more."""
        if self._pointer is not None:
            ffi.release(self._pointer)
            self._pointer = None


class Classes:
    """Ordered classes: the first that a connection's opening fits chooses its policy, or that it is exempt."""

    _DIRECTIONS: ClassVar[dict[str | None, int]] = {
        None: lib.NQ_EITHER_WAY, "inbound": lib.NQ_INBOUND, "outbound": lib.NQ_OUTBOUND,
    }

    def __init__(self, specs: Sequence[ClassSpec], policies: Mapping[str, Policy], otherwise: Policy,
                 interfaces: Mapping[str, int]) -> None:
        """`policies` has the policies that `specs` name, `interfaces` the index of each interface; `otherwise` is for
        connections that fit no class. Raises KeyError for a name that is not there, EngineError with the engine's
        sentence where the tables do not fit."""
        self.otherwise = otherwise
        self._policies = [policies[spec.policy] for spec in specs if spec.policy is not None]
        kept: list[Any] = []
        native = ffi.new("struct nq_class_spec[]", len(specs))
        for into, spec in zip(native, specs, strict=True):
            kept.append(ffi.new("char[]", spec.name.encode()))
            into.name = kept[-1]
            into.policy = ffi.NULL if spec.policy is None else policies[spec.policy].pointer
            self._networks(into, "clients", "client_count", kept, spec.clients)
            self._networks(into, "servers", "server_count", kept, spec.servers)
            self._networks(into, "inside", "inside_count", kept, spec.inside)
            into.direction = self._DIRECTIONS[spec.direction]
            self._numbers(into, "ports", "port_count", "uint16_t[]", kept, spec.ports)
            for field in ("in", "out"):
                indexes = [interfaces[name] for name in getattr(spec, f"{field}_interfaces")]
                self._numbers(into, f"{field}_ifindexes", f"{field}_count", "uint32_t[]", kept, indexes)
        error = ffi.new("char[]", lib.NQ_ERROR_MAX)
        pointer = lib.nq_classes_new(native, len(specs), otherwise.pointer, error)
        if pointer == ffi.NULL:
            raise EngineError(_sentence(error))
        self.pointer = ffi.gc(pointer, lib.nq_classes_free)

    @staticmethod
    def _networks(into: Any, field: str, count: str, kept: list[Any],
                  networks: Sequence[IPv4Network | IPv6Network]) -> None:
        table = ffi.new("struct nq_network[]", len(networks))
        for native, network in zip(table, networks, strict=True):
            native.family, native.bits = network.version, network.prefixlen
            ffi.memmove(native.prefix, network.network_address.packed, network.max_prefixlen // 8)
        kept.append(table)
        setattr(into, field, table)
        setattr(into, count, len(networks))

    @staticmethod
    def _numbers(into: Any, field: str, count: str, kind: str, kept: list[Any], numbers: Sequence[int]) -> None:
        kept.append(ffi.new(kind, list(numbers)))
        setattr(into, field, kept[-1])
        setattr(into, count, len(numbers))


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How a bound queue is drained (struct nq_queue_settings).

    `length`: packets the kernel may keep waiting, 1 to 65535. `fail_open`: what does not fit passes uninspected.
    `buffer`: octets of socket buffer each way. `own_mark`: packet mark of what we send ourselves, and own_mark + 1 of
    what connection tracking must leave alone, so below 0xffffffff; 0: send nothing. `offload_mark`: bits set in the
    packet mark of a decision that offloads, for the deployment to keep on the connmark; 0: none.
    """

    number: int
    length: int = 1024
    fail_open: bool = False
    buffer: int = 32 << 20
    own_mark: int = 0
    offload_mark: int = 0


class Queue:
    """The loop of one queue: receives, judges and answers in C until it is stopped."""

    def __init__(self, engine: Engine, fd: int, settings: QueueSettings) -> None:
        """Configure the queue that `fd`, a netlink socket, has bound; `fd` stays the caller's and must stay open.
        Raises EngineError with a sentence where the kernel refuses."""
        native = ffi.new("struct nq_queue_settings *")
        native.fd, native.number, native.length = fd, settings.number, settings.length
        native.fail_open, native.buffer, native.own_mark = settings.fail_open, settings.buffer, settings.own_mark
        native.offload_mark = settings.offload_mark
        error = ffi.new("char[]", lib.NQ_ERROR_MAX)
        pointer = lib.nq_queue_new(native, engine.pointer, error)
        self._epoch = time.time_ns() - time.monotonic_ns()
        if pointer == ffi.NULL:
            raise EngineError(_sentence(error))
        self.number = settings.number
        self.engine = engine
        self._pointer: Any = ffi.gc(pointer, partial(_free_queue, engine.pointer))

    def run(self) -> None:
        """Drain the queue until `stop()`; the GIL is released meanwhile. Raises OSError where the socket fails."""
        rc = lib.nq_queue_run(self._pointer)
        if rc < 0:
            raise OSError(-rc, f"queue {self.number}: {os.strerror(-rc)}")

    def stop(self) -> None:
        """End `run()` soon; from any thread or signal handler, also before `run()` began."""
        if self._pointer is not None:
            lib.nq_queue_stop(self._pointer)

    @property
    def progress(self) -> int:
        """How often the loop came round: grows at least once a second while it lives."""
        return int(lib.nq_queue_progress(self._pointer))

    @property
    def conntrack_error(self) -> str | None:
        """Why connection tracking cannot be asked what it makes of the packets we send; None where it can."""
        rc = int(lib.nq_queue_conntrack(self._pointer))
        return os.strerror(-rc) if rc < 0 else None

    def now(self) -> int:
        """The loop's time in nanoseconds: the wall clock as it stood when the queue was made, and steady since."""
        return self._epoch + time.monotonic_ns()

    def wall(self, loop_ns: int) -> int:
        """What the wall clock says today of a moment of the loop's time: differs once somebody has set the clock."""
        return loop_ns + time.time_ns() - self.now()

    def close(self) -> None:
        """Give the loop's memory back; `run()` must have returned. The socket stays open."""
        if self._pointer is not None:
            ffi.release(self._pointer)
            self._pointer = None


def _sentence(error: Any) -> str:
    return str(ffi.string(error).decode(errors="replace"))


def _free_engine(policies: list[Policy | Classes], pointer: Any) -> None:
    """`policies` is here so that it outlives the engine, which reads them."""
    lib.nq_engine_free(pointer)
    policies.clear()


def _free_queue(engine: Any, pointer: Any) -> None:
    """`engine` is here so that it outlives the queue, whose blocks are the engine's."""
    lib.nq_queue_free(pointer)


def _names(count: int, name: Callable[[int], Any]) -> tuple[str, ...]:
    return tuple(ffi.string(name(number)).decode() for number in range(count))


COUNTER_NAMES = _names(lib.nq_counter_count(), lib.nq_counter_name)
"""The names of all counters, in the engine's order."""


def _outputs(result: Any) -> list[Output]:
    return [_output(result.outputs[index]) for index in range(result.count)]


def _output(output: Any) -> Output:
    data = None if output.data == ffi.NULL else bytes(ffi.buffer(output.data, output.len))
    return Output(OutputKind(output.kind), output.id, Verdict(output.verdict), data, bool(output.offload))


def _address(octets: Any) -> IPv4Address | IPv6Address:
    address = IPv6Address(bytes(ffi.buffer(octets, 16)))
    return address.ipv4_mapped or address


def _rule_hit(event: Any) -> RuleHit:
    return RuleHit(
        name=ffi.string(event.rule_name).decode(errors="replace"),
        place=event.rule,
        match=MATCH_NAMES[event.match],
        action=Doing(event.action),
        value=event.value,
        bound=event.bound,
    )


def _event(event: Any) -> Event:
    reason = lib.nq_reason_name(event.reason) if event.reason else ffi.NULL
    return Event(
        type=EventType(event.type),
        time=event.time,
        flow=event.flow,
        started=event.started,
        client=_address(event.client),
        client_port=event.client_port,
        server=_address(event.server),
        server_port=event.server_port,
        direction=event.direction,
        policy=ffi.string(event.policy).decode(errors="replace"),
        reason=None if reason == ffi.NULL else ffi.string(reason).decode(),
        line=event.line,
        offset=event.offset,
        length=event.length,
        text=bytes(ffi.buffer(event.text, min(event.text_len, lib.NQ_TEXT_MAX))),
        packets=(event.packets[0], event.packets[1]),
        octets=(event.octets[0], event.octets[1]),
        after=bytes(ffi.buffer(event.after, min(event.after_len, lib.NQ_TEXT_MAX))),
        rule=_rule_hit(event) if event.rule else None,
        dry_run=bool(event.dry_run),
        code=event.code,
    )
