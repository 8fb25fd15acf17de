"""What is sent through the gateway: mail in bulk by our pump, small mail by Postfix's own test programs."""
from __future__ import annotations

import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfqguard.lab.roots import Progress, fetch
from nfqguard.lab.topology import Host, Lab

from .cable import Fault, cabled
from .programs import program
from .systems import PORT, RunError, System, await_true, stop

RUN_TIMEOUT = 60
LISTEN_TIMEOUT = 10.0
TCP_LISTEN = "0A"
SMALL_OCTETS = 4096
SMALL_SESSIONS = 20
BACKLOG = 1000


@dataclass(frozen=True)
class Delivered:
    """What one run carried: octets of message data, messages, seconds from the first connection to the last reply."""

    octets: int
    messages: int
    seconds: float


class Load(ABC):
    """A scenario.

    name      in the report
    metric    what its rate is called there
    without   systems that are not measured in it
    cpu_unit  what cpu_seconds are told for: runs differ in length, so seconds of a run could not be compared. A GB is
              10^9 octets
    """

    name: str
    metric: str
    cpu_unit: str
    without: frozenset[str] = frozenset()
    folder: Path

    def prepare(self, folder: Path, progress: Progress) -> None:
        """Get ready what the runs need; once, and not while anything is measured. `folder` is for logs."""
        self.folder = folder

    @abstractmethod
    def run(self, lab: Lab, system: System, messages: int, verify: bool = False) -> Delivered:
        """Send so many messages from the lab's client to its server. `verify`: compare what arrived with what was sent.

        Raises RunError where not every message arrived.
        """

    @abstractmethod
    def rate(self, delivered: Delivered) -> float:
        """The metric, in its unit."""

    @abstractmethod
    def cpu(self, seconds: float, delivered: Delivered) -> float:
        """CPU seconds of a run, for one cpu_unit."""


class Bulk(Load):
    """Large messages, one after another, in one session."""

    name = "bulk"
    metric = "bits_per_second"
    cpu_unit = "GB"
    sessions = 1

    def prepare(self, folder: Path, progress: Progress) -> None:
        super().prepare(folder, progress)
        program("pump")

    def run(self, lab: Lab, system: System, messages: int, verify: bool = False) -> Delivered:
        pump = program("pump")
        shared = ["--port", str(PORT), "--sessions", str(self.sessions), "--timeout", str(RUN_TIMEOUT)]
        shared += ["--checksum"] if verify else []
        listener: list[str | Path] = [pump, "sink", "--host", lab.server.ipv4, *shared]
        sender: list[str | Path] = [pump, "source", "--host", lab.public_ipv4, "--messages", str(messages),
                                    "--size", str(system.bulk_octets), *shared]
        with _listening(lab.server, listener, self.folder / "sink.log") as sink:
            source = _bounded(lab.client, sender)
            received, _ = sink.communicate(timeout=RUN_TIMEOUT)
        sent, arrived = json.loads(source), json.loads(received or "{}")
        differing = [key for key in ("octets", "messages", "checksum") if sent.get(key) != arrived.get(key)]
        if differing:
            raise RunError(f"sent and received differ in {', '.join(differing)}: {sent} and {arrived}")
        return Delivered(sent["octets"], sent["messages"], sent["seconds"])

    def rate(self, delivered: Delivered) -> float:
        return delivered.octets * 8 / delivered.seconds

    def cpu(self, seconds: float, delivered: Delivered) -> float:
        return seconds * 1e9 / delivered.octets


class Loss(Bulk):
    """Bulk mail of which one packet in two hundred is lost before the gateway looks at it, each way.

    The sender cuts its segments itself and the gateway does not join them again, so that what is lost is a packet of
    the wire, not a segment of 64 KiB.
    """

    name = "loss"
    without = frozenset({"scapy"})
    probability = "0.005"

    def run(self, lab: Lab, system: System, messages: int, verify: bool = False) -> Delivered:
        with ExitStack() as stack:
            for host, device, offloads in ((lab.client, lab.client.device, ("tso", "gso")),
                                           (lab.gateway, lab.gateway.device, ("gro",))):
                stack.enter_context(_without_offloads(host, device, offloads))
            for step in (["-i", "outside", "-p", "tcp", "--dport", str(PORT)],
                         ["-i", "inside", "-p", "tcp", "--sport", str(PORT)]):
                stack.enter_context(_losing(lab.gateway, step, self.probability))
            return super().run(lab, system, messages, verify)


class Distance(Bulk):
    """Bulk mail over a round trip of 50 ms that loses nothing."""

    name = "distance"
    without = frozenset({"scapy"})
    one_way = 25_000
    """Microseconds."""

    def run(self, lab: Lab, system: System, messages: int, verify: bool = False) -> Delivered:
        with cabled(lab, lab.client, Fault(delay=self.one_way)) as cable:
            delivered = super().run(lab, system, messages, verify)
        if short := [way for way in cable.counted.values() if way["overflowed"] or way["refused"]]:
            raise RunError(f"the cable itself lost frames: {short}")
        return delivered


class Small(Load):
    """4 kB messages in twenty sessions at once, by Postfix's smtp-source and smtp-sink."""

    name = "small"
    metric = "messages_per_second"
    cpu_unit = "1000 messages"

    def prepare(self, folder: Path, progress: Progress) -> None:
        super().prepare(folder, progress)
        self.root = fetch("postfix", progress)

    def run(self, lab: Lab, system: System, messages: int, verify: bool = False) -> Delivered:
        # as root the sink insists on becoming somebody else
        sink = self.root.argv(["smtp-sink", "-u", "nobody", "-4", f"{lab.server.ipv4}:{PORT}", str(BACKLOG)])
        source = self.root.argv(["sh", "-c", 'echo; read -r go && exec "$@"', "sh", "smtp-source", "-4", "-d",
                                 "-s", str(SMALL_SESSIONS), "-l", str(SMALL_OCTETS), "-m", str(messages),
                                 f"{lab.public_ipv4}:{PORT}"])
        with _listening(lab.server, sink, self.folder / "sink.log"):
            seconds = _timed(lab.client, source)
        return Delivered(messages * SMALL_OCTETS, messages, seconds)

    def rate(self, delivered: Delivered) -> float:
        return delivered.messages / delivered.seconds

    def cpu(self, seconds: float, delivered: Delivered) -> float:
        return seconds * 1e3 / delivered.messages


@contextmanager
def _without_offloads(host: Host, device: str, offloads: Sequence[str]) -> Iterator[None]:
    """Offloads of a device that are on, off meanwhile."""
    shown = str(host.run(["ethtool", "-k", device]).stdout)
    names = {"tso": "tcp-segmentation-offload", "gso": "generic-segmentation-offload", "gro": "generic-receive-offload"}
    on = [short for short in offloads if f"{names[short]}: on" in shown]
    try:
        for short in on:
            host.run(["ethtool", "-K", device, short, "off"])
        yield
    finally:
        for short in reversed(on):
            host.run(["ethtool", "-K", device, short, "on"])


@contextmanager
def _losing(host: Host, match: Sequence[str], probability: str) -> Iterator[None]:
    """A host loses a share of what matches before it looks at it. Raises RunError where nothing was lost."""
    step = [*match, "-m", "statistic", "--mode", "random", "--probability", probability, "-j", "DROP"]
    host.run(["iptables", "-w", "-t", "raw", "-I", "PREROUTING", "1", *step])
    try:
        yield
        lines = str(host.run(["iptables", "-w", "-t", "raw", "-nvxL", "PREROUTING"]).stdout).splitlines()
        if not any(int(line.split()[0]) for line in lines if "statistic" in line):
            raise RunError("nothing was lost, so this measured something else")
    finally:
        host.run(["iptables", "-w", "-t", "raw", "-D", "PREROUTING", *step])


def _is_listening(host: Host) -> bool:
    lines = host.call(lambda: Path("/proc/thread-self/net/tcp").read_text()).splitlines()[1:]
    rows = (line.split() for line in lines)
    return any(row[1].endswith(f":{PORT:04X}") and row[3] == TCP_LISTEN for row in rows)


@contextmanager
def _listening(host: Host, argv: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[Any]]:
    """A server, from the moment that it listens; what it says on standard error goes to the log."""
    with log.open("wb") as errors:
        server = host.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        await_true(lambda: server.poll() is not None or _is_listening(host), LISTEN_TIMEOUT,
                   f"listening on port {PORT}")
        if server.poll() is not None:
            raise RunError(f"the sink ended with status {server.returncode}: {log.read_text().strip()}")
        yield server
    finally:
        stop(server)
        if server.stdout:
            server.stdout.close()


def _bounded(host: Host, argv: Sequence[str | Path]) -> str:
    """What a program says on standard output. Raises RunError where it fails or takes too long."""
    try:
        return str(host.run(argv, timeout=RUN_TIMEOUT + 5, capture_output=True).stdout)
    except subprocess.CalledProcessError as error:
        raise RunError(f"the source ended with status {error.returncode}: {error.stderr.strip()}") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"the source was not done after {RUN_TIMEOUT} s") from None


def _timed(host: Host, argv: Sequence[str]) -> float:
    """Seconds that a program takes. It says a line when it is ready and starts at one from us, so that neither entering
    the namespaces nor mounting the root is measured."""
    source = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert source.stdout is not None
        source.stdout.readline()
        began = time.perf_counter()
        _, errors = source.communicate("go\n", timeout=RUN_TIMEOUT)
        seconds = time.perf_counter() - began
    except subprocess.TimeoutExpired:
        raise RunError(f"the source was not done after {RUN_TIMEOUT} s") from None
    finally:
        stop(source)
    if source.returncode or errors.strip():
        raise RunError(f"the source ended with status {source.returncode}: {errors.strip()}")
    return seconds


LOADS: dict[str, Load] = {load.name: load for load in (Bulk(), Small(), Loss(), Distance())}
