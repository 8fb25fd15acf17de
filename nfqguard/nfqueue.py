"""One queue of the kernel: opened, bound and unbound by NetfilterQueue; its statistics as the kernel counts them.

NetfilterQueue never sees a packet: it binds with nothing to copy, so the kernel drops what comes until the engine's
loop has configured the socket. Its own loop would cut packets to 4096 octets and hold the GIL for each of them.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import netfilterqueue

STATISTICS = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
"""Of the network namespace that this thread is in (net/netfilter/nfnetlink_queue.c, seq_show)."""


class QueueError(RuntimeError):
    """A queue that cannot be bound; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class KernelQueue:
    """What the kernel says of a bound queue.

    `port`: the netlink port that bound it, for a program's first socket the number of its process. `waiting`: packets
    without a verdict. `dropped`: packets that found the queue full. `user_dropped`: packets that found the socket's
    buffer full. `received`: packets ever queued. The kernel's counters have 32 bits.
    """

    number: int
    port: int
    waiting: int
    dropped: int
    user_dropped: int
    received: int


def kernel_queue(number: int) -> KernelQueue | None:
    """What the kernel says of queue `number`; None where nobody has bound it or its statistics cannot be read."""
    try:
        lines = STATISTICS.read_text().splitlines()
    except OSError:
        return None
    for fields in ([int(field) for field in line.split()] for line in lines):
        if fields[0] == number:
            return KernelQueue(number, fields[1], fields[2], fields[5], fields[6], fields[7])
    return None


class BoundQueue:
    """A queue that is ours until `close()`. Packets are dropped until somebody configures the descriptor."""

    def __init__(self, number: int) -> None:
        """Open a netlink socket and bind queue `number` (0 to 65535). Raises QueueError where another process has it or
        the privilege is missing."""
        self.number = number
        self._handle: netfilterqueue.NetfilterQueue | None = None
        try:
            self._handle = netfilterqueue.NetfilterQueue()
            self._handle.bind(number, _never_called, mode=netfilterqueue.COPY_NONE)
        except OSError as error:
            self._handle = None
            raise QueueError(_why(number, error)) from error

    @property
    def fd(self) -> int:
        """The netlink socket. Raises QueueError once the queue is closed."""
        if self._handle is None:
            raise QueueError(f"queue {self.number} is closed")
        return int(self._handle.get_fd())

    def close(self) -> None:
        """Unbind: the kernel drops what waits. Nobody may read on the descriptor any more."""
        if self._handle is not None:
            self._handle.unbind()
            self._handle = None


def _never_called(packet: netfilterqueue.Packet) -> None:
    raise AssertionError(f"NetfilterQueue read packet {packet.id} although the engine drains this queue")


def _why(number: int, error: OSError) -> str:
    owner = kernel_queue(number)
    if owner is not None:
        return (f"queue {number} is bound already, by netlink port {owner.port} (as a rule the number of the process): "
                "stop that program, or choose another queue with queue-first")
    return (f"queue {number} cannot be bound ({error}): run as root or with CAP_NET_ADMIN, on a kernel with "
            "CONFIG_NETFILTER_NETLINK_QUEUE")
