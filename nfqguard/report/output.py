"""Where EVE JSON lines go: a file or standard output.

Records are written whole, one system call each, and nothing is buffered: after a crash the file holds all that was
written. A disk that is full loses records; it is said once, counted, and said again once writing works. It never stops
the caller, for the caller carries mail.
"""
from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Self

from nfqguard.report.eve import event_record, stats_record
from nfqguard.report.event import Event

log = logging.getLogger(__name__)

STDOUT = "-"
MODE = 0o640
"""Addresses of correspondents and pieces of their commands are not for everybody."""


class Output:
    """A writer of EVE JSON lines. `lost` counts the records that could not be written.

    file      path, or `-` for standard output; the folder is made where it is missing
    instance  64 bits that tell this run's flows from those of others; drawn at random unless given
    """

    def __init__(self, file: str, instance: int | None = None) -> None:
        """Raises OSError where the file cannot be opened at all: at the start that is a mistake to be corrected."""
        self.file = file
        self.lost = 0
        self._unsaid = 0
        self._torn = False
        self._instance = secrets.randbits(64) if instance is None else instance
        self._fd = self._open()

    def write(self, event: Event, queue: int | None = None) -> None:
        """Record an event of queue number `queue`. Raises nothing."""
        self.record(event_record(event, queue, self._instance))

    def statistics(self, queue: int, counters: Mapping[str, int], kernel: object = None) -> None:
        """Record what was counted on a queue; `kernel` is a dataclass of the kernel's own numbers. Raises nothing."""
        numbers = asdict(kernel) if is_dataclass(kernel) and not isinstance(kernel, type) else None
        self.record(stats_record(time.time_ns(), queue, counters, numbers))

    def record(self, record: Mapping[str, Any]) -> None:
        """Write one line. Raises nothing."""
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        if self._torn:
            line = b"\n" + line     # what was cut off stays a line of its own, and no valid one
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            self._lose(error.strerror or str(error))
            return
        if written < len(line):
            self._torn = True
            self._lose("only a part of the record could be written")
            return
        self._torn = False
        self._recover()

    def reopen(self) -> None:
        """Open the file anew, for logrotate. Keeps the old one, and says so, where that fails."""
        if self.file == STDOUT:
            return
        try:
            fresh = self._open()
        except OSError as error:
            log.error("%s cannot be opened again (%s): records go on to the old file", self.file, error.strerror)
            return
        os.dup2(fresh, self._fd, inheritable=False)     # at once: another thread may be writing
        os.close(fresh)

    def close(self) -> None:
        """Let go of the file. Standard output stays open."""
        if self._fd >= 0 and self.file != STDOUT:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> int:
        if self.file == STDOUT:
            return 1
        path = Path(self.file)
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, MODE)

    def _lose(self, reason: str) -> None:
        self.lost += 1
        self._unsaid += 1
        if self._unsaid == 1:
            log.error("records are lost, for %s cannot be written: %s", self.file, reason)

    def _recover(self) -> None:
        if self._unsaid:
            log.warning("%s can be written again; %d records were lost", self.file, self._unsaid)
            self._unsaid = 0
