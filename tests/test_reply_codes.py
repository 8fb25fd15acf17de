"""A server may answer with any three digits: no code disturbs a flow, and none but 354 begins message data."""
from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from mail_gateway import Lines
from mail_lab import ADDRESSES, guarded, live_lab, stop
from wire import CLIENT, SERVER, Wire

from nfqguard.lab.dialogue import Dialogue
from nfqguard.lab.topology import Host, Lab

POLICIES = ("ios-smtp", "ios-esmtp", "asa", "modern")
NAMED = (400, 432, 472, 523, 538, 556, 571)
LINES = (b"NOOP\r\n", b"VRFY alice\r\n", b"RSET\r\n", b"MAIL FROM:<carol@outside.example>\r\n",
         b"RCPT TO:<alice@inside.example>\r\n", b"HELP\r\n")
OK = b"250 ok\r\n"
GREETING = b"220 mail.inside.example ESMTP *\r\n"
HELLO, OFFERS = b"HELO client.outside.example\r\n", b"250 mail.inside.example\r\n"


def _answer(code: int, lines: int) -> bytes:
    """A reply with this code: one line, or several."""
    return b"".join(b"%03d%bsaid so\r\n" % (code, b"-" if line < lines else b" ") for line in range(1, lines + 1))


def _converse(code: int, policy: str) -> Wire:
    """A session in which the server answers everything with this code, in one line and in two, and one with ok."""
    wire = Wire(policy).open()
    wire.say(SERVER, GREETING)
    wire.say(CLIENT, HELLO)
    wire.say(SERVER, OFFERS)
    for line in LINES:
        for reply in (_answer(code, 1), _answer(code, 2), OK):
            wire.say(CLIENT, line)
            wire.say(SERVER, reply)
    wire.say(CLIENT, b"DATA\r\n")
    wire.say(SERVER, _answer(code, 1))
    for said, heard in _rest(code):
        wire.say(CLIENT, said)
        wire.say(SERVER, heard)
    wire.close()
    return wire


def _rest(code: int) -> list[tuple[bytes, bytes]]:
    """What is said behind the reply to DATA: nothing behind 421, by which the server closes (RFC 5321, 3.8)."""
    data = [(b"EXPN root\r\n.\r\n", _answer(code, 1))] if code == 354 else []
    return [] if code == 421 else [*data, (b"EXPN root\r\nQUIT\r\n", _answer(code, 2) + b"221 bye\r\n")]


def _expected(code: int) -> tuple[bytes, bytes]:
    """What server and client must have read: all as it was said, but for EXPN, where it is a command and not data."""
    said = HELLO + b"".join(line * 3 for line in LINES) + b"DATA\r\n" + b"".join(each for each, _ in _rest(code))
    heard = GREETING + OFFERS + (_answer(code, 1) + _answer(code, 2) + OK) * len(LINES) + _answer(code, 1)
    return said.replace(b"EXPN root\r\nQUIT", b"XXXXXXXXX\r\nQUIT"), heard + b"".join(each for _, each in _rest(code))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("hundred", range(10))
def test_no_reply_code_disturbs_a_flow(policy: str, hundred: int) -> None:
    for code in range(hundred * 100, hundred * 100 + 100):
        wire = _converse(code, policy)
        said, heard = _expected(code)
        assert wire.at_server == said, code
        assert wire.at_client.partition(b"\n")[2] == heard.partition(b"\n")[2], code    # the greeting may be masked
        assert wire.dropped == [] and not any(end.reset for end in wire.ends), code
        assert all(end.finished for end in wire.ends), code


# ---- live: a server that answers with the code that the client's name asks for

class Scripted:
    """Answers each command of a session with one code; 354 and 221 are given where they belong."""

    def __init__(self, host: Host) -> None:
        self.heard: list[bytearray] = []
        self._listeners = [self._listen(host, address) for address in (host.ipv4, host.ipv6)]

    def close(self) -> None:
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _listen(self, host: Host, address: str) -> socket.socket:
        listener = host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 25))
        listener.listen()
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            lines = Lines(connection)
            self.heard.append(lines.heard)
            connection.sendall(GREETING)
            code = int(lines.next().split(b"code-")[1][:3])
            connection.sendall(OFFERS)
            while line := lines.next():
                if line == b"QUIT\r\n":
                    connection.sendall(b"221 bye\r\n")
                    return
                connection.sendall(_answer(code, 2 if line == b"HELP\r\n" else 1))


@pytest.fixture(scope="module")
def live() -> Iterator[tuple[Lab, Scripted]]:
    with live_lab() as lab:
        server = Scripted(lab.server)
        try:
            yield lab, server
        finally:
            server.close()


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE")
def test_the_codes_that_others_stumble_over_pass_live(live: tuple[Lab, Scripted]) -> None:
    lab, server = live
    with guarded(lab, "modern") as guard:
        for code in NAMED:
            for address in ADDRESSES:
                _speak(lab, server, address, code)
        counted = stop(guard)[0]
    assert (counted["dropped"], counted["resets"]) == (0, 0)
    assert counted["flows-opened"] == len(NAMED) * len(ADDRESSES) == counted["commands-masked"]


def _speak(lab: Lab, server: Scripted, address: str, code: int) -> None:
    hello = b"EHLO code-%03d.outside.example\r\n" % code
    with Dialogue(lab.client, address) as client:
        assert client.reply().startswith(b"220 ")
        assert client.ask(hello) == OFFERS
        for line in (*LINES, b"DATA\r\n", b"EXPN root\r\n"):
            assert client.ask(line) == _answer(code, 2 if line == b"HELP\r\n" else 1)
        assert client.ask(b"QUIT\r\n") == b"221 bye\r\n"
        client.read_to_end()
    said = b"".join((hello, *LINES, b"DATA\r\n", b"XXXXXXXXX\r\n", b"QUIT\r\n"))
    assert bytes(server.heard[-1]) == said
