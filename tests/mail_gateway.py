"""A gateway that runs `nfqguard run`, a small mail server and a client on its sides, for the tests of the queue.

    client ──── outside  gateway  inside ──── server
                mangle FORWARD, tcp port 25: IPv4 -> queue 40, IPv6 -> queue 41
"""
from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfqguard.lab.topology import Host, Lab

Family = socket.AddressFamily
FAMILIES = {socket.AF_INET: 40, socket.AF_INET6: 41}
CONFIGURATION = """\
policy = "tested"
[policies.tested]
extends = "ios-esmtp"
max-data = {max_data}
[deployment]
queue-first = 40
queue-count = 2
on-overload = "{on_overload}"
[engine]
large-blocks = {large_blocks}
"""
DEFAULTS = {"max_data": 0, "on_overload": "drop", "large_blocks": 1024}
PATIENCE = 10.0


class Server:
    """A small SMTP server that remembers each connection's octets, as its application read them."""

    def __init__(self, host: Host, family: Family) -> None:
        self.received: list[bytearray] = []
        self.resets = 0
        self._listener = host.socket(family)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host.ipv4 if family == socket.AF_INET else host.ipv6, 25))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        heard = bytearray()
        self.received.append(heard)
        try:
            with connection:
                self._converse(connection, heard)
        except ConnectionResetError:
            self.resets += 1

    def _converse(self, connection: socket.socket, heard: bytearray) -> None:
        lines = Lines(connection, heard)
        connection.sendall(b"220 mail.example ESMTP\r\n")
        while line := lines.next():
            verb = line[:4].upper()
            if verb == b"DATA":
                connection.sendall(b"354 go ahead\r\n")
                while lines.next() not in (b".\r\n", b""):
                    pass
            known = {b"EHLO": b"250-mail.example\r\n250 SIZE\r\n", b"QUIT": b"221 bye\r\n"}
            legal = verb in (b"MAIL", b"RCPT", b"DATA", b"NOOP", b"RSET")
            connection.sendall(known.get(verb, b"250 fine\r\n" if legal else b"500 what?\r\n"))
            if verb == b"QUIT":
                return


@dataclass
class Lines:
    """Lines off a socket; `heard` keeps every octet as it came."""

    connection: socket.socket
    heard: bytearray = field(default_factory=bytearray)
    _taken: int = 0

    def next(self) -> bytes:
        """The next line with its end, or what is left at the end of the stream."""
        while (end := self.heard.find(b"\n", self._taken)) < 0:
            octets = self.connection.recv(1 << 18)
            if not octets:
                end = len(self.heard) - 1
                break
            self.heard += octets
        line = bytes(self.heard[self._taken : end + 1])
        self._taken = end + 1
        return line

    def reply(self) -> bytes:
        """A whole reply (RFC 5321, 4.2.1): up to the line with a blank behind its code."""
        reply = self.next()
        while reply and reply.rsplit(b"\r\n", 2)[-2][3:4] == b"-":
            reply += self.next()
        return reply


class Client:
    """A mail client that says one thing at a time."""

    def __init__(self, lab: Lab, family: Family, patience: float = PATIENCE) -> None:
        self.socket = lab.client.socket(family)
        self.socket.settimeout(patience)
        self.socket.connect((lab.public_ipv4 if family == socket.AF_INET else lab.public_ipv6, 25))
        self._lines = Lines(self.socket)

    def hear(self) -> bytes:
        return self._lines.reply()

    def say(self, octets: bytes) -> bytes:
        self.socket.sendall(octets)
        return self.hear()


@dataclass
class Running:
    """A daemon under test."""

    process: subprocess.Popen[str]
    events_file: Path

    def stop(self) -> tuple[int, str]:
        """End it as systemd would. Returns exit status and what it said."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said

    def freeze(self) -> None:
        """Stop every thread where it stands."""
        self.process.send_signal(signal.SIGSTOP)
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            while "State:\tT" not in (task / "status").read_text():
                time.sleep(0.001)

    def thaw(self) -> None:
        """Go on after freeze()."""
        self.process.send_signal(signal.SIGCONT)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.events_file.read_text().splitlines()]

    def statistics(self) -> dict[int, dict[str, Any]]:
        """What was counted until the stop, by queue."""
        return {event["stats"]["queue"]: event["stats"] for event in self.events() if event["event_type"] == "stats"}


class Gateway:
    """The lab with the steps to our queues, and a way to run the daemon there."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self._folder = folder
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(folder / "notify"))
        self._notified.settimeout(PATIENCE)
        for program, family in (("iptables", socket.AF_INET), ("ip6tables", socket.AF_INET6)):
            for port in ("--dport", "--sport"):
                lab.gateway.run([program, "-w", "-t", "mangle", "-A", "FORWARD", "-p", "tcp", port, "25",
                                 "-j", "NFQUEUE", "--queue-num", str(FAMILIES[family])])

    def close(self) -> None:
        self._notified.close()
        for program in ("iptables", "ip6tables"):
            self.lab.gateway.run([program, "-w", "-t", "mangle", "-F", "FORWARD"])

    @contextmanager
    def daemon(self, **keys: int | str) -> Iterator[Running]:
        """The daemon, ready, with these keys of DEFAULTS changed. Killed at the end if it still lives."""
        running = self.start(**keys)
        try:
            while b"READY=1" not in self._notified.recv(4096):
                pass
            yield running
        finally:
            if running.process.poll() is None:
                running.process.kill()
                running.process.communicate()

    def start(self, **keys: int | str) -> Running:
        configuration = self._folder / "nfqguard.toml"
        configuration.write_text(CONFIGURATION.format(**{**DEFAULTS, **keys}))
        events = self._folder / f"eve-{time.monotonic_ns()}.json"
        process = self.lab.gateway.popen(
            [sys.executable, "-m", "nfqguard", "run", "-c", configuration, "--events", str(events)],
            env={**os.environ, "NOTIFY_SOCKET": str(self._folder / "notify")}, stderr=subprocess.PIPE, text=True)
        return Running(process, events)

    def bound(self) -> set[int]:
        """The queues that somebody has bound."""
        text = self.lab.gateway.call(Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text)
        return {int(line.split()[0]) for line in text.splitlines()}


def checksum_errors(host: Host) -> int:
    """Segments that a host's kernel threw away for their checksum: TcpInCsumErrors."""
    text = host.call(Path("/proc/thread-self/net/snmp").read_text)
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["InCsumErrors"])


BODY = b"".join(b"%08d abcdefghijklmnopqrstuvwxyz and the rest of a line\r\n" % number for number in range(50_000))


def dialogue(client: Client) -> None:
    assert client.hear() == b"220 mail.example ESMTP\r\n"
    assert client.say(b"EHLO client.example\r\n").endswith(b"250 SIZE\r\n")
    assert client.say(b"EXPN staff\r\n") == b"500 what?\r\n"
    assert client.say(b"MAIL FROM:<a@client.example>\r\n") == b"250 fine\r\n"
    assert client.say(b"RCPT TO:<b@mail.example>\r\n") == b"250 fine\r\n"
    assert client.say(b"DATA\r\n") == b"354 go ahead\r\n"
    assert client.say(BODY + b".\r\n") == b"250 fine\r\n"
    assert client.say(b"QUIT\r\n") == b"221 bye\r\n"


EXPECTED = (b"EHLO client.example\r\nXXXXXXXXXX\r\nMAIL FROM:<a@client.example>\r\nRCPT TO:<b@mail.example>\r\nDATA\r\n"
            + BODY + b".\r\nQUIT\r\n")


def pour(sender: socket.socket) -> None:
    try:
        while True:
            sender.sendall(BODY)
    except OSError:
        return
