"""A raw SMTP client for the lab: it sends the octets it is told, in the packets it is told, and reads replies whole.

It knows no SMTP but where a reply ends (RFC 5321 4.2.1): whether what it sends is legal is the caller's affair.
"""
from __future__ import annotations

import socket
import time
from typing import Self

from nfqguard.lab.topology import Host, LabError

PAUSE_MAX = 1.0
REPLY_MAX = 1 << 20


class Dialogue:
    """A connection from a host of the lab; also a context manager. Everything said is kept in `sent` and `received`.

    address  IPv4 or IPv6, where to connect
    seconds  the bound of connecting and of waiting for each reply
    """

    def __init__(self, host: Host, address: str, port: int = 25, seconds: float = 15.0) -> None:
        """Connect. Raises OSError where nobody answers."""
        self.sent = bytearray()
        self.received = bytearray()
        self._unread = bytearray()
        self._seconds = seconds
        self._socket = host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            self._socket.settimeout(seconds)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.connect((address, port))
        except BaseException:
            self._socket.close()
            raise

    @property
    def port(self) -> int:
        """Our own port: by it the recorder knows the conversation."""
        return int(self._socket.getsockname()[1])

    def send(self, octets: bytes) -> None:
        """Send in one piece: one packet, where it fits the segment size."""
        self._socket.sendall(octets)
        self.sent += octets

    def type(self, octets: bytes, pause: float = 0.01) -> None:
        """Send octet by octet, a packet each, as telnet does; `pause` seconds apart, at most one."""
        if not 0 <= pause <= PAUSE_MAX:
            raise LabError(f"a pause of {pause} s is outside 0 to {PAUSE_MAX:.0f}")
        for octet in octets:
            self.send(bytes([octet]))
            time.sleep(pause)

    def reply(self) -> bytes:
        """The next reply, all its lines, ends included. LabError where none comes in time or the connection ends."""
        lines = bytearray()
        while True:
            line = self._line()
            lines += line
            if line[3:4] != b"-" or not line[:3].isdigit():
                return bytes(lines)

    def ask(self, octets: bytes) -> bytes:
        """Send in one piece and read one reply."""
        self.send(octets)
        return self.reply()

    def read_to_end(self) -> bytes:
        """All that comes until the other end closes. LabError where it does not in time."""
        while self._receive("the end of the connection"):
            pass
        rest, self._unread = bytes(self._unread), bytearray()
        return rest

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self) -> bytes:
        while b"\n" not in self._unread:
            if not self._receive("a reply"):
                raise LabError(f"the connection ended within a reply; so far came {bytes(self.received)!r}")
            if len(self._unread) > REPLY_MAX:
                raise LabError(f"a reply line of more than {REPLY_MAX} octets")
        end = self._unread.index(b"\n") + 1
        line = bytes(self._unread[:end])
        del self._unread[:end]
        return line

    def _receive(self, awaited: str) -> bool:
        """Take what is there; False at the end of the connection."""
        try:
            piece = self._socket.recv(65536)
        except TimeoutError:
            raise LabError(f"{awaited} did not come within {self._seconds:.0f} s; sent so far: {bytes(self.sent)!r}; "
                           f"received: {bytes(self.received)!r}") from None
        self._unread += piece
        self.received += piece
        return bool(piece)
