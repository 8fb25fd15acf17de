"""What stands in the gateway's path: nothing, the accept-all loop, nfqguard, the script with scapy.

Each is brought up as its user would: deployment steps into the gateway's mangle FORWARD, then the process. After a run
the kernel's own counters say whether the traffic really went through the queue; a figure of a system that was not in
the path is worth less than none.
"""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nfqguard.lab.topology import Host, Lab

from .programs import CHECKOUT, SOURCES, program

PORT = 25
QUEUE = 0
START_TIMEOUT = 20.0
STOP_TIMEOUT = 10.0
LARGEST_PACKET = 65535
COPY_PACKET = 2
TICKS = os.sysconf("SC_CLK_TCK")


class RunError(RuntimeError):
    """A run gave no figure; the text says why."""


@dataclass(frozen=True)
class KernelQueue:
    """A line of /proc/net/netfilter/nfnetlink_queue (nfnetlink_queue.c, seq_show)."""

    number: int
    port: int
    waiting: int
    copy_mode: int
    copy_range: int
    dropped: int
    user_dropped: int
    queued: int


def kernel_queues(host: Host) -> dict[int, KernelQueue]:
    """The queues that have an owner in a namespace, by number."""
    text = host.call(lambda: Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text())
    queues = (KernelQueue(*map(int, line.split()[:8])) for line in text.splitlines())
    return {queue.number: queue for queue in queues}


def await_true(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until the condition holds. Raises RunError when it does not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RunError(f"{what}: not within {timeout:.0f} s")
        time.sleep(0.02)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process of ours: asked first, killed when it does not listen."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class System(ABC):
    """Something to be measured.

    name         in the report
    bulk_octets  of a bulk message; small where a large one would take minutes
    first        messages of the first warm-up run, by load; the rate it shows decides how many a run has
    """

    name: str
    bulk_octets = 25_000_000
    first: ClassVar[dict[str, int]] = {"bulk": 20, "small": 2000, "loss": 4, "distance": 8}

    @abstractmethod
    @contextmanager
    def in_path(self, lab: Lab, folder: Path) -> Iterator[Observer]:
        """In the path of the lab's gateway while the context lasts; `folder` is for files of its own."""
        yield Observer(lab)


class Observer:
    """Looks at a system from the kernel's side while it runs."""

    def __init__(self, lab: Lab, process: subprocess.Popen[Any] | None = None) -> None:
        self.lab = lab
        self.process = process

    def cpu_seconds(self) -> float | None:
        """User and system time of the inspecting process so far; None where there is none.

        What the kernel does for a packet after its verdict is done in the process's send(), and is counted here.
        """
        if self.process is None:
            return None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def check(self, octets: int, messages: int) -> int:
        """How many packets the queue has lost so far, full or out of memory: a slow system loses many.

        Raises RunError unless what stands in the path really got the packets of such a load.
        """
        queues = kernel_queues(self.lab.gateway)
        if self.process is None:
            if queues:
                raise RunError(f"queues {sorted(queues)} are bound, though nothing should be in the path")
            return 0
        if self.process.poll() is not None:
            raise RunError(f"the inspecting process ended by itself, status {self.process.returncode}")
        least = max(octets // LARGEST_PACKET, 4 * messages)
        queued = sum(queue.queued for queue in queues.values())
        if queued < least:
            raise RunError(f"only {queued} packets came to the queue, the load had at least {least}: "
                           "what was measured was not in the path")
        return sum(queue.dropped + queue.user_dropped for queue in queues.values())


class NoQueue(System):
    """The gateway alone: conntrack, NAT and the access list, as in all the others."""

    name = "no-queue"

    @contextmanager
    def in_path(self, lab: Lab, folder: Path) -> Iterator[Observer]:
        yield Observer(lab)


@contextmanager
def plain_deployment(lab: Lab) -> Iterator[None]:
    """Both directions of the mail port to the queue, without any further step."""
    steps = [["FORWARD", "-p", "tcp", side, str(PORT), "-j", "NFQUEUE", "--queue-num", str(QUEUE)]
             for side in ("--dport", "--sport")]
    try:
        for step in steps:
            lab.gateway.run(["iptables", "-w", "-t", "mangle", "-A", *step])
        yield
    finally:
        for step in steps:
            lab.gateway.run(["iptables", "-w", "-t", "mangle", "-D", *step], check=False)


@contextmanager
def inspecting(lab: Lab, argv: Sequence[str | Path], log: Path) -> Iterator[Observer]:
    """A process that binds the queue, from the moment that it does."""
    with log.open("wb") as output:
        process = lab.gateway.popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=CHECKOUT)
    try:
        await_true(lambda: process.poll() is not None or _bound(lab), START_TIMEOUT, f"binding queue {QUEUE}")
        if process.poll() is not None:
            raise RunError(f"ended with status {process.returncode} before it began: {_end_of(log)}")
        yield Observer(lab, process)
    except RunError as error:
        raise RunError(f"{error}; its last words: {_end_of(log) or 'none'}") from error
    finally:
        stop(process)


def _bound(lab: Lab) -> bool:
    queue = kernel_queues(lab.gateway).get(QUEUE)
    return queue is not None and queue.copy_mode == COPY_PACKET


def _end_of(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-4:])


class AcceptAll(System):
    """The least that any inspector can cost: accept_all.c."""

    name = "accept-all"

    @contextmanager
    def in_path(self, lab: Lab, folder: Path) -> Iterator[Observer]:
        argv: list[str | Path] = [program("accept_all"), "--queue", str(QUEUE), "--timeout", "600"]
        with plain_deployment(lab), inspecting(lab, argv, folder / "accept-all.log") as observer:
            yield observer


class Scapy(System):
    """The script that a user writes: scapy_mask.py."""

    name = "scapy"
    bulk_octets = 1_000_000
    first: ClassVar[dict[str, int]] = {"bulk": 1, "small": 60}

    @contextmanager
    def in_path(self, lab: Lab, folder: Path) -> Iterator[Observer]:
        argv: list[str | Path] = [sys.executable, SOURCES / "scapy_mask.py", str(QUEUE)]
        with plain_deployment(lab), inspecting(lab, argv, folder / "scapy.log") as observer:
            yield observer


class Nfqguard(System):
    """nfqguard as it is deployed: `nfqguard rules apply`, `nfqguard run`; one queue, and no limit of data."""

    def __init__(self, preset: str) -> None:
        self.preset = preset
        self.name = f"nfqguard-{preset}"

    @contextmanager
    def in_path(self, lab: Lab, folder: Path) -> Iterator[Observer]:
        configuration = folder / f"{self.name}.toml"
        configuration.write_text(
            f'policy = "bench"\n[policies.bench]\nextends = "{self.preset}"\nmax-data = 0\n'
            f'[deployment]\nqueue-first = {QUEUE}\n[events]\nfile = "{folder / "eve.json"}"\n')
        command = [sys.executable, "-m", "nfqguard"]
        rules = [*command, "rules"]
        try:
            self._deploy(lab, [*rules, "apply", "-c", str(configuration)])
            with inspecting(lab, [*command, "run", "-c", str(configuration)], folder / f"{self.name}.log") as observer:
                yield observer
        finally:
            with suppress(RunError):
                self._deploy(lab, [*rules, "remove", "-c", str(configuration)])

    @staticmethod
    def _deploy(lab: Lab, argv: list[str]) -> None:
        done = lab.gateway.run(argv, check=False, cwd=CHECKOUT)
        if done.returncode:
            words = (done.stderr or done.stdout).strip()
            raise RunError(f"{' '.join(argv[2:5])} gave status {done.returncode}: {words}")


SYSTEMS: dict[str, System] = {
    system.name: system for system in (NoQueue(), AcceptAll(), Nfqguard("ios-esmtp"), Scapy())
}
"""In the order of a round."""
