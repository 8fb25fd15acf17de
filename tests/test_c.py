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
SUPPORT = [sanitized.TESTS / "harness.c", sanitized.TESTS / "wire.c"]
OPTIONS = os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"}


def sources() -> list[Path]:
    return sorted(sanitized.TESTS.glob("test_*.c"))


def names() -> list[str]:
    return [f"{path.stem.removeprefix('test_')}.{name}" for path in sources() for name in TEST.findall(path.read_text())]


@functools.cache
def c_tests(compiler: str) -> Path:
    return sanitized.program(compiler, "c_tests", [*SUPPORT, *sources()])


def run(program: Path, *arguments: str, timeout: float = 120) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=timeout, env=OPTIONS)
    if done.returncode:
        pytest.fail(f"exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[:6000]}", pytrace=False)
    return done.stdout


@pytest.mark.parametrize("compiler", sanitized.COMPILERS)
@pytest.mark.parametrize("name", names())
def test_c(name: str, compiler: str) -> None:
    run(c_tests(compiler), name)


@pytest.mark.parametrize("compiler", sanitized.COMPILERS)
def test_every_c_test_is_listed(compiler: str) -> None:
    assert sorted(run(c_tests(compiler), "--list").split()) == sorted(names())
