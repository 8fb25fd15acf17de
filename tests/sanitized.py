"""The engine compiled with its C tests under AddressSanitizer and UndefinedBehaviorSanitizer, into build/c.

A file is compiled again when it, or any header or table, is newer than its object.
"""
from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ROOT / "csrc"
TESTS = ROOT / "tests" / "c"
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
FLAGS = [
    "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-fno-strict-aliasing",
    "-fno-omit-frame-pointer", f"-I{ENGINE}", f"-I{TESTS}",
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def engine_sources() -> list[Path]:
    return sorted(ENGINE.glob("*.c"))


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def objects(compiler: str, sources: Iterable[Path], variant: str, flags: list[str]) -> list[Path]:
    """Compile each source into build/c/COMPILER-VARIANT where it is not there yet. Raises RuntimeError with the
    compiler's words."""
    folder = ROOT / "build" / "c" / f"{compiler}-{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    headers = [*ENGINE.glob("*.h"), *ENGINE.glob("*.def"), *TESTS.glob("*.h"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in headers)

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            _run([compiler, *FLAGS, *flags, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(2) as workers:
        return list(workers.map(compiled, sources))


def program(compiler: str, name: str, sources: Iterable[Path], extra: tuple[str, ...] = ()) -> Path:
    """Compile and link the engine and `sources` into build/c/COMPILER-NAME/NAME; returns its path."""
    flags = [*SANITIZERS, *extra]
    parts = objects(compiler, [*engine_sources(), *sources], name, flags)
    target = parts[0].parent / name
    if not target.exists() or target.stat().st_mtime < max(part.stat().st_mtime for part in parts):
        _run([compiler, *flags, *map(str, parts), "-o", str(target)])
    return target
