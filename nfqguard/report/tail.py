"""Lines of a file that grows, as `tail -F` gives them: across rotation, truncation, and times when it is not there."""
from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20
"""Octets read at once; a line that is longer is given out in pieces."""


class Tail:
    """A file's lines as they come. `read()` never waits and never raises for a file that is not there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._pending = b""

    def last(self, count: int) -> list[bytes]:
        """Start at the end: the last `count` complete lines, as far as they lie within the last CHUNK octets."""
        self.close()
        self._file = _open(self._path)
        if self._file is None or count == 0:
            return []
        start = max(0, self._file.seek(0, os.SEEK_END) - CHUNK)
        self._file.seek(start)
        lines = self.read()
        return lines[1 if start else 0:][-count:]

    def read(self) -> list[bytes]:
        """The complete lines that are new, without their ends; a line without an end is kept for the next time."""
        lines: list[bytes] = []
        if self._file is None:
            self._file = _open(self._path)
        while self._file is not None:
            chunk = self._file.read(CHUNK)
            if chunk:
                *whole, self._pending = (self._pending + chunk).split(b"\n")
                lines += whole
                if len(self._pending) > CHUNK:
                    lines.append(self._pending)
                    self._pending = b""
            elif _replaced(self._path, self._file):
                lines += [self._pending] if self._pending else []
                self.close()
                self._file = _open(self._path)
            else:
                break
        return lines

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._pending = None, b""


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb", buffering=0)
    except OSError:
        return None


def _replaced(path: Path, file: BinaryIO) -> bool:
    """Whether the name means another file by now, or this one has become shorter than what was read."""
    try:
        named = os.stat(path)
    except OSError:
        return False
    opened = os.fstat(file.fileno())
    return (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino) or opened.st_size < file.tell()
