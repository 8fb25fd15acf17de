"""EVE JSON: names and values of every kind of event, nothing forged from the wire, nothing lost uncounted."""
from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import product

import pytest
from click.testing import CliRunner

from nfqguard.cli import main
from nfqguard.report.community import community_id
from nfqguard.report.eve import event_record, flow_id, printable, stats_record, timestamp
from nfqguard.report.event import Event, EventType
from nfqguard.report.output import Output
from nfqguard.report.readable import readable
from nfqguard.report.tail import CHUNK, Tail

START = 1_700_000_000_123_456_789
EVENT = Event(
    type=EventType.MASK_COMMAND, time=START, flow=7, started=START - 2_500_000_000, client=IPv4Address("192.0.2.10"),
    client_port=40000, server=IPv4Address("198.51.100.25"), server_port=25, direction=0, policy="ios-esmtp",
    reason="command", line=3, offset=20, length=9, text=b"EXPN list", packets=(0, 0), octets=(0, 0))


# ---- Community ID ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other", "seed", "expected"), [
    # The specification's own capture, seeds 0 and 1; then its IPv6 capture, and Zeek's test of community_id_v1().
    (("128.232.110.120", 34855), ("66.35.250.204", 80), 0, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
    (("128.232.110.120", 34855), ("66.35.250.204", 80), 1, "1:3V71V58M3Ksw/yuFALMcW0LAHvc="),
    (("2001:470:e5bf:dead:4957:2174:e82c:4887", 63943), ("2607:f8b0:400c:c03::1a", 25), 0,
     "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4="),
    (("1.2.3.4", 1122), ("5.6.7.8", 3344), 0, "1:wCb3OG7yAFWelaUydu0D+125CLM="),
])
def test_community_id(one, other, seed, expected):
    ends = [(ip_address(address), port) for address, port in (one, other)]
    assert community_id(*ends, seed) == expected
    assert community_id(*reversed(ends), seed) == expected


def test_community_id_of_one_host_is_ordered_by_port():
    host = IPv4Address("192.0.2.1")
    assert community_id((host, 25), (host, 9)) == community_id((host, 9), (host, 25))
    assert community_id((host, 25), (host, 9)) != community_id((host, 25), (host, 10))


# ---- records -----------------------------------------------------------------------------------------------------


def test_event_numbers_are_the_engines():
    from nfqguard._engine import lib

    for kind in EventType:
        assert getattr(lib, f"NQ_EVENT_{kind.name}") == kind
    assert sum(name.startswith("NQ_EVENT_") for name in dir(lib)) == len(EventType)


def test_a_masked_command():
    assert event_record(EVENT, queue=2, instance=5) == {
        "timestamp": "2023-11-14T22:13:20.123456+0000", "flow_id": flow_id(7, 2, 5), "event_type": "smtp",
        "src_ip": "192.0.2.10", "src_port": 40000, "dest_ip": "198.51.100.25", "dest_port": 25, "proto": "TCP",
        "app_proto": "smtp",
        "community_id": community_id((EVENT.client, 40000), (EVENT.server, 25)),
        "nfqguard": {"action": "mask", "match": "cmd verb", "policy": "ios-esmtp", "direction": "client", "length": 9,
                     "line": 3, "offset": 20, "text": "EXPN list", "reason": "command", "asa": 108004, "queue": 2},
    }


@pytest.mark.parametrize(("kind", "event_type", "action", "match"), [
    (EventType.MASK_COMMAND, "smtp", "mask", "cmd verb"),
    (EventType.MASK_KEYWORD, "smtp", "mask", "ehlo-reply-parameter"),
    (EventType.MASK_BANNER, "smtp", "mask", "mask-banner"),
    (EventType.RESET, "smtp", "reset", None),
    (EventType.REJECT, "smtp", "reject", None),
    (EventType.REMOVE_KEYWORD, "smtp", "remove", "ehlo-reply-parameter"),
    (EventType.REPLACE_BANNER, "smtp", "replace", "mask-banner"),
    (EventType.INSERT_HEADER, "smtp", "insert", "header"),
    (EventType.DROP, "drop", "drop", None),
    (EventType.TRANSITION, "smtp", "log", None),
    (EventType.FLOW, "flow", None, None),
])
def test_kinds(kind, event_type, action, match):
    record = event_record(replace(EVENT, type=kind))
    assert record["event_type"] == event_type
    assert record["nfqguard"].get("action") == action
    assert record["nfqguard"].get("match") == match
    assert record["nfqguard"]["reason"] == "command"


def test_what_the_server_said_comes_from_the_server():
    record = event_record(replace(EVENT, type=EventType.MASK_KEYWORD, direction=1))
    assert (record["src_ip"], record["src_port"], record["dest_ip"], record["dest_port"]) == (
        "198.51.100.25", 25, "192.0.2.10", 40000)
    assert record["nfqguard"]["direction"] == "server"
    assert record["community_id"] == event_record(EVENT)["community_id"]


def test_a_flow():
    event = replace(EVENT, type=EventType.FLOW, packets=(10, 8), octets=(1000, 800), reason="fin", direction=1)
    record = event_record(event)
    assert record["flow"] == {
        "pkts_toserver": 10, "pkts_toclient": 8, "bytes_toserver": 1000, "bytes_toclient": 800,
        "start": "2023-11-14T22:13:17.623456+0000", "end": "2023-11-14T22:13:20.123456+0000", "age": 2}
    assert record["src_ip"] == "192.0.2.10", "a flow's record is written from the client's side, whoever ended it"
    assert record["nfqguard"] == {"policy": "ios-esmtp", "reason": "fin"}


def test_a_drop_outside_of_any_flow():
    record = event_record(replace(EVENT, type=EventType.DROP, flow=0, policy="", reason="midstream", length=4))
    assert "flow_id" not in record
    assert record["nfqguard"] == {"action": "drop", "direction": "client", "length": 4, "reason": "midstream"}


def test_ipv6():
    event = replace(EVENT, client=IPv6Address("2001:db8::10"), server=IPv6Address("2001:db8:1::25"))
    assert (event_record(event)["src_ip"], event_record(event)["dest_ip"]) == ("2001:db8::10", "2001:db8:1::25")


@pytest.mark.parametrize(("nanoseconds", "expected"), [
    (0, "1970-01-01T00:00:00.000000+0000"),
    (999_999_999, "1970-01-01T00:00:00.999999+0000"),
    (1_900_000_000_000_000_001, "2030-03-17T17:46:40.000000+0000"),
])
def test_timestamps_are_exact(nanoseconds, expected):
    assert timestamp(nanoseconds) == expected


def test_flow_ids_differ_by_flow_queue_and_run_and_fit_a_double():
    named = list(product(range(1, 9), (None, 0, 1, 65535), (0, 1, 2**64 - 1)))
    ids = {flow_id(*name) for name in named}
    assert len(ids) == len(named)
    assert max(ids) < 2**53
    assert flow_id(1, 0, 9) == flow_id(1, 0, 9)


def test_statistics():
    record = stats_record(0, 3, {"packets": 5}, {"waiting": 1})
    assert record == {"timestamp": timestamp(0), "event_type": "stats",
                      "stats": {"queue": 3, "packets": 5, "kernel": {"waiting": 1}}}
    assert stats_record(0, 3, {}, None)["stats"]["kernel"] is None


# ---- nothing from the wire forges anything -----------------------------------------------------------------------


def test_every_octet_is_printable_and_told_apart():
    shown = [printable(bytes([octet])) for octet in range(256)]
    assert len(set(shown)) == 256
    assert all(text.isascii() and text.isprintable() for text in shown)
    assert printable(b"A\\x41\r\n\t\x00\x1b[2J\xff") == r"A\\x41\r\n\t\x00\x1b[2J\xff"


HOSTILE = [
    b'X"}\n{"event_type":"flow"}\n',
    b"\x1b]0;owned\x07\x1b[31m",
    b"\xe2\x80\xae\xe2\x80\xa8\x85\x00",
    b"[bold]markup[/bold] [link=http://x]",
    bytes(range(96)), bytes(range(96, 192)), bytes(range(192, 256)),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_line_can_be_forged(text, tmp_path):
    path = tmp_path / "eve.json"
    with Output(str(path)) as output:
        output.write(replace(EVENT, text=text))
    content = path.read_bytes()
    assert content.count(b"\n") == 1 and content.endswith(b"\n")
    assert all(0x20 <= octet <= 0x7E for octet in content[:-1])
    assert json.loads(content)["nfqguard"]["text"] == printable(text)
    result = CliRunner().invoke(main, ["events", str(path)])
    assert result.exit_code == 0
    assert result.output.count("\n") == 1
    assert all(0x20 <= ord(char) <= 0x7E for char in result.output[:-1])
    assert printable(text) in result.output


def test_a_foreign_file_cannot_forge_a_terminal_either():
    record = {"timestamp": "\x1b[2J", "event_type": "\u202e", "src_ip": "a\nb",
              "nfqguard": {"text": "\x07", "line": "\x00"}}
    line = "".join(text for text, _ in readable(record))
    assert all(0x20 <= ord(char) <= 0x7E for char in line)


# ---- the output --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    waiting: int = 1


def test_lines_are_appended_and_the_folder_is_made(tmp_path):
    path = tmp_path / "new" / "eve.json"
    for _ in range(2):
        with Output(str(path)) as output:
            output.write(EVENT, queue=1)
            output.statistics(1, {"packets": 2}, Kernel())
            output.statistics(1, {"packets": 2}, None)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [record["event_type"] for record in records] == ["smtp", "stats", "stats"] * 2
    assert records[1]["stats"]["kernel"] == {"waiting": 1} and records[2]["stats"]["kernel"] is None
    assert records[0]["flow_id"] != records[3]["flow_id"], "each run draws its own instance"
    assert path.stat().st_mode & 0o007 == 0, "not for everybody"


def test_a_file_that_cannot_be_opened_is_said_at_the_start(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError):
        Output(str(tmp_path / "taken" / "eve.json"))


def test_a_full_disk_loses_records_counts_them_and_says_so_once(caplog):
    caplog.set_level(logging.WARNING)
    with Output("/dev/full") as output:
        for _ in range(5):
            output.write(EVENT)
        assert output.lost == 5
    assert [record.getMessage() for record in caplog.records] == [
        "records are lost, for /dev/full cannot be written: No space left on device"]


def test_a_record_cut_by_a_full_disk_spoils_no_other(tmp_path, caplog):
    """The kernel's limit on file sizes cuts a write in the middle, as a full disk does."""
    path = tmp_path / "eve.json"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Output(str(path)) as output:
            output.write(EVENT)
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, before[1]))
            output.write(EVENT)
            output.write(EVENT)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            output.write(EVENT)
            output.write(EVENT)
            assert output.lost == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    lines = path.read_text().splitlines()
    assert [_is_record(line) for line in lines] == [True, False, True, True]
    assert [record.getMessage() for record in caplog.records] == [
        f"records are lost, for {path} cannot be written: only a part of the record could be written",
        f"{path} can be written again; 2 records were lost"]


def _is_record(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def test_reopen_for_logrotate(tmp_path, caplog):
    path = tmp_path / "eve.json"
    with Output(str(path)) as output:
        output.write(EVENT)
        path.rename(tmp_path / "eve.json.1")
        output.write(EVENT)
        output.reopen()
        output.write(EVENT)
        path.unlink()
        path.mkdir()
        output.reopen()
        output.write(EVENT)
        assert output.lost == 0
    assert len((tmp_path / "eve.json.1").read_text().splitlines()) == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} cannot be opened again (Is a directory): records go on to the old file"]


def test_a_closed_standard_output_stops_nobody():
    program = ("from nfqguard.report.output import Output; from tests.test_eve import EVENT\n"
               "import os; os.close(1); output = Output('-'); output.write(EVENT); output.reopen(); output.close()\n"
               "raise SystemExit(40 + output.lost)")
    root = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=30)
    assert done.returncode == 41, done.stderr


# ---- nfqguard events ---------------------------------------------------------------------------------------------


@pytest.fixture
def eve(tmp_path):
    path = tmp_path / "eve.json"
    with Output(str(path), instance=0) as output:
        output.write(EVENT)
        output.write(replace(EVENT, type=EventType.FLOW, packets=(10, 8), octets=(1000, 800), reason="fin"))
        output.write(replace(EVENT, type=EventType.DROP, client=IPv6Address("2001:db8::1"), reason="bad-checksum"))
        output.statistics(4, {"packets": 2, "dropped": 0})
    return path


def test_events_are_readable(eve):
    result = CliRunner().invoke(main, ["events", str(eve)])
    assert result.exit_code == 0
    mask, flow, drop, stats = result.output.splitlines()
    assert mask == ('2023-11-14T22:13:20.123456+0000 mask  192.0.2.10:40000 -> 198.51.100.25:25  command line 3, 9 '
                    'octets: '
                    '"EXPN list"  (cmd verb; command; policy ios-esmtp)')
    assert flow == ("2023-11-14T22:13:20.123456+0000 flow  192.0.2.10:40000 -> 198.51.100.25:25  10 packets and 1000 "
                    "octets "
                    "to the server, 8 packets and 800 octets to the client, 2 s  (fin; policy ios-esmtp)")
    assert drop == ("2023-11-14T22:13:20.123456+0000 drop  [2001:db8::1]:40000 -> 198.51.100.25:25  packet with 9 "
                    "octets "
                    "from the client  (bad-checksum; policy ios-esmtp)")
    assert stats.endswith(" stats queue 4, packets 2")


def test_events_as_json_pass_through(eve):
    result = CliRunner().invoke(main, ["events", "--json", str(eve)])
    assert result.output == eve.read_text()


def test_events_from_standard_input(eve):
    result = CliRunner().invoke(main, ["events", "-"], input=eve.read_bytes())
    assert result.output.count("\n") == 4


def test_lines_that_are_no_records_are_counted(eve):
    eve.write_text(eve.read_text() + '{"cut\n\n[1]\n')
    result = CliRunner().invoke(main, ["events", str(eve)])
    assert result.exit_code == 0
    assert result.stderr == f"{eve}: 2 lines are no EVE records and were left out\n"
    assert result.stdout.count("\n") == 4


def test_events_of_no_file(tmp_path):
    result = CliRunner().invoke(main, ["events", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.output == (f"{tmp_path}/none: cannot be read (No such file or directory): give an EVE JSON file, as "
                             "[events] file = ... names it\n")
    result = CliRunner().invoke(main, ["events", "--follow", "-"])
    assert result.exit_code == 2
    assert "standard input cannot be followed: give a file, or leave --follow out" in result.output


def test_a_reader_that_goes_away_is_no_error(eve):
    eve.write_bytes(eve.read_bytes() * 5000)
    for option in ((), ("--json",)):
        with subprocess.Popen([sys.executable, "-m", "nfqguard", "events", *option, str(eve)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            process.wait(30)


def test_tail_follows_rotation_truncation_and_absence(tmp_path):
    path = tmp_path / "eve.json"
    tail = Tail(path)
    assert tail.last(10) == [] and tail.read() == []
    path.write_bytes(b"one\ntw")
    assert tail.read() == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\n")
    assert tail.read() == [b"two"]
    path.rename(tmp_path / "old")
    with (tmp_path / "old").open("ab") as file:
        file.write(b"late\n")
    assert tail.read() == [b"late"]
    path.write_bytes(b"fresh\n")
    assert tail.read() == [b"fresh"]
    path.write_bytes(b"s\n")
    assert tail.read() == [b"s"]
    tail.close()


def test_tail_begins_at_the_end_of_a_large_file(tmp_path):
    path = tmp_path / "eve.json"
    path.write_bytes(b"".join(b"%09d\n" % number for number in range(CHUNK // 5)))
    tail = Tail(path)
    assert tail.last(2) == [b"%09d" % (CHUNK // 5 - 2), b"%09d" % (CHUNK // 5 - 1)]
    assert len(tail.last(CHUNK)) < CHUNK // 10 + 1
    path.write_bytes(path.read_bytes() + b"x" * (3 * CHUNK))
    assert max(map(len, tail.read())) <= 2 * CHUNK, "a line without an end is not kept for ever"
    tail.close()


def test_follow_shows_what_comes_and_ends_on_interrupt(eve):
    with subprocess.Popen([sys.executable, "-m", "nfqguard", "events", "--follow", str(eve)], text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            first = [process.stdout.readline() for _ in range(4)]
            with Output(str(eve)) as output:
                output.write(replace(EVENT, text=b"VERB"))
            added = process.stdout.readline()
        finally:
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert "EXPN" in first[0] and '"VERB"' in added
