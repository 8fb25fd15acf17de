"""The cffi API-mode build of the engine: engine.h is the cdef, every other C file of this folder is compiled in.

NFQGUARD_CFLAGS adds compiler flags, for the sanitizers.
"""
import os
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = sorted(HERE.glob("*.c"))

ffibuilder = FFI()
ffibuilder.cdef((HERE / "engine.h").read_text())
ffibuilder.set_source(
    "nfqguard._engine",
    '#include "nq.h"',
    sources=[os.path.relpath(path) for path in SOURCES],
    include_dirs=[os.path.relpath(HERE)],
    depends=[os.path.relpath(path) for pattern in ("*.h", "*.def") for path in HERE.glob(pattern)],
    extra_compile_args=["-std=gnu11", "-O3", "-flto=auto", "-g", "-Wall", "-Wextra", "-Wno-unused-parameter",
                        "-fno-strict-aliasing", "-fvisibility=hidden", *os.environ.get("NFQGUARD_CFLAGS", "").split()],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
