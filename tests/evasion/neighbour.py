"""A well-behaved session on a kernel socket, in the middle of which somebody else attacks."""
from __future__ import annotations

import asyncio
import socket

from nfqguard.lab.topology import Host

PATIENCE = 8.0
BODY = b"Subject: beside\r\n\r\nEXPN inside a message is nobody's business.\r\n"
BEFORE = ((b"EHLO neighbour.example\r\n", b"250"), (b"MAIL FROM:<n@neighbour.example>\r\n", b"250"))
BEHIND = ((b"RCPT TO:<s@server.example>\r\n", b"250"), (b"DATA\r\n", b"354"), (BODY + b".\r\n", b"250 taken"),
          (b"QUIT\r\n", b"221"))
COMMANDS = [line for line, _ in (*BEFORE, *BEHIND) if not line.startswith(BODY)]


class Neighbour:
    """A dialogue in lockstep: begin() up to MAIL, end() from RCPT to QUIT. Each returns what went wrong, or ""."""

    def __init__(self, host: Host, destination: str) -> None:
        self.socket = host.socket(socket.AF_INET6 if ":" in destination else socket.AF_INET)
        self.socket.setblocking(False)
        self._destination = destination
        self._unread = b""

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    async def begin(self) -> str:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.sock_connect(self.socket, (self._destination, 25)), PATIENCE)
            greeting = await asyncio.wait_for(self._reply(), PATIENCE)
        except OSError as error:
            return f"cannot connect: {error!r}"
        return "" if greeting.startswith(b"220") else f"greeted with {greeting!r}"

    async def speak(self, lines: tuple[tuple[bytes, bytes], ...]) -> str:
        for line, wanted in lines:
            try:
                await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.socket, line), PATIENCE)
                reply = await asyncio.wait_for(self._reply(), PATIENCE)
            except OSError as error:
                return f"{error!r} after {line[:20]!r}"
            if not reply.startswith(wanted):
                return f"{reply!r} to {line[:20]!r}"
        return ""

    async def _reply(self) -> bytes:
        while not self._complete():
            octets = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
            if not octets:
                return b"the end of the connection"
            self._unread += octets
        reply, self._unread = self._unread, b""
        return reply

    def _complete(self) -> bool:
        last = self._unread.rsplit(b"\r\n", 2)[-2:]
        return self._unread.endswith(b"\r\n") and last[0][3:4] != b"-"
