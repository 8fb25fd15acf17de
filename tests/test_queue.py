"""The queue loop against the real kernel, with offloads on and off, over IPv4 and IPv6."""
from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mail_gateway import (
    BODY,
    EXPECTED,
    FAMILIES,
    PATIENCE,
    Client,
    Family,
    Gateway,
    Server,
    checksum_errors,
    dialogue,
    pour,
)

from nfqguard.lab.topology import Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]


@pytest.fixture(scope="module", params=[True, False], ids=["offloads-on", "offloads-off"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(f"nqqueue{os.getpid()}", offloads=request.param) as lab:
        yield lab


@pytest.fixture
def gateway(lab: Lab, tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(lab, tmp_path)
    yield gateway
    gateway.close()


@pytest.fixture(params=list(FAMILIES), ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture
def server(lab: Lab, family: Family) -> Iterator[Server]:
    server = Server(lab.server, family)
    yield server
    server.close()


def test_allowed_arrives_and_forbidden_is_masked(gateway: Gateway, server: Server, family: Family) -> None:
    before = checksum_errors(gateway.lab.server), checksum_errors(gateway.lab.client)
    with gateway.daemon() as running:
        dialogue(Client(gateway.lab, family))
        status, said = running.stop()
    assert status == 0, said
    heard = bytes(server.received[0])
    assert heard[:200] == EXPECTED[:200]
    assert hashlib.sha256(heard).hexdigest() == hashlib.sha256(EXPECTED).hexdigest()
    assert (checksum_errors(gateway.lab.server), checksum_errors(gateway.lab.client)) == before
    events = running.events()
    masked = [event["nfqguard"]["text"] for event in events if event.get("nfqguard", {}).get("action") == "mask"]
    assert masked == ["EXPN staff"]
    flows = [event["flow"] for event in events if event["event_type"] == "flow"]
    assert len(flows) == 1
    assert flows[0]["bytes_toserver"] > len(BODY)
    statistics = running.statistics()
    used, idle = FAMILIES[family], ({*FAMILIES.values()} - {FAMILIES[family]}).pop()
    assert statistics[used]["edited"] >= 1
    assert statistics[used]["kernel"]["dropped"] == 0
    kernel = statistics[used]["kernel"]
    assert kernel["received"] == statistics[used]["packets"] + kernel["waiting"]
    # A connection of the test before may still be closing, and its last segments come to the other queue.
    assert statistics[idle]["flows-opened"] == 0, "each queue has an engine of its own"
    if gateway.lab.offloads:
        assert statistics[used]["packets"] < len(BODY) / 1460, "the kernel cut GSO packets up before it queued them"


def test_stop_unbinds_and_run_starts_again_at_once(gateway: Gateway, server: Server, family: Family) -> None:
    for _ in range(3):
        with gateway.daemon() as running:
            assert gateway.bound() == {40, 41}
            dialogue(Client(gateway.lab, family))
            status, said = running.stop()
        assert status == 0, said
        assert gateway.bound() == set()
    assert [bytes(heard) == EXPECTED for heard in server.received] == [True] * 3


def test_stop_under_load(gateway: Gateway, server: Server, family: Family) -> None:
    with gateway.daemon() as running:
        client = Client(gateway.lab, family)
        client.hear()
        for command in (b"EHLO x\r\n", b"MAIL FROM:<>\r\n", b"RCPT TO:<b>\r\n", b"DATA\r\n"):
            client.say(command)
        pouring = threading.Thread(target=pour, args=(client.socket,), daemon=True)
        pouring.start()
        time.sleep(0.5)
        began = time.monotonic()
        status, said = running.stop()
        took = time.monotonic() - began
    stood = len(server.received[0])
    client.socket.shutdown(socket.SHUT_RDWR)
    client.socket.close()
    assert status == 0, said
    assert took < 3
    assert stood > 1_000_000, "nothing flowed, so nothing was tried"
    assert gateway.bound() == set()


def test_a_second_daemon_is_refused(gateway: Gateway, server: Server, family: Family) -> None:
    with gateway.daemon():
        second = gateway.start()
        _, said = second.process.communicate(timeout=PATIENCE)
        assert second.process.returncode == 1
        assert "queue 40 is bound already" in said
        assert "Traceback" not in said
        dialogue(Client(gateway.lab, family))


def test_killed_lets_nothing_pass_until_it_runs_again(
    gateway: Gateway, server: Server, family: Family
) -> None:
    with gateway.daemon() as running:
        client = Client(gateway.lab, family)
        client.hear()
        client.say(b"EHLO x\r\n")
        running.process.kill()
        running.process.wait()
        client.socket.sendall(b"EXPN all\r\n")
        time.sleep(1.5)
    assert bytes(server.received[0]) == b"EHLO x\r\n"
    with gateway.daemon():
        dialogue(Client(gateway.lab, family))
        assert bytes(server.received[0]) == b"EHLO x\r\n", "a flow whose opening was not seen stays closed"
    client.socket.close()


def test_a_reset_reaches_both_ends(gateway: Gateway, server: Server, family: Family) -> None:
    with gateway.daemon(max_data=1000) as running:
        client = Client(gateway.lab, family)
        client.hear()
        for command in (b"EHLO x\r\n", b"MAIL FROM:<>\r\n", b"RCPT TO:<b>\r\n", b"DATA\r\n"):
            client.say(command)
        with pytest.raises(ConnectionResetError):
            client.say(BODY + b".\r\n")
        deadline = time.monotonic() + PATIENCE
        while server.resets == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.resets == 1
        status, said = running.stop()
    assert status == 0, said
    resets = [event for event in running.events() if event.get("nfqguard", {}).get("action") == "reset"]
    assert [event["nfqguard"]["reason"] for event in resets] == ["max-data"]
