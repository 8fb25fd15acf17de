"""What goes wrong around the queue loop: overload, a process that stands still, an empty pool, links that go down."""
from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mail_gateway import EXPECTED, PATIENCE, Client, Gateway, Server, dialogue

from nfqguard.lab.topology import Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

QUEUE = 40
QUEUE_LENGTH = 1024


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Hosts for one test alone: what an earlier test's connections still retransmit would be counted in the queue."""
    with Lab(f"nqfault{os.getpid()}") as lab:
        yield lab


@pytest.fixture
def gateway(lab: Lab, tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(lab, tmp_path)
    yield gateway
    gateway.close()


@pytest.fixture
def server(lab: Lab) -> Iterator[Server]:
    server = Server(lab.server, socket.AF_INET)
    yield server
    server.close()


def flood(lab: Lab, count: int) -> None:
    """SYNs of as many connections, by raw socket: nobody waits for an answer."""
    from scapy.layers.inet import IP, TCP

    source, destination = lab.client.ipv4, lab.public_ipv4
    with lab.client.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for port in range(20_000, 20_000 + count):
            packet = IP(src=source, dst=destination) / TCP(sport=port, dport=25, flags="S", seq=random.getrandbits(32))
            raw.sendto(bytes(packet), (destination, 0))


def kernel_counts(gateway: Gateway) -> tuple[int, int]:
    """Packets that wait in the queue, and that found it full."""
    text = gateway.lab.gateway.call(Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text)
    fields = next(line.split() for line in text.splitlines() if int(line.split()[0]) == QUEUE)
    return int(fields[2]), int(fields[5])


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_overload_drops_and_is_counted(gateway: Gateway, server: Server) -> None:
    with gateway.daemon() as running:
        running.freeze()
        flood(gateway.lab, QUEUE_LENGTH + 200)
        waiting, dropped = kernel_counts(gateway)
        assert (waiting, dropped) == (QUEUE_LENGTH, 200)
        with pytest.raises(TimeoutError):
            Client(gateway.lab, socket.AF_INET, patience=1.5)
        running.thaw()
        wait_until(lambda: kernel_counts(gateway)[0] == 0, "the loop does not come round again")
        dialogue(Client(gateway.lab, socket.AF_INET))
        status, said = running.stop()
    assert status == 0, said
    assert bytes(server.received[-1]) == EXPECTED
    assert running.statistics()[QUEUE]["kernel"]["dropped"] >= 201


def test_overload_passes_uninspected_only_where_asked(gateway: Gateway, server: Server) -> None:
    with gateway.daemon(on_overload="accept") as running:
        running.freeze()
        flood(gateway.lab, QUEUE_LENGTH)
        client = Client(gateway.lab, socket.AF_INET)
        assert client.hear() == b"220 mail.example ESMTP\r\n"
        assert client.say(b"EXPN staff\r\n") == b"500 what?\r\n"
        running.thaw()
        client.socket.close()
    assert bytes(server.received[-1]) == b"EXPN staff\r\n"


def test_a_process_that_stands_still_lets_nothing_pass_and_goes_on(gateway: Gateway, server: Server) -> None:
    with gateway.daemon() as running:
        client = Client(gateway.lab, socket.AF_INET)
        client.hear()
        client.say(b"EHLO x\r\n")
        running.freeze()
        client.socket.sendall(b"EXPN staff\r\n")
        time.sleep(1)
        assert bytes(server.received[0]) == b"EHLO x\r\n"
        running.thaw()
        assert client.hear() == b"500 what?\r\n"
    assert bytes(server.received[0]) == b"EHLO x\r\nXXXXXXXXXX\r\n"


def test_a_pool_that_runs_empty_slows_mail_and_breaks_nothing(gateway: Gateway, server: Server) -> None:
    with gateway.daemon(large_blocks=16) as running:
        clients = [Client(gateway.lab, socket.AF_INET) for _ in range(3)]
        threads = [threading.Thread(target=dialogue, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * PATIENCE)
        status, said = running.stop()
    assert status == 0, said
    assert [bytes(heard) == EXPECTED for heard in server.received] == [True] * 3
    assert running.statistics()[QUEUE]["slots-short"] > 0, "the pool was never short, so nothing was tried"


def test_packets_that_vanish_from_the_queue_are_counted_and_nothing_else(gateway: Gateway, server: Server) -> None:
    """The kernel drops what is queued for a device that goes down (nfqnl_dev_drop); the verdicts come too late."""
    with gateway.daemon() as running:
        running.freeze()
        flood(gateway.lab, 50)
        assert kernel_counts(gateway)[0] == 50
        gateway.lab.gateway.run(["ip", "link", "set", "inside", "down"])
        assert kernel_counts(gateway)[0] == 0
        gateway.lab.gateway.run(["ip", "link", "set", "inside", "up"])
        running.thaw()
        dialogue(Client(gateway.lab, socket.AF_INET))
        status, said = running.stop()
    assert status == 0, said
    assert bytes(server.received[-1]) == EXPECTED
    assert running.statistics()[QUEUE]["verdict-errors"] == 50


def test_hangup_opens_the_events_anew(gateway: Gateway, server: Server) -> None:
    with gateway.daemon() as running:
        client = Client(gateway.lab, socket.AF_INET)
        client.hear()
        client.say(b"EXPN before\r\n")
        rotated = running.events_file.with_suffix(".1")
        wait_until(lambda: b"EXPN before" in running.events_file.read_bytes(), "the event is not written")
        running.events_file.rename(rotated)
        running.process.send_signal(signal.SIGHUP)
        wait_until(running.events_file.exists, "the file is not opened anew")
        client.say(b"EXPN after\r\n")
        status, said = running.stop()
    assert status == 0, said
    assert b"EXPN after" not in rotated.read_bytes()
    assert b"EXPN after" in running.events_file.read_bytes()


def test_a_held_packet_leaves_after_the_reply_that_it_waited_for(gateway: Gateway, server: Server) -> None:
    """What is sent behind DATA waits in the kernel's queue; its verdict leaves in a later round, with other octets."""
    with gateway.daemon() as running:
        client = Client(gateway.lab, socket.AF_INET)
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.hear()
        for command in (b"EHLO x\r\n", b"MAIL FROM:<>\r\n", b"RCPT TO:<b>\r\n"):
            client.say(command)
        running.freeze()
        client.socket.sendall(b"DATA\r\n")
        client.socket.sendall(b"EXPN is no command here\r\n.\r\nEXPN staff\r\n")
        wait_until(lambda: kernel_counts(gateway)[0] >= 2, "both segments are queued")
        running.thaw()
        assert client.hear() == b"354 go ahead\r\n"
        assert client.hear() == b"250 fine\r\n"
        assert client.hear() == b"500 what?\r\n"
        client.socket.close()
        status, said = running.stop()
    assert status == 0, said
    assert bytes(server.received[0]).endswith(b"DATA\r\nEXPN is no command here\r\n.\r\nXXXXXXXXXX\r\n")
    assert running.statistics()[QUEUE]["held"] >= 1
