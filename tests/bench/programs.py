"""The benchmark's C programs, compiled when their source is newer."""
from __future__ import annotations

import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
CHECKOUT = SOURCES.parents[1]
BUILD = CHECKOUT / "build" / "bench"
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-pthread")


class ProgramError(RuntimeError):
    """A program could not be compiled; the text is the compiler's."""


def program(name: str) -> Path:
    """The path of tests/bench/NAME.c compiled. Raises ProgramError with what gcc said."""
    source, made = SOURCES / f"{name}.c", BUILD / name
    if made.exists() and made.stat().st_mtime >= source.stat().st_mtime:
        return made
    BUILD.mkdir(parents=True, exist_ok=True)
    fresh = BUILD / f"{name}.new"
    try:
        done = subprocess.run(["gcc", *FLAGS, "-o", fresh, source], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ProgramError("gcc is missing; packaging/prepare.sh installs what is needed") from None
    if done.returncode:
        raise ProgramError(f"{source}: {done.stderr}")
    fresh.replace(made)
    return made
