"""Captures as they lie on disk: records with their link headers, read and written by scapy, never dissected by it.

What goes out is always pcap, with nanoseconds where the input had them or could have had them (pcapng).
"""
from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NANOSECONDS = 1_000_000_000
RECORD_MAX = 1 << 18
"""Octets of a record; tcpdump's own bound (MAXIMUM_SNAPLEN)."""
VLAN_TYPES = frozenset({0x8100, 0x88A8, 0x9100})
VLAN_TAGS = 4
IP_TYPES = frozenset({0x0800, 0x86DD})

ETHERNET, COOKED, COOKED_2 = 1, 113, 276
RAW = frozenset({12, 14, 101, 228, 229})
"""Link types whose records begin with the IP header (https://www.tcpdump.org/linktypes.html)."""


class CaptureError(Exception):
    """A file that cannot be used as a capture; one sentence says why."""


@dataclass(frozen=True, slots=True)
class Record:
    """One packet of a capture: `time` in ns since the epoch, `data` from the link header on, `wire_length` its octets
    on the wire, which are more than there are in `data` where the capture cut it."""

    time: int
    data: bytes
    wire_length: int


def network_offset(link_type: int, frame: bytes) -> int | None:
    """Where the IP header begins, behind VLAN tags if there are any; None where the frame carries no IP."""
    if link_type in RAW:
        return 0
    kind, behind = {ETHERNET: (12, 14), COOKED: (14, 16), COOKED_2: (0, 20)}[link_type]
    if len(frame) < behind:
        return None
    ether_type = int.from_bytes(frame[kind:kind + 2])
    for _ in range(VLAN_TAGS):
        if ether_type not in VLAN_TYPES:
            break
        ether_type = int.from_bytes(frame[behind + 2:behind + 4])
        behind += 4
    return behind if ether_type in IP_TYPES and behind < len(frame) else None


def turned(link_type: int, header: bytes) -> bytes:
    """The link header of the opposite direction, as well as it can be known."""
    return header[6:12] + header[:6] + header[12:] if link_type == ETHERNET else header


def plain_header(link_type: int, version: int) -> bytes:
    """A link header for a packet whose neighbours nobody has seen; `version` is 4 or 6."""
    ether_type = (0x0800 if version == 4 else 0x86DD).to_bytes(2)
    if link_type == ETHERNET:
        return bytes(12) + ether_type
    if link_type == COOKED:
        return struct.pack("!HHH8s", 4, 1, 6, bytes(8)) + ether_type
    return ether_type + struct.pack("!HIHBB8s", 0, 0, 1, 4, 6, bytes(8)) if link_type == COOKED_2 else b""


class Capture:
    """A pcap or pcapng file, also gzipped, read record by record.

    link_type  of all records, as numbered by tcpdump
    nano       whether times may be finer than microseconds
    damage     once all is read: why reading ended early, or None
    """

    def __init__(self, path: Path) -> None:
        """Raises CaptureError where this is no capture or its link type is none that we know."""
        self.damage: str | None = None
        self._path = path
        self._count = 0
        self._time = 0
        self._reader = _reader(path)
        self._is_pcapng = not hasattr(self._reader, "linktype")
        self.link_type: int = -1 if self._is_pcapng else self._reader.linktype
        self.nano = self._is_pcapng or bool(self._reader.nano)
        self._position = 24     # behind pcap's file header
        self._ahead: Record | None = None
        if self._is_pcapng:     # tells its link type with each record: look one ahead
            self._ahead = self._read()
            self.link_type = _link_type_of_none(self._reader) if self._ahead is None else self.link_type
        if self.link_type not in {ETHERNET, COOKED, COOKED_2, *RAW}:
            self.close()
            raise CaptureError(f"{path}: link type {self.link_type} is not supported: capture on an Ethernet, "
                               "Linux cooked (v1, v2) or raw IP interface")

    def __iter__(self) -> Iterator[Record]:
        """Every record, once. Raises CaptureError where records of several link types are mixed."""
        if self._ahead is not None:
            yield self._ahead
            self._ahead = None
        while (record := self._read()) is not None:
            yield record

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _read(self) -> Record | None:
        with _complaints() as complaints:
            try:
                data, metadata = self._reader._read_packet(RECORD_MAX)
            except (EOFError, struct.error, ValueError) as error:
                self._ended(complaints[-1] if complaints else str(error))
                return None
        caplen = getattr(metadata, "caplen", len(data))
        if len(data) < caplen:
            self._ended("the next one is not complete")
            return None
        self._count += 1
        self._position += 16 + caplen
        if self._is_pcapng:
            self._check_link_type(metadata.linktype)
        self._time = self._time_of(metadata)
        return Record(self._time, data, max(metadata.wirelen, len(data)))

    def _time_of(self, metadata: Any) -> int:
        """Nanoseconds since the epoch; a simple packet block has no time and takes the one before."""
        if not self._is_pcapng:
            return int(metadata.sec) * NANOSECONDS + int(metadata.usec) * (1 if self.nano else 1000)
        if metadata.tshigh is None:
            return self._time
        time: int = ((metadata.tshigh << 32) + metadata.tslow) * NANOSECONDS // metadata.tsresol
        if time >= NANOSECONDS << 32:
            raise CaptureError(f"{self._path}: record {self._count} has a time after the year 2106: correct it, for "
                               "example with editcap -t")
        return time

    def _check_link_type(self, link_type: int) -> None:
        if self.link_type == -1:
            self.link_type = link_type
        elif self.link_type != link_type:
            raise CaptureError(f"{self._path}: record {self._count} has link type {link_type}, those before it "
                               f"{self.link_type}: replay the interfaces one by one")

    def _ended(self, complaint: str) -> None:
        """A file that simply ends leaves no complaint; a record header that is cut leaves octets read and unused."""
        if not complaint and not self._is_pcapng and self._reader.f.tell() > self._position:
            complaint = "the next one is not complete"
        if complaint:
            self.damage = (f"{self._path}: damaged behind record {self._count} ({complaint}): "
                           "what lies before was replayed")


class CaptureWriter:
    """A pcap file that appears under its name once it is complete: a run that fails leaves what was there."""

    def __init__(self, path: Path, link_type: int, nano: bool) -> None:
        """Raises CaptureError where the file cannot be written."""
        from scapy.utils import RawPcapWriter  # takes half a second: only who replays pays it

        self._path = path
        self._link_type = link_type
        self._unit = 1 if nano else 1000
        # What is no plain file (a pipe, /dev/null) must not be replaced by one.
        self._partial = path.with_name(path.name + ".part") if path.is_file() or not path.exists() else path
        try:
            self._writer = RawPcapWriter(str(self._partial), linktype=link_type, nano=nano, snaplen=RECORD_MAX)
            self._writer._write_header(None)
        except OSError as error:
            raise CaptureError(f"{path}: cannot be written ({error.strerror})") from error

    def write(self, record: Record) -> None:
        """Append a record. Raises CaptureError where the disk refuses."""
        seconds, rest = divmod(record.time, NANOSECONDS)
        try:
            self._writer._write_packet(record.data, self._link_type, sec=seconds, usec=rest // self._unit,
                                       wirelen=record.wire_length)
        except OSError as error:
            raise CaptureError(f"{self._path}: cannot be written ({error.strerror})") from error

    def finish(self) -> None:
        """The file is complete: give it its name."""
        try:
            self._writer.close()
            if self._partial != self._path:
                os.replace(self._partial, self._path)
        except OSError as error:
            raise CaptureError(f"{self._path}: cannot be written ({error.strerror})") from error

    def abandon(self) -> None:
        """The file is not wanted: leave nothing behind. Harmless after finish()."""
        with suppress(OSError):
            self._writer.close()
        if self._partial != self._path:
            self._partial.unlink(missing_ok=True)


def _reader(path: Path) -> Any:
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapNgReader

    with _complaints():
        try:
            return RawPcapNgReader(str(path))   # scapy's class for both: it falls back to pcap
        except OSError as error:
            raise CaptureError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (Scapy_Exception, EOFError, ValueError) as error:
            raise CaptureError(f"{path}: this is no pcap or pcapng capture") from error


def _link_type_of_none(reader: Any) -> int:
    """The link type of a pcapng file without any record."""
    return int(reader.interfaces[0][0]) if reader.interfaces else ETHERNET


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What scapy says of a damaged file. It logs that, filtered by frequency, and then pretends that the file ends."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("scapy.runtime")
    before = logger.handlers, logger.filters, logger.propagate
    logger.handlers, logger.filters, logger.propagate = [handler], [], False
    try:
        yield heard
    finally:
        logger.handlers, logger.filters, logger.propagate = before
