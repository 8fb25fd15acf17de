"""What really passed a host's interface: packets captured there and put together again into what each end received.

It captures on the veth of a host (AF_PACKET), so the mail server stays the real one and nothing stands between.
Rejected: a relay before the server, which would acknowledge and cut the stream its own way.
"""
from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Self

from nfqguard.lab.topology import Host, LabError

ETH_P_ALL = 3
ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
SOL_PACKET = 263
SO_RCVBUFFORCE = 33
PACKET_STATISTICS = 6
ETHERNET = 14
FIN, SYN, RST = 0x01, 0x02, 0x04
BUFFER = 32 << 20
OCTETS_MAX = 256 << 20
"""Payload kept, all conversations together; a recording that passes it is void."""

Address = IPv4Address | IPv6Address
End = tuple[Address, int]


@dataclass
class Stream:
    """One direction as its receiver got it: of octets that came twice the first stay, as in the receiver's kernel.

    conflicts  octets that came again with another value
    segments   how many packets carried data
    """

    octets: bytearray = field(default_factory=bytearray)
    conflicts: int = 0
    segments: int = 0
    finished: bool = False
    reset: bool = False
    _first: int | None = None
    _beyond: list[tuple[int, bytes]] = field(default_factory=list)

    def take(self, sequence: int, flags: int, payload: bytes) -> None:
        """Add a segment; sequence as on the wire."""
        if flags & SYN:
            self._first = (sequence + 1) & 0xFFFFFFFF
            return
        self.reset = self.reset or bool(flags & RST)
        if self._first is None or flags & RST:
            return
        if payload:
            self.segments += 1
            self._place((sequence - self._first) & 0xFFFFFFFF, payload)
        if flags & FIN:
            self.finished = True

    def _place(self, offset: int, payload: bytes) -> None:
        self._beyond.append((offset, payload))
        while ready := [piece for piece in self._beyond if piece[0] <= len(self.octets)]:
            for piece in ready:
                self._beyond.remove(piece)
                self._append(*piece)

    def _append(self, offset: int, payload: bytes) -> None:
        known = bytes(self.octets[offset:offset + len(payload)])
        self.conflicts += sum(old != new for old, new in zip(known, payload, strict=False)) if known != payload else 0
        self.octets += payload[len(known):]


@dataclass
class Conversation:
    """A connection as seen at the host. client: who opened it."""

    client: End
    server: End
    to_server: Stream = field(default_factory=Stream)
    to_client: Stream = field(default_factory=Stream)

    @property
    def over(self) -> bool:
        """Whether both ends have closed, or one has reset."""
        ends = (self.to_server, self.to_client)
        return all(end.finished for end in ends) or any(end.reset for end in ends)


class Recorder:
    """Records the TCP conversations of a port on a host's interface, from start() to stop(); a context manager.

    Streams that began before the recording are left out.
    """

    def __init__(self, host: Host, port: int = 25) -> None:
        self._host = host
        self._port = port
        self._conversations: dict[tuple[End, End], Conversation] = {}
        self._kept = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._capture = self._host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._capture.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._capture.bind((self._host.device, ETH_P_ALL))
        self._capture.settimeout(0.1)
        self._thread = threading.Thread(target=self._run, name=f"recorder on {self._host.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._capture.close()

    def conversation(self, client_port: int) -> Conversation:
        """The latest conversation that was opened from that port. LabError where there is none, or where the
        recording is void because packets were lost to it."""
        self._check()
        with self._lock:
            found = [each for each in self._conversations.values() if each.client[1] == client_port]
        if not found:
            raise LabError(f"no connection from port {client_port} reached {self._host.name}")
        return found[-1]

    def conversations(self) -> list[Conversation]:
        """All that began so far, in that order. LabError where the recording is void."""
        self._check()
        with self._lock:
            return list(self._conversations.values())

    def wait(self, client_port: int, until: Callable[[Conversation], bool] = lambda seen: seen.over,
             seconds: float = 10.0) -> Conversation:
        """Wait until a conversation is as far as `until` says (over, unless told otherwise), and return it."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(LabError):
                seen = self.conversation(client_port)
                with self._lock:
                    if until(seen):
                        return seen
            if time.monotonic() > deadline:
                raise LabError(f"what was awaited of {self.conversation(client_port)} did not come in {seconds:.0f} s")
            time.sleep(0.01)

    def _check(self) -> None:
        if self._failure is not None:
            raise LabError(f"the recording on {self._host.name} is void: {self._failure}") from self._failure

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                try:
                    frame = self._capture.recv(65536 + ETHERNET)
                except TimeoutError:
                    continue
                self._take(frame)
                if lost := struct.unpack("=II", self._capture.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]:
                    raise LabError(f"{lost} packets were not captured")
        except Exception as failure:
            self._failure = failure

    def _take(self, frame: bytes) -> None:
        segment = _parse(frame)
        if segment is None or self._port not in (segment.source[1], segment.destination[1]):
            return
        self._kept += len(segment.payload)
        if self._kept > OCTETS_MAX:
            raise LabError(f"more than {OCTETS_MAX} octets passed")
        to_server = segment.destination[1] == self._port
        client, server = (segment.source, segment.destination)[::1 if to_server else -1]
        with self._lock:
            if to_server and segment.flags & SYN:
                self._open(client, server)
            conversation = self._conversations.get((client, server))
            if conversation is not None:
                stream = conversation.to_server if to_server else conversation.to_client
                stream.take(segment.sequence, segment.flags, segment.payload)

    def _open(self, client: End, server: End) -> None:
        known = self._conversations.get((client, server))
        if known is None or known.over:
            self._conversations.pop((client, server), None)     # the newest one comes last
            self._conversations[client, server] = Conversation(client, server)


@dataclass(frozen=True)
class _Segment:
    source: End
    destination: End
    sequence: int
    flags: int
    payload: bytes


def _parse(frame: bytes) -> _Segment | None:
    """A frame's TCP segment; None for all else. Lengths are the IP header's: short frames are padded."""
    kind = int.from_bytes(frame[12:14])
    packet = frame[ETHERNET:]
    source: Address
    destination: Address
    if kind == ETH_P_IP and len(packet) >= 20 and packet[9] == socket.IPPROTO_TCP:
        source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        segment = packet[(packet[0] & 15) * 4:int.from_bytes(packet[2:4]) or len(packet)]
    elif kind == ETH_P_IPV6 and len(packet) >= 40 and packet[6] == socket.IPPROTO_TCP:
        source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        segment = packet[40:40 + int.from_bytes(packet[4:6]) if packet[4:6] != b"\0\0" else len(packet)]
    else:
        return None
    if len(segment) < 20:
        return None
    ports = struct.unpack("!HH", segment[:4])
    return _Segment((source, ports[0]), (destination, ports[1]), int.from_bytes(segment[4:8]), segment[13],
                    segment[(segment[12] >> 4) * 4:])
