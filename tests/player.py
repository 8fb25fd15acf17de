"""Plays stories through the engine, by player.c: compiled at run time, as the tests in C are."""
from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sanitized
from cffi import FFI
from nfqguard._engine import ffi as engine_ffi
from nfqguard._engine import lib as engine_lib
from story import Story, Turn
from wire import SECOND

from nfqguard.engine import Classes, Engine, Event, Policy, Settings

HERE = Path(__file__).resolve().parent
KINDS = {"say": 0, "truncated": 1, "fin": 2, "rst": 3, "seconds": 4, "lost": 5, "again": 6}
OPENINGS = {"seen": 0, "missed": 1, "SYN only": 2}
START = 1_700_000_000 * SECOND
BETWEEN = 500 * SECOND
"""From one play to the next: the flow before is forgotten, and so is what a policy counts in a second."""
SMALL = {"flows": 64, "large_blocks": 8, "small_blocks": 256, "extents": 256, "held": 512, "held_per_flow": 256,
         "events": 1024, "edit_logs": 4}
"""What one flow needs; the defaults would take 100 MB for each story."""


@dataclass(frozen=True)
class Cut:
    """How the turns are cut: turn `turn` before its octet `at`; all into pieces of `step` octets; pieces sent twice."""

    turn: int = 0
    at: int = 0
    step: int = 0
    twice: bool = False


WHOLE = Cut()


@dataclass(frozen=True)
class Outcome:
    """What a play came to: what each application has read, first the client's, how it ended, and what was told."""

    heard: tuple[bytes, bytes]
    withheld: tuple[int, int]
    reset: tuple[bool, bool]
    finished: tuple[bool, bool]
    events: list[Event]


@functools.cache
def _library() -> tuple[FFI, Any]:
    border, own = (sanitized.ENGINE / "engine.h").read_text(), (HERE / "player.h").read_text()
    declared = border[:border.index("/* ---- the queue loop")]
    ffi = FFI()
    ffi.cdef(declared + own)
    folder = sanitized.ROOT / "build" / "c"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "player.so"
    command = [sanitized.COMPILERS[0], "-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
               f"-I{sanitized.ENGINE}", f"-I{HERE}", str(HERE / "player.c"), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return ffi, ffi.dlopen(str(target))


class Player:
    """One story's dialogue, ready to be played under a policy in any cut."""

    def __init__(self, story: Story, policy: Policy, classes: Classes | None = None, more: Sequence[Turn] = (),
                 **settings: int) -> None:
        """`classes` choose another policy than `policy`; `more`: turns behind those of the story."""
        self.ffi, self.lib = _library()
        self.engine = Engine(Settings.default(**{"hash_key": bytes(16), **SMALL, **settings}), policy)
        if classes is not None:
            self.engine.install(classes)
        self.opening = OPENINGS[story.opening]
        self.texts = [turn.octets for turn in (*story.turns, *more)]
        self._kept = [self.ffi.from_buffer(text) for text in self.texts]
        self._turns = self.ffi.new("struct player_turn[]", len(self.texts))
        for native, turn, kept in zip(self._turns, (*story.turns, *more), self._kept, strict=True):
            native.what, native.side, native.octets = KINDS[turn.what], turn.side, kept
            native.len = turn.seconds or len(turn.octets)
        self._player = self.ffi.gc(self.lib.player_new(), self.lib.player_free)
        self._outcome = self.ffi.new("struct player_outcome *")
        self._start = START
        self._calls = self.ffi.new("struct player_calls *", {
            "engine": self.ffi.cast("struct nq_engine *", int(engine_ffi.cast("uintptr_t", self.engine.pointer))),
            "packet": self.ffi.cast("void *", _address("nq_engine_packet")),
            "tick": self.ffi.cast("void *", _address("nq_engine_tick")),
        })

    def two_way(self) -> Iterator[Cut]:
        """Each place where one packet can be cut in two."""
        for index, text in enumerate(self.texts):
            yield from (Cut(index, at) for at in range(1, len(text)))

    def play(self, cut: Cut = WHOLE) -> Outcome:
        """Raises AssertionError where a packet reaches an end that no packet may be."""
        ffi, outcome, engine = self.ffi, self._outcome, self.engine
        self._start += BETWEEN
        engine.tick(self._start)
        native = ffi.new("struct player_cut *", [cut.turn, cut.at, cut.step, cut.twice, self.opening])
        self.lib.player_play(self._player, self._calls, self._turns, len(self.texts), native, self._start, outcome)
        fault = ffi.string(outcome.fault).decode()
        assert not fault, fault
        events = _taken(engine)
        engine.drain(outcome.now)
        self._start = outcome.now
        heard = tuple(bytes(ffi.buffer(outcome.heard[side], outcome.heard_len[side])) for side in (0, 1))
        withheld, reset, finished = (tuple(field[side] for side in (0, 1)) for field in
                                     (outcome.withheld, outcome.reset, outcome.finished))
        return Outcome(heard, withheld, (bool(reset[0]), bool(reset[1])),  # type: ignore[arg-type]
                       (bool(finished[0]), bool(finished[1])), [*events, *_taken(engine)])


def _taken(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while taken := engine.events():
        events += taken
    return events


@functools.cache
def _address(name: str) -> int:
    return int(engine_ffi.cast("uintptr_t", engine_ffi.addressof(engine_lib, name)))
