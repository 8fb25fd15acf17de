"""The benchmark's own parts. A pump that sends other mail than it says makes every figure wrong, and nobody sees it."""
from __future__ import annotations

import email
import email.policy
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bench.bench import Benchmark, Extent
from bench.loads import Bulk, Delivered, Distance, Loss
from bench.programs import CHECKOUT, program
from bench.report import Report, Sample
from bench.systems import NoQueue, Observer, Scapy, System, inspecting
from rich.console import Console

from nfqguard.lab.topology import Lab

SIZES = [2048, 2049, 2050, 2123, 2124, 2125, 2126, 4096, 100_003, 3_000_001]
TIMEOUT = ["--timeout", "20"]


def message(size: int) -> bytes:
    return subprocess.run([program("pump"), "message", "--size", str(size)], capture_output=True, check=True).stdout


def unstuffed(wire: bytes) -> bytes:
    assert wire.endswith(b"\r\n.\r\n")
    lines = wire[:-3].split(b"\r\n")
    return b"\r\n".join(line.removeprefix(b".") for line in lines)


@pytest.mark.parametrize("size", SIZES)
def test_message_has_the_size_and_the_lines_of_mail(size: int) -> None:
    wire = message(size)
    assert wire.count(b"\r\n.\r\n") == 1, "the end of data comes once, at the end"
    assert not re.search(rb"[^\r]\n|\r[^\n]", wire), "no bare CR or LF"
    content = unstuffed(wire)
    assert len(content) == size
    assert max(map(len, content.split(b"\r\n"))) <= 76


def test_message_is_stuffed() -> None:
    content = unstuffed(message(4096))
    assert b"\r\n.\r\n" in content, "a line that is a dot and nothing else is in there, to be stuffed"
    assert b"\r\n.hidden" in content and b"\r\n..\r\n" in content


@pytest.mark.parametrize("size", [2048, 4096, 5_000_000])
def test_message_is_mime_without_defects(size: int) -> None:
    parsed = email.message_from_bytes(unstuffed(message(size)), policy=email.policy.default)
    parts = list(parsed.walk())
    assert [part.defects for part in parts if part.defects] == []
    assert parsed.is_multipart() and parsed["Subject"] and parsed["Message-ID"]
    attached = [part.get_payload(decode=True) for part in parts if part.get_filename()]
    assert attached and sum(map(len, attached)) > size // 5
    assert len(attached) == (3 if size > 4_000_000 else 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pumped(messages: int, size: int, sessions: int) -> tuple[dict[str, object], dict[str, object]]:
    """What source and sink of a transfer on loopback report. The source is tried again until the sink listens."""
    shared = ["--port", str(free_port()), "--sessions", str(sessions), "--checksum", *TIMEOUT]
    source = [program("pump"), "source", "--messages", str(messages), "--size", str(size), *shared]
    with subprocess.Popen([program("pump"), "sink", *shared], stdout=subprocess.PIPE, text=True) as sink:
        for _ in range(100):
            sent = subprocess.run(source, capture_output=True, text=True, check=False)
            if "connect" not in sent.stderr:
                break
        received, _ = sink.communicate(timeout=30)
    assert sent.returncode == 0, sent.stderr
    return json.loads(sent.stdout), json.loads(received)


@pytest.mark.parametrize(("messages", "size", "sessions"), [
    (1, 2048, 1), (50, 4096, 7), (7, 1_000_000, 4), (3, 25_000_000, 1),
])
def test_what_the_source_sends_the_sink_receives(messages: int, size: int, sessions: int) -> None:
    sent, received = pumped(messages, size, sessions)
    assert sent["octets"] == messages * len(message(size))
    assert sent["messages"] == messages
    for key in ("octets", "messages", "checksum"):
        assert sent[key] == received[key], key
    assert isinstance(sent["sessions"], list) and len(sent["sessions"]) == sessions
    assert sum(session["octets"] for session in sent["sessions"]) == sent["octets"]


def converse(chunks: list[bytes]) -> bytes:
    """Everything that a sink answers to these chunks, each sent as a segment of its own."""
    port = free_port()
    with subprocess.Popen([program("pump"), "sink", "--port", str(port), *TIMEOUT], stdout=subprocess.DEVNULL):
        for _ in range(200):
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=10)
                break
            except ConnectionRefusedError:      # it does not listen yet
                time.sleep(0.05)
        with connection, connection.makefile("rb") as replies:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for chunk in chunks:
                connection.sendall(chunk)
            return replies.read()


BEGIN = b"EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"


@pytest.mark.parametrize("cut", range(1, 12))
def test_the_sink_finds_the_end_of_data_wherever_it_is_cut(cut: int) -> None:
    data = b".\r.\r\n..\r\na.\r\n\r\n.\r\nQUIT\r\n"
    replies = converse([BEGIN, data[:-cut], data[-cut:]])
    codes = [line[:3] for line in replies.splitlines() if line[3:4] == b" "]
    assert codes == [b"220", b"250", b"250", b"250", b"354", b"250", b"221"]


def test_an_empty_body_ends_at_once_and_commands_out_of_order_are_refused() -> None:
    replies = converse([b"MAIL FROM:<>\r\n", BEGIN, b".\r\nDATA\r\nEXPN x\r\nQUIT\r\n"])
    codes = [line[:3] for line in replies.splitlines() if line[3:4] == b" "]
    assert codes == [b"220", b"503", b"250", b"250", b"250", b"354", b"250", b"503", b"500", b"221"]


def test_the_report_has_medians_ratios_and_the_void_verdict() -> None:
    report = Report({"cpu": "x"}, {"bulk": "GB"})
    runs = {"no-queue": [10, 30, 20], "accept-all": [8, 12, 9], "nfqguard-ios-esmtp": [6, 7.2, 9]}
    for system, values in runs.items():
        report.samples += [Sample("bulk", system, "bits_per_second", value) for value in values]
    rows = {row["system"]: row for row in report.as_dict()["results"]}
    assert rows["accept-all"]["median"] == 9 and rows["accept-all"]["ratio_to_accept_all"] == 1
    assert (rows["nfqguard-ios-esmtp"]["min"], rows["nfqguard-ios-esmtp"]["max"]) == (6, 9)
    assert rows["nfqguard-ios-esmtp"]["ratio_to_accept_all"] == pytest.approx(0.8)
    assert report.void() and "0.45" in report.void()[0]
    report.samples = [sample for sample in report.samples if sample.system != "no-queue"]
    assert report.void() == []


def tool_missing() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    return None if Path("/proc/net/netfilter/nfnetlink_queue").exists() else "this kernel has no NFQUEUE"


on_a_gateway = pytest.mark.skipif(tool_missing() is not None, reason=str(tool_missing()))


class Bystander(System):
    """Binds the queue, but nothing brings packets to it."""

    name = "bystander"

    @contextmanager
    def in_path(self, lab: Lab, folder: Path) -> Iterator[Observer]:
        with inspecting(lab, [program("accept_all"), *TIMEOUT], folder / "log") as observer:
            yield observer


class Quitter(System):
    """Ends before it has bound anything."""

    name = "quitter"

    @contextmanager
    def in_path(self, lab: Lab, folder: Path) -> Iterator[Observer]:
        with inspecting(lab, ["sh", "-c", "echo cannot; exit 7"], folder / "log") as observer:
            yield observer


@pytest.mark.system
@on_a_gateway
def test_a_system_that_is_not_in_the_path_gets_no_figure() -> None:
    report = Report({}, {"bulk": "GB"})
    Benchmark([Bulk()], [Bystander(), Quitter()], Extent(1, 0.1), report, Console(quiet=True), "bench-void").run()
    assert report.samples == []
    reasons = {failure.system: failure.reason for failure in report.failures}
    assert "not in the path" in reasons["bystander"]
    assert "status 7" in reasons["quitter"] and "cannot" in reasons["quitter"]


@pytest.mark.system
@on_a_gateway
def test_a_network_that_loses_and_one_that_is_long_leave_no_trace() -> None:
    """Both in turn in one lab, where what the first leaves behind would be in the second's way."""
    report = Report({}, {"loss": "GB", "distance": "GB"})
    loads = [Loss(), Distance(), Loss()]
    Benchmark(loads, [NoQueue(), Scapy()], Extent(1, 0.1), report, Console(quiet=True), "bench-worse").run()
    assert report.failures == []
    assert [(each.scenario, each.system) for each in report.samples] == [
        ("loss", "no-queue"), ("distance", "no-queue"), ("loss", "no-queue")]
    fastest = Bulk().rate(Delivered(NoQueue.bulk_octets, 1, 6 * 2 * Distance.one_way / 1e6))
    assert 0 < report.samples[1].value < fastest, "six of its commands wait for a reply, a round trip each"


@pytest.mark.system
@on_a_gateway
def test_a_quick_run_writes_its_report(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick", "--scenario", "bulk", "--system", "no-queue", "--system",
         "accept-all", "--output", output, "--prefix", "bench-test"],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads(output.read_text())
    assert report["failures"] == []
    assert done.returncode == (3 if report["void"] else 0), done.stdout + done.stderr
    assert {"cpu", "cores", "kernel", "memory_octets"} <= report["machine"].keys()
    measured = {(row["scenario"], row["system"], row["metric"]): row for row in report["results"]}
    assert measured.keys() == {
        ("bulk", "no-queue", "bits_per_second"), ("bulk", "accept-all", "bits_per_second"),
        ("bulk", "accept-all", "cpu_seconds"),
    }
    for row in measured.values():
        assert {"median", "min", "max", "ratio_to_accept_all"} <= row.keys()
        assert 0 < row["min"] <= row["median"] <= row["max"]
    assert measured["bulk", "accept-all", "bits_per_second"]["ratio_to_accept_all"] == 1
    assert "bulk" in done.stdout and "accept-all" in done.stdout
