"""Random connections through the engine, between two TCPs that lose, reorder, double and retransmit, judged by a parser
of whole streams: tests/c/property.

A failure names the seed of its schedule; build/c/*-property/property --seed N --trace shows that one schedule again.
"""
from __future__ import annotations

import collections
import functools
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sanitized

FOLDER = sanitized.TESTS / "property"
OPTIONS = os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}

# What 20,000 schedules must have reached; a property test that never overflows, holds or goes ahead proves little.
REACHED = [
    "complete", "ended-by-reset", "adversaries", "small", "accepted", "edited", "dropped", "injected", "held", "ahead",
    "retransmissions-restored", "commands-masked", "keywords-masked", "keywords-removed", "banners-masked",
    "banners-replaced", "headers-inserted", "edits-skipped", "messages", "resets", "drop.memory", "drop.held-limit",
    "drop.held-already", "drop.ack-beyond", "drop.outside-window", "drop.wrong-interface", "drop.rst-sequence",
    "drop.data-after-fin", "drop.sent-before-reply", "drop.incomplete-verb", "drop.ehlo-keyword", "drop.bare-cr",
    "drop.forwarded-octet-wrong", "octets-replaced",
]


@functools.cache
def property_test(compiler: str) -> Path:
    sources = [sanitized.TESTS / "harness.c", sanitized.TESTS / "wire.c", *sorted(FOLDER.glob("*.c"))]
    return sanitized.program(compiler, "property", sources)


def part(program: Path, seed: int, count: int, timeout: float) -> collections.Counter[str]:
    done = subprocess.run([program, "--seed", str(seed), "--count", str(count)], capture_output=True, text=True,
                          timeout=timeout, env=OPTIONS, errors="replace")
    if done.returncode:
        pytest.fail(f"exit status {done.returncode}\n{done.stderr[-6000:]}", pytrace=False)
    lines = done.stdout.splitlines()[1:]
    return collections.Counter({name: int(value) for name, value in (line.rsplit(" ", 1) for line in lines)})


def schedules(compiler: str, seed: int, count: int, timeout: float) -> collections.Counter[str]:
    """`count` schedules from `seed` on, in two halves at once; what both have counted."""
    program, half = property_test(compiler), count // 2
    with ThreadPoolExecutor(2) as workers:
        first = workers.submit(part, program, seed, half, timeout)
        second = workers.submit(part, program, seed + half, count - half, timeout)
        return first.result() + second.result()


def test_schedules() -> None:
    tally = schedules(sanitized.COMPILERS[0], seed=1, count=20_000, timeout=240)
    assert tally["schedules"] == 20_000
    assert tally["complete"] > 10_000
    assert [name for name in REACHED if not tally[name]] == []


@pytest.mark.long
@pytest.mark.parametrize("twentieth", range(20))
def test_a_million_schedules(twentieth: int) -> None:
    tally = schedules(sanitized.COMPILERS[0], seed=1_000_000 + twentieth * 50_000, count=50_000, timeout=900)
    assert tally["schedules"] == 50_000
