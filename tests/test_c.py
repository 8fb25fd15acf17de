"""The tests of the engine in C (tests/c), each a test of its own, under both sanitizers and every compiler there is."""
from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest
import sanitized

TEST = re.compile(r"^TEST\((\w+)\)", re.MULTILINE)
SUPPORT = [sanitized.TESTS / name for name in ("harness.c", "wire.c", "feed.c", "every_match.c", "told.c")]
RUNNER = sanitized.TESTS / "runner.c"
OPTIONS = os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}


def sources() -> list[Path]:
    return sorted(sanitized.TESTS.glob("test_*.c"))


def names() -> list[str]:
    return [
        f"{path.stem.removeprefix('test_')}.{name}" for path in sources() for name in TEST.findall(path.read_text())
    ]


@pytest.fixture(scope="session", params=sanitized.COMPILERS)
def c_tests(request: pytest.FixtureRequest) -> Path:
    return sanitized.program(request.param, "c_tests", [*SUPPORT, RUNNER, *sources()])


def run(program: Path, *arguments: str, timeout: float = 120) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=timeout, env=OPTIONS)
    if done.returncode:
        pytest.fail(f"exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[:6000]}", pytrace=False)
    return done.stdout


@pytest.mark.parametrize("name", names())
def test_c(name: str, c_tests: Path) -> None:
    run(c_tests, name)


def test_every_c_test_is_listed(c_tests: Path) -> None:
    assert sorted(run(c_tests, "--list").split()) == sorted(names())


# ---- the deterministic mutation run, and the same under libFuzzer

REACHED = [
    "accepted", "edited", "dropped", "injected", "held", "ahead", "retransmissions-restored", "flows-opened",
    "commands", "replies", "messages", "commands-masked", "keywords-masked", "banners-masked", "resets", "events",
    "events-lost",
    "drop.short-packet", "drop.bad-checksum", "drop.bad-tcp-flags", "drop.midstream", "drop.handshake",
    "drop.wrong-interface", "drop.ack-beyond", "drop.outside-window", "drop.rst-sequence", "drop.data-after-fin",
    "drop.flow-table-full", "drop.memory", "drop.held-limit", "drop.held-already", "drop.held-expired",
    "drop.flow-is-closed", "parted", "drop.incomplete-verb", "drop.starttls-injection", "rules-matched",
    "octets-replaced", "dry-runs", "keywords-removed", "refusals", "connections-dropped", "drop.rule",
]


@functools.cache
def fuzz_engine(compiler: str) -> Path:
    return sanitized.program(compiler, "fuzz_engine", [*SUPPORT, sanitized.TESTS / "fuzz_engine.c"])


def fuzz(compiler: str, seed: int, packets: int, timeout: float) -> dict[str, int]:
    lines = run(fuzz_engine(compiler), str(seed), str(packets), timeout=timeout).splitlines()[1:]
    return {name: int(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@pytest.mark.parametrize("compiler", sanitized.COMPILERS)
def test_mutilated_dialogues(compiler: str) -> None:
    counters = fuzz(compiler, seed=1, packets=200_000, timeout=120)
    assert counters["packets"] >= 200_000
    assert [name for name in REACHED if not counters[name]] == []


@pytest.mark.long
@pytest.mark.parametrize("seed", [10_000_000, 20_000_000, 30_000_000, 40_000_000])
def test_more_mutilated_dialogues(seed: int) -> None:
    assert fuzz(sanitized.COMPILERS[0], seed, packets=5_000_000, timeout=600)["packets"] >= 5_000_000


@pytest.mark.long
@pytest.mark.skipif("clang" not in sanitized.COMPILERS, reason="libFuzzer comes with clang")
def test_choices_by_libfuzzer(tmp_path: Path) -> None:
    target = sanitized.program("clang", "fuzz_choices", [*SUPPORT, sanitized.TESTS / "fuzz_engine.c"],
                               ("-fsanitize=fuzzer", "-DLIBFUZZER"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    run(target, str(corpus), "-max_total_time=20", "-max_len=20000", "-len_control=20", "-timeout=10",
        f"-artifact_prefix={tmp_path}/", timeout=180)
    assert len(list(corpus.iterdir())) > 20
