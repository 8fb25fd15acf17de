"""The server whose application is the judge: it writes down every line that it reads from the kernel's TCP.

It reads as lenient servers do: a command ends at LF, blanks and NUL before the verb are skipped, case does not matter.
"""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from nfqguard.lab.topology import Host

FAST_OPEN_QUEUE = 64
REPLIES = {
    b"EHLO": b"250-server.example\r\n250-PIPELINING\r\n250 SIZE\r\n", b"HELO": b"250 server.example\r\n",
    b"NOOP": b"250 fine\r\n", b"RSET": b"250 fine\r\n", b"QUIT": b"221 bye\r\n", b"MAIL": b"250 sender fine\r\n",
    b"RCPT": b"250 recipient fine\r\n", b"EXPN": b"250 root and all the others\r\n", b"AUTH": b"503 not here\r\n",
}


@dataclass
class Conversation(asyncio.Protocol):
    """A connection as the application sees it."""

    commands: list[bytes] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    unread: bytearray = field(default_factory=bytearray)
    envelope: set[bytes] = field(default_factory=set)
    in_data: bool = False
    challenged: bool = False
    transport: asyncio.Transport | None = None
    peer: tuple[str, int] = ("", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peer = transport.get_extra_info("peername")[:2]
        self.transport.write(b"220 server.example ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self.unread += data
        while self._next()():
            pass

    def eof_received(self) -> bool:
        if self.unread and not self.in_data:
            self.commands.append(bytes(self.unread))
        return False

    @property
    def verbs(self) -> list[bytes]:
        """The first word of each command."""
        words = [line.strip(b"\0 \t\r\n").split(None, 1) for line in self.commands]
        return [found[0].upper() if found else b"" for found in words]

    def _next(self) -> Callable[[], bool]:
        if self.challenged:
            return self._response
        return self._message if self.in_data else self._command

    def _response(self) -> bool:
        """RFC 4954, 4: the line behind a 334 is no command, whatever it says; nobody is let in."""
        _, end, rest = self.unread.partition(b"\n")
        if not end:
            return False
        self.unread = rest
        self.challenged = False
        assert self.transport is not None
        self.transport.write(b"535 not you\r\n")
        return True

    def _command(self) -> bool:
        line, end, rest = self.unread.partition(b"\n")
        if not end:
            return False
        self.commands.append(bytes(line + end))
        self.unread = rest
        self.challenged = line.rstrip().upper() == b"AUTH LOGIN"
        self._reply(self.verbs[-1])
        return True

    def _reply(self, verb: bytes) -> None:
        assert self.transport is not None
        if verb in (b"MAIL", b"RCPT"):
            self.envelope.add(verb)
        if self.challenged:
            self.transport.write(b"334 VXNlcm5hbWU6\r\n")
        elif verb == b"DATA":
            self.in_data = len(self.envelope) == 2
            self.transport.write(b"354 go ahead\r\n" if self.in_data else b"503 MAIL and RCPT first\r\n")
        else:
            self.transport.write(REPLIES.get(verb, b"500 what?\r\n"))
        if verb == b"QUIT":
            self.transport.close()

    def _message(self) -> bool:
        """RFC 5321 4.1.1.4: the data ends at CRLF.CRLF, the first CRLF being that of the line before."""
        body, end, rest = (b"\r\n" + self.unread).partition(b"\r\n.\r\n")
        if not end:
            return False
        self.messages.append(bytes(body[2:] + b"\r\n" if body else b""))
        self.unread = bytearray(rest)
        self.in_data = False
        self.envelope.clear()
        assert self.transport is not None
        self.transport.write(b"250 taken\r\n")
        return True


class Server:
    """The listeners of both families on port 25 of a host, with TCP Fast Open."""

    def __init__(self, host: Host) -> None:
        self.conversations: list[Conversation] = []
        self._host = host
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        for family, address in ((socket.AF_INET, self._host.ipv4), (socket.AF_INET6, self._host.ipv6)):
            listener = self._host.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, FAST_OPEN_QUEUE)
            listener.bind((address, 25))
            loop = asyncio.get_running_loop()
            self._servers.append(await loop.create_server(self._accept, sock=listener, backlog=256))

    def _accept(self) -> Conversation:
        conversation = Conversation()
        self.conversations.append(conversation)
        return conversation

    def of(self, address: str, port: int) -> list[Conversation]:
        """The connections from there, oldest first."""
        return [conversation for conversation in self.conversations if conversation.peer == (address, port)]

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for conversation in self.conversations:
            if conversation.transport is not None:
                conversation.transport.abort()
