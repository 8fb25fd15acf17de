"""Three network namespaces for the deployment tests, and what runs in them.

      client              gateway              server
    10.77.1.2 ---veth--- 10.77.1.1
                         10.77.2.1 ---veth--- 10.77.2.2
    fd77:1::2            fd77:1::1
                         fd77:2::1            fd77:2::2

A thread enters a namespace with inside(); sockets opened and programs started there belong to it. Whatever a test
leaves open ends with destroy(); what a killed test run left behind, sweep() takes away at the next one.
"""
from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2 import IPRoute, NetNS, netns

PREFIX = "nqd"
SERVER = {4: "10.77.2.2", 6: "fd77:2::2"}
CLIENT = {4: "10.77.1.2", 6: "fd77:1::2"}
OPEN_WITHIN = 10.0
"""Seconds; without a block a connection takes a few milliseconds, on a busy machine more."""
BLOCKED_AFTER = 1.0
"""Seconds after which a connection that should not come about counts as blocked."""


def sweep() -> None:
    """Remove namespaces of runs whose process is gone."""
    for name in netns.listnetns():
        found = re.fullmatch(rf"{PREFIX}(\d+)[cgs]", name)
        if found and not Path(f"/proc/{found[1]}").exists():
            netns.remove(name)


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread is in the namespace; what it opens or starts stays there."""
    with open("/proc/thread-self/ns/net") as home:
        netns.setns(name)
        try:
            yield
        finally:
            netns.setns(home.fileno())


@dataclass
class ThreeHosts:
    """The namespaces' names, and what must be ended before they go."""

    client: str
    gateway: str
    server: str
    ends: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    def create(cls) -> ThreeHosts:
        """Make and connect all three."""
        names = [f"{PREFIX}{os.getpid()}{letter}" for letter in "cgs"]
        hosts = cls(*names)
        try:
            for name in names:
                netns.create(name)
                hosts.ends.callback(netns.remove, name)
                with inside(name):
                    # Without it IPv6 addresses cannot be used for the first second or two.
                    Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
            hosts._connect()
        except BaseException:
            hosts.destroy()
            raise
        return hosts

    def destroy(self) -> None:
        """End what runs, remove the namespaces."""
        self.ends.close()

    def _connect(self) -> None:
        for host, number in ((self.client, 1), (self.server, 2)):
            with IPRoute() as route:
                peer = {"ifname": f"to{number}", "net_ns_fd": self.gateway}
                route.link("add", ifname="gw", kind="veth", peer=peer, net_ns_fd=host)
            _configure(self.gateway, f"to{number}", number, 1)
            _configure(host, "gw", number, 2)
            with NetNS(host) as route:
                route.route("add", dst="default", gateway=f"10.77.{number}.1")
                route.route("add", dst="default", gateway=f"fd77:{number}::1", family=socket.AF_INET6)
        with inside(self.gateway):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")

    def iptables(self, backend: str, family: int, text: str) -> None:
        """Feed an operator's own steps to iptables-restore in the gateway."""
        command = [tool(backend, family, "restore"), "--noflush"]
        with inside(self.gateway):
            subprocess.run(command, input=text, text=True, check=True)

    def saved(self, backend: str, family: int, *options: str) -> list[str]:
        """iptables-save output of the gateway but for comments and, unless asked for with -c, counters."""
        with inside(self.gateway):
            done = subprocess.run([tool(backend, family, "save"), *options], capture_output=True, text=True, check=True)
        lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
        return lines if options else [re.sub(r" \[\d+:\d+\]$", "", line) for line in lines]

    def serve(self, *ports: int) -> None:
        """The server echoes on these ports, IPv4 and IPv6, until destroy()."""
        for port in ports:
            with inside(self.server):
                listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128)
            thread = threading.Thread(target=_echo, args=(listener,))
            thread.start()
            self.ends.callback(_stop_echo, listener, thread)

    def reaches(self, family: int, port: int, within: float = OPEN_WITHIN) -> bool:
        """Whether the client gets back from the server what it sends there."""
        try:
            with inside(self.client):
                connection = socket.create_connection((SERVER[family], port), timeout=within)
            with connection:
                connection.sendall(b"over the gateway")
                return connection.recv(64) == b"over the gateway"
        except TimeoutError:
            return False

    def is_blocked(self, family: int, port: int) -> bool:
        """Whether a connection from the client to the server does not come about."""
        return not self.reaches(family, port, BLOCKED_AFTER)

    def accept_all(self, *queues: int) -> AcceptAll:
        """A process in the gateway that binds the queues and accepts all; ends with destroy() at the latest."""
        return self.accept_all_in(self.gateway, *queues)

    def accept_all_in(self, name: str, *queues: int) -> AcceptAll:
        """The same in another namespace."""
        consumer = AcceptAll(name, queues)
        self.ends.callback(consumer.stop)
        return consumer

    def listen_to_wire(self) -> Wire:
        """What arrives at the server's interface from now on."""
        wire = Wire(self.server)
        self.ends.callback(wire.close)
        return wire


def tool(backend: str, family: int, action: str) -> str:
    """The program of a backend, by name."""
    return f"{'iptables' if family == 4 else 'ip6tables'}-{backend}-{action}"


def backends() -> list[str]:
    """The backends of which both families' programs are installed."""
    return [name for name in ("nft", "legacy") if all(shutil.which(tool(name, family, "save")) for family in (4, 6))]


def _configure(name: str, interface: str, number: int, host: int) -> None:
    with NetNS(name) as route:
        (index,) = route.link_lookup(ifname=interface)
        route.addr("add", index=index, address=f"10.77.{number}.{host}", prefixlen=24)
        route.addr("add", index=index, address=f"fd77:{number}::{host}", prefixlen=64)
        route.link("set", index=index, state="up")
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")


def _echo(listener: socket.socket) -> None:
    connections: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        while True:
            for ready in select.select([listener, *connections], [], [])[0]:
                if ready is listener:
                    try:
                        connections.append(stack.enter_context(listener.accept()[0]))
                    except OSError:
                        return
                elif not _answer(ready):
                    connections.remove(ready)


def _answer(connection: socket.socket) -> bool:
    try:
        octets = connection.recv(4096)
        connection.sendall(octets)
    except OSError:
        octets = b""
    if not octets:
        connection.close()
    return bool(octets)


def _stop_echo(listener: socket.socket, thread: threading.Thread) -> None:
    listener.shutdown(socket.SHUT_RDWR)  # wakes the thread; closing alone does not
    thread.join()
    listener.close()


CONSUMER = """
import json, select, sys
from netfilterqueue import NetfilterQueue
seen, bound = [], []
def taking(number):
    def take(packet):
        octets = packet.get_payload()
        at = (octets[0] & 15) * 4 if octets[0] >> 4 == 4 else 40
        ports = int.from_bytes(octets[at:at + 2], "big"), int.from_bytes(octets[at + 2:at + 4], "big")
        seen.append((number, *ports, octets[at + 13], len(octets)))
        packet.accept()
    return take
for number in map(int, sys.argv[1:]):
    queue = NetfilterQueue()
    queue.bind(number, taking(number))
    bound.append(queue)
print("bound", flush=True)
while True:
    ready = select.select([sys.stdin, *(queue.get_fd() for queue in bound)], [], [])[0]
    for queue in bound:
        if queue.get_fd() in ready:
            queue.run(block=False)
    if sys.stdin in ready:
        break
for queue in bound:
    queue.unbind()
print(json.dumps(seen))
"""


@dataclass(frozen=True)
class Seen:
    """A packet that a queue handed out: TCP's flags, and how many octets from the IP header on."""

    queue: int
    source_port: int
    destination_port: int
    flags: int
    octets: int

    @property
    def connection(self) -> int:
        """The client's port; servers here listen below 1024."""
        return max(self.source_port, self.destination_port)


class AcceptAll:
    """A NetfilterQueue consumer in a process of its own. It ends when its standard input does: it cannot outlive us."""

    def __init__(self, name: str, queues: tuple[int, ...]) -> None:
        command = [sys.executable, "-c", CONSUMER, *map(str, queues)]
        with inside(name):
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "bound\n":
            self.stop()
            raise RuntimeError(f"the consumer could not bind queue {queues}")

    def stop(self) -> list[Seen]:
        """Unbind and end; what the queues handed out, in order. A second call returns nothing."""
        if self._process.returncode is not None:
            return []
        try:
            output, _ = self._process.communicate("", timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise
        return [Seen(*row) for row in json.loads(output or "[]")]

    def kill(self) -> None:
        """End it as a crash would, with no chance to unbind."""
        self._process.kill()
        self._process.communicate()


class Wire:
    """Whole IP packets as they arrive at the server, by AF_PACKET."""

    def __init__(self, name: str) -> None:
        with inside(name):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(0x0003))
        self._socket.bind(("gw", 0x0003))
        self._socket.setblocking(False)

    def packets(self) -> list[bytes]:
        """Those that came since the last call, both families, ours (outgoing) left out."""
        arrived = []
        with contextlib.suppress(BlockingIOError):
            while True:
                octets, address = self._socket.recvfrom(65535)
                if address[2] != socket.PACKET_OUTGOING and address[1] in (0x0800, 0x86DD):
                    arrived.append(octets)
        return arrived

    def tcp_ports(self) -> Counter[int]:
        """How many TCP packets came since the last call, by destination port."""
        segments = [segment for segment in map(tcp_of, self.packets()) if segment is not None]
        return Counter(int.from_bytes(segment[2:4], "big") for segment in segments)

    def close(self) -> None:
        """End listening."""
        self._socket.close()


def tcp_of(octets: bytes) -> bytes | None:
    """The TCP segment in an IP packet without IPv6 extension headers; None where there is none."""
    if octets[0] >> 4 == 4:
        return octets[(octets[0] & 15) * 4 :] if octets[9] == socket.IPPROTO_TCP else None
    return octets[40:] if octets[6] == socket.IPPROTO_TCP else None
