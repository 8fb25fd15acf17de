"""The engine compiled with its C tests under AddressSanitizer and UndefinedBehaviorSanitizer, into build/c.

What is there already is kept while the digest of all that went into it is the same: times of files say nothing after a
checkout.
"""
from __future__ import annotations

import hashlib
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


def _digest(paths: Iterable[Path], command: list[str]) -> str:
    digest = hashlib.sha256(repr(command).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _make(target: Path, command: list[str], inputs: Iterable[Path]) -> Path:
    """Run the command that makes `target`, unless it was made of just these inputs. Raises RuntimeError with the
    compiler's words."""
    note, digest = target.with_name(f"{target.name}.sha256"), _digest(inputs, command)
    if target.exists() and note.exists() and note.read_text() == digest:
        return target
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    note.write_text(digest)
    return target


def objects(compiler: str, sources: Iterable[Path], variant: str, flags: list[str]) -> list[Path]:
    """Compile each source into build/c/COMPILER-VARIANT."""
    folder = ROOT / "build" / "c" / f"{compiler}-{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    headers = sorted([*ENGINE.glob("*.h"), *ENGINE.glob("*.def"), *TESTS.rglob("*.h")])

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        return _make(target, [compiler, *FLAGS, *flags, "-c", str(source), "-o", str(target)], [source, *headers])

    with ThreadPoolExecutor(2) as workers:
        return list(workers.map(compiled, sources))


def program(compiler: str, name: str, sources: Iterable[Path], extra: tuple[str, ...] = ()) -> Path:
    """Compile and link the engine and `sources` into build/c/COMPILER-NAME/NAME; returns its path."""
    flags = [*SANITIZERS, *extra]
    parts = objects(compiler, [*engine_sources(), *sources], name, flags)
    target = parts[0].parent / name
    return _make(target, [compiler, *flags, *map(str, parts), "-o", str(target)], parts)
