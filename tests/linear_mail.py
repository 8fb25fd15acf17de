"""A session whose octets are known beforehand at both ends, for networks that lose, reorder and duplicate.

The server answers the same whatever the network did, so that what either application must have read can be written down
without a network: said() and answered(), with the edits of a policy made on whole lines, by code that shares nothing
with the engine's.
"""
from __future__ import annotations

import base64
import random
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from nfqguard.lab.topology import Host, Lab

PORT = 25
SECONDS = 40.0
GREETING = b"220 mail.inside.example ESMTP ready at your service\r\n"
OFFERS = (b"PIPELINING", b"SIZE 10000000", b"STARTTLS", b"8BITMIME", b"CHUNKING", b"DSN", b"SMTPUTF8")
BODY_OCTETS = 1_000_000
HELP_LINES = 3_000
TRAPS = (b"..", b"...EXPN root", b"EXPN root", b"354 go ahead", b"QUIT", b"", b".. ", b"DATA", b"220 ready", b"RSET")
CHUNK = 1 << 18


def body(seed: int) -> bytes:
    """A message with its end of data: base64, and lines that an inspection could mistake for something else."""
    text = base64.b64encode(random.Random(seed).randbytes(BODY_OCTETS * 3 // 4))
    lines = [b"Subject: %d" % seed, b""]
    for number, at in enumerate(range(0, len(text), 76)):
        lines.append(text[at:at + 76])
        if number % 50 == 0:
            lines.append(TRAPS[number // 50 % len(TRAPS)])
    return b"".join(line + b"\r\n" for line in lines) + b".\r\n"


HELP = b"".join(b"214-%06d 250 OK and 220 and 354, a line of help as long as others are\r\n" % number
                for number in range(HELP_LINES)) + b"214 end of help\r\n"
EHLO = b"".join(b"250%c%b\r\n" % (b" " if word == OFFERS[-1] else b"-", word)
                for word in (b"mail.inside.example", *OFFERS))
MAIL, RCPT = b"MAIL FROM:<carol@outside.example>\r\n", b"RCPT TO:<alice@inside.example>\r\n"
OK, GO, UNKNOWN, BYE = b"250 2.0.0 Ok\r\n", b"354 go ahead\r\n", b"500 5.5.2 what?\r\n", b"221 2.0.0 Bye\r\n"
ANSWERS = {b"EHLO": EHLO, b"HELP": HELP, b"MAIL": OK, b"RCPT": OK, b"NOOP": OK, b"DATA": GO, b"QUIT": BYE}


def script(seed: int) -> list[list[bytes]]:
    """What a client says, in groups that it may send at once: behind each it must wait for all replies."""
    envelope = [MAIL, RCPT, b"DATA\r\n"]
    return [
        [b"EHLO client.outside.example\r\n"],
        [b"EXPN root\r\n", b"HELP\r\n", *envelope],
        [body(seed), b"NOOP\r\n", b"X-private 25\r\n", b"HELP\r\n", *envelope],
        [body(seed + 1), b"QUIT\r\n"],
    ]


def said(seed: int, header: bytes = b"") -> bytes:
    """What the server's application must read: forbidden commands are X, and each message begins with the header."""
    octets = b"".join(each for group in script(seed) for each in group)
    octets = octets.replace(b"DATA\r\nSubject", b"DATA\r\n" + header + b"Subject")
    octets = octets.replace(b"\r\nEXPN root\r\nHELP", b"\r\nXXXXXXXXX\r\nHELP", 1)
    return octets.replace(b"NOOP\r\nX-private 25\r\n", b"NOOP\r\nXXXXXXXXXXXX\r\n", 1)


def answered(seed: int, greeting: bytes = GREETING, ehlo: bytes = EHLO) -> bytes:
    """What the client's application must read."""
    del seed    # the replies are the same for every message
    return greeting + ehlo + UNKNOWN + HELP + OK + OK + GO + OK + OK + UNKNOWN + HELP + OK + OK + GO + OK + BYE


@dataclass
class Ear:
    """Reads a socket; `heard` is every octet that the application was given."""

    connection: socket.socket
    heard: bytearray = field(default_factory=bytearray)
    at: int = 0

    def until(self, end: bytes, overlap: int = 0) -> bytes:
        """What was said up to and with these octets, of which the last `overlap` heard before may be the first; at the
        end of the stream what is left."""
        search = max(self.at - overlap, 0)
        while (found := self.heard.find(end, search)) < 0:
            search = max(len(self.heard) - len(end) + 1, search)
            octets = self.connection.recv(CHUNK)
            if not octets:
                found = len(self.heard) - len(end)
                break
            self.heard += octets
        begin, self.at = self.at, found + len(end)
        return bytes(self.heard[begin:self.at])

    def reply(self) -> bytes:
        """The last line of a reply (RFC 5321, 4.2.1)."""
        while (line := self.until(b"\r\n"))[3:4] == b"-":
            pass
        return line


class Server:
    """Takes mail on both addresses and keeps what its application read, by the client's port."""

    def __init__(self, host: Host) -> None:
        self.heard: dict[int, bytearray] = {}
        self.failures: list[OSError] = []
        self._threads: list[threading.Thread] = []
        self._listeners = [self._listen(host, family, address) for family, address in
                           ((socket.AF_INET, host.ipv4), (socket.AF_INET6, host.ipv6))]

    def close(self) -> None:
        """End, when the sessions that began have ended."""
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._threads:
            thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in self._threads)

    def _listen(self, host: Host, family: socket.AddressFamily, address: str) -> socket.socket:
        listener = host.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, PORT))
        listener.listen()
        self._begin(self._accept, listener)
        return listener

    def _begin(self, target: object, argument: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(argument,), daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, address = listener.accept()
                self.heard[address[1]] = bytearray()
                connection.settimeout(SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._begin(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._converse(connection, Ear(connection, self.heard[connection.getpeername()[1]]))
        except OSError as error:
            self.failures.append(error)

    def _converse(self, connection: socket.socket, ear: Ear) -> None:
        connection.sendall(GREETING)
        while line := ear.until(b"\r\n"):
            verb = line[:4].upper()
            connection.sendall(ANSWERS.get(verb, UNKNOWN))
            if verb == b"DATA":
                ear.until(b"\r\n.\r\n", overlap=2)
                connection.sendall(OK)
            elif verb == b"QUIT":
                ear.until(b"nothing may follow")
                return


@dataclass(frozen=True)
class Session:
    """One that has ended: what either application read, and what the client's kernel said if it said anything."""

    port: int
    heard: bytes
    failure: OSError | None


def converse(lab: Lab, address: str, seed: int, pipelined: bool) -> Session:
    """Say the script, a command at a time, or a group at a time."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.client.socket(family) as connection:
        connection.settimeout(SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ear = Ear(connection)
        port = 0
        try:
            connection.connect((address, PORT))
            port = connection.getsockname()[1]
            ear.reply()
            for octets, replies in _turns(script(seed), pipelined):
                connection.sendall(octets)
                for _ in range(replies):
                    ear.reply()
            connection.shutdown(socket.SHUT_WR)
            ear.until(b"nothing may follow")
        except OSError as error:
            return Session(port, bytes(ear.heard), error)
        return Session(port, bytes(ear.heard), None)


def _turns(groups: Sequence[Sequence[bytes]], pipelined: bool) -> Iterator[tuple[bytes, int]]:
    for group in groups:
        if pipelined:
            yield b"".join(group), len(group)
        else:
            yield from ((octets, 1) for octets in group)


def masked_ehlo(keep: Sequence[bytes]) -> bytes:
    """The reply to EHLO with the lines of all other keywords overwritten."""
    lines = EHLO.splitlines(keepends=True)
    return lines[0] + b"".join(line if _word(line) in keep else line[:4] + b"X" * len(line[4:-2]) + b"\r\n"
                               for line in lines[1:])


def removed_ehlo(keep: Sequence[bytes]) -> bytes:
    """The reply to EHLO without the lines of all other keywords."""
    kept = [line for line in EHLO.splitlines(keepends=True)[1:] if _word(line) in keep]
    return EHLO.splitlines(keepends=True)[0] + b"".join(kept[:-1]) + b"250 " + kept[-1][4:]


def starred(greeting: bytes) -> bytes:
    """The greeting as ASA masks it."""
    return greeting[:4] + re.sub(rb"[^20\r\n]", b"*", greeting[4:])


def _word(line: bytes) -> bytes:
    return line[4:].split()[0]
