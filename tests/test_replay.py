"""Replay: captures of every kind through the real engine; what leaves, what is told, what is left alone."""
from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import PcapNgWriter, PcapWriter, RawPcapNgReader, rdpcap

from nfqguard.capture import Record, network_offset, plain_header, turned
from nfqguard.cli import main
from nfqguard.policy.load import load_preset
from nfqguard.replay import Replay

START = 1_700_000_000
CLIENT, SERVER = "192.0.2.10", "198.51.100.25"
CLIENT6, SERVER6 = "2001:db8::10", "2001:db8:1::25"
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


class Talk:
    """A TCP connection as packets, numbered and timed, without any engine."""

    def __init__(self, family: int = 4, port: int = 25, source_port: int = 40000) -> None:
        self.family, self.ports, self.packets = family, (source_port, port), []
        self.seq = [1000, 9000]
        self.time = float(START)

    def add(self, side: int, flags: str, payload: bytes = b"", **fields: int) -> Packet:
        ends = (CLIENT6, SERVER6) if self.family == 6 else (CLIENT, SERVER)
        network = (IPv6 if self.family == 6 else IP)(src=ends[side], dst=ends[1 - side])
        values = {"seq": self.seq[side], "ack": self.seq[1 - side] if "A" in flags else 0, "flags": flags, **fields}
        packet = network / TCP(sport=self.ports[side], dport=self.ports[1 - side], **values)
        packet = packet / Raw(payload) if payload else packet
        packet.time, packet.side = self.time, side
        self.time += 0.125
        self.packets.append(packet)
        self.seq[side] += len(payload) + ("S" in flags) + ("F" in flags)
        return packet

    def open(self) -> Talk:
        self.add(0, "S")
        self.add(1, "SA")
        self.add(0, "A")
        return self

    def say(self, side: int, payload: bytes) -> Talk:
        self.add(side, "PA", payload)
        self.add(1 - side, "A")
        return self

    def close(self) -> Talk:
        self.add(0, "FA")
        self.add(1, "FA")
        self.add(0, "A")
        return self


def dialogue(family: int = 4, **options: int) -> Talk:
    talk = Talk(family, **options).open()
    talk.say(1, b"220 mx.example ESMTP\r\n").say(0, b"EHLO c\r\n")
    talk.say(1, b"250-mx.example\r\n250-CHUNKING\r\n250 SIZE\r\n")
    return talk.say(0, b"EXPN all\r\nNOOP\r\n").say(1, b"500 no\r\n250 ok\r\n").close()


def ethernet(packet: Packet, side: int) -> Packet:
    return Ether(src=MACS[side], dst=MACS[1 - side]) / packet


def vlan(packet: Packet, side: int) -> Packet:
    kind = 0x86DD if packet.version == 6 else 0x0800
    return Ether(src=MACS[side], dst=MACS[1 - side], type=0x88A8) / Dot1Q(vlan=7, type=0x8100) / Dot1Q(
        vlan=42, type=kind) / packet


def cooked(packet: Packet, side: int) -> Packet:
    return CookedLinux(pkttype=4 if side == 0 else 0, lladdrlen=6, src=bytes([2, side] * 4),
                       proto=0x86DD if packet.version == 6 else 0x0800) / packet


def cooked_2(packet: Packet, side: int) -> Packet:
    return CookedLinuxV2(pkttype=4 if side == 0 else 0, ifindex=side + 1, lladdrlen=6, src=bytes([2, side] * 4),
                         proto=0x86DD if packet.version == 6 else 0x0800) / packet


def bare(packet: Packet, side: int) -> Packet:
    return packet


LINKS = {"ethernet": (1, ethernet, 14), "vlan": (1, vlan, 22), "cooked": (113, cooked, 16),
         "cooked-2": (276, cooked_2, 20), "raw": (101, bare, 0), "raw-12": (12, bare, 0)}


def frames(packets: list[Packet], link: str = "ethernet") -> list[tuple[float, bytes]]:
    wrap = LINKS[link][1]
    return [(float(packet.time), bytes(wrap(packet, packet.side))) for packet in packets]


def write(path: Path, records: list[tuple[float, bytes]], link_type: int = 1, ng: bool = False, **options) -> Path:
    writer = PcapNgWriter(str(path)) if ng else PcapWriter(str(path), linktype=link_type, **options)
    if ng:
        writer.linktype = link_type
    writer.write_header(None)
    for time, data in records:
        seconds = int(time)
        if ng:
            writer._write_packet(data, link_type, sec=time)
        else:
            writer._write_packet(data, link_type, sec=seconds,
                                 usec=round((time - seconds) * (10**9 if options.get("nano") else 10**6)))
    writer.close()
    return path


def read(path: Path) -> list[tuple[float, bytes]]:
    """Times and frames, by scapy."""
    with RawPcapNgReader(str(path)) as reader:
        scale = 1e9 if reader.nano else 1e6
        return [(meta.sec + meta.usec / scale, data) for data, meta in reader]


class Run:
    """`nfqguard replay` and all that it left behind."""

    def __init__(self, path: Path, *options: str, preset: str | None = "ios-esmtp") -> None:
        self.out, self.eve = path.with_suffix(".out"), path.with_suffix(".eve")
        arguments = ["replay", str(path), "--write", str(self.out), "--events", str(self.eve), "--json"]
        arguments += ["--preset", preset] if preset else []
        self.result = CliRunner().invoke(main, [*arguments, *options], catch_exceptions=False)
        self.code = self.result.exit_code
        self.summary = json.loads(self.result.stdout) if self.code == 0 else {}
        if self.code == 0:
            assert self.summary["packets-out"] == (
                self.summary["packets-in"] - self.summary["dropped"] + self.summary["injected"])

    @property
    def frames(self) -> list[tuple[float, bytes]]:
        return read(self.out)

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.eve.read_text().splitlines()]


def payload(frame: bytes, header: int) -> bytes:
    """What TCP carries; lengths and checksums are verified on the way."""
    packet = (IPv6 if frame[header] >> 4 == 6 else IP)(frame[header:])
    fresh = packet.copy()
    del fresh[TCP].chksum
    if IP in fresh:
        del fresh[IP].chksum
        assert bytes(packet)[10:12] == bytes(fresh)[10:12], "IPv4 checksum"
    assert IP(bytes(fresh))[TCP].chksum == packet[TCP].chksum if IP in fresh else (
        IPv6(bytes(fresh))[TCP].chksum == packet[TCP].chksum), "TCP checksum"
    return bytes(packet[TCP].payload)


# ---- link types and formats --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("link", LINKS)
def test_every_link_type(tmp_path, link, family):
    link_type, _, header = LINKS[link]
    given = frames(dialogue(family).packets, link)
    run = Run(write(tmp_path / "in.pcap", given, link_type), preset="asa")
    assert run.code == 0, run.result.output
    left = run.frames
    with RawPcapNgReader(str(run.out)) as reader:
        assert reader.linktype == link_type
    assert [time for time, _ in left] == [time for time, _ in given]
    assert [data[:header] for _, data in left] == [data[:header] for _, data in given]
    changed = [index for index, frame in enumerate(given) if left[index][1] != frame[1]]
    edited = {index: payload(left[index][1], header) for index in changed}
    assert edited == {3: b"220 " + b"*" * 16 + b"\r\n", 7: b"250-mx.example\r\n250-XXXXXXXX\r\n250 SIZE\r\n",
                      9: b"XXXXXXXX\r\nNOOP\r\n"}
    assert run.summary == {
        "packets-in": 16, "diverted": 16, "packets-out": 16, "edited": 3, "dropped": 0, "injected": 0, "flows": 1,
        "events": {"mask-banner": 1, "mask-keyword": 1, "mask-command": 1, "match": 1, "answer": 1, "flow": 1},
        "damage": None}
    assert [event["event_type"] for event in run.events] == ["smtp"] * 5 + ["flow"]
    assert run.events[3]["nfqguard"]["rule"] == "pipelined-command"
    assert run.events[4]["nfqguard"]["code"] == 500
    assert run.events[2]["nfqguard"]["text"] == "EXPN all"
    assert run.events[2]["timestamp"] == "2023-11-14T22:13:21.125000+0000"
    assert len({event["flow_id"] for event in run.events}) == 1


@pytest.mark.parametrize("options", [{}, {"nano": True}, {"endianness": ">"}, {"endianness": "<", "nano": True}])
def test_every_pcap(tmp_path, options):
    given = frames(dialogue().packets)
    run = Run(write(tmp_path / "in.pcap", given, **options))
    assert [time for time, _ in run.frames] == [time for time, _ in given]
    with RawPcapNgReader(str(run.out)) as reader:
        assert reader.nano is options.get("nano", False)
    assert run.summary["edited"] == 1


@pytest.mark.parametrize("link", ["ethernet", "raw"])
def test_pcapng(tmp_path, link):
    given = frames(dialogue().packets, link)
    run = Run(write(tmp_path / "in.pcapng", given, LINKS[link][0], ng=True))
    assert [time for time, _ in run.frames] == [time for time, _ in given]
    assert run.summary["edited"] == 1
    with RawPcapNgReader(str(run.out)) as reader:
        assert reader.linktype == LINKS[link][0]


def test_gzip(tmp_path):
    path = write(tmp_path / "plain.pcap", frames(dialogue().packets))
    packed = tmp_path / "in.pcap.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    run = Run(packed)
    assert (run.summary["edited"], run.summary["damage"]) == (1, None)


def test_nothing_to_replay(tmp_path):
    run = Run(write(tmp_path / "in.pcap", [], 276))
    assert (run.code, run.frames, run.events) == (0, [], [])
    assert run.summary["packets-in"] == 0


def test_the_same_twice(tmp_path):
    path = write(tmp_path / "in.pcap", frames(dialogue().packets))
    first, again = Run(path), None
    kept = first.out.read_bytes(), first.eve.read_bytes()
    again = Run(path)
    assert (again.out.read_bytes(), again.eve.read_bytes()) == kept, "nothing is appended, nothing depends on chance"


def test_padding_of_short_frames_stays(tmp_path):
    """Ethernet pads to 60 octets; the padding is no part of the packet, and an edit leaves it alone."""
    talk = Talk().open().say(1, b"220 m\r\n").say(0, b"EX\r\n")
    given = [(time, data + b"\x55" * max(0, 60 - len(data))) for time, data in frames(talk.packets)]
    run = Run(write(tmp_path / "in.pcap", given))
    assert (run.summary["edited"], run.summary["dropped"]) == (1, 0)
    assert [len(data) for _, data in run.frames] == [len(data) for _, data in given]
    assert run.frames[5][1][54:] == b"XX\r\n\x55\x55"
    assert [frame for index, frame in enumerate(run.frames) if index != 5] == given[:5] + given[6:]


# ---- what meets the engine ---------------------------------------------------------------------------------------


def test_other_traffic_leaves_unchanged(tmp_path):
    foreign = [
        Ether(src=MACS[0], dst=MACS[1]) / ARP(),
        ethernet(IP(src=CLIENT, dst=SERVER) / UDP(sport=25, dport=25) / Raw(b"EXPN\r\n"), 0),
        Ether(src=MACS[0], dst=MACS[1], type=0x88CC) / Raw(b"lldp"),
        Raw(bytes(12) + b"\x08\x00\x45"),
        ethernet(IP(src=CLIENT, dst=SERVER, proto=47) / Raw(bytes(40)), 0),
        ethernet(IPv6(src=CLIENT6, dst=SERVER6, nh=59), 0),
        Raw(bytes(9)),
    ]
    given = [(START + index, bytes(packet)) for index, packet in enumerate(foreign)]
    given += frames(dialogue(port=80).packets)
    run = Run(write(tmp_path / "in.pcap", given), preset="asa")
    assert run.frames == given
    assert (run.summary["diverted"], run.summary["flows"], run.events) == (0, 0, [])


def test_the_deployments_ports_and_exempt_hosts(tmp_path):
    config = tmp_path / "nfqguard.toml"
    config.write_text('policy = "ios-esmtp"\n[deployment]\nports = [587]\nexempt = ["192.0.2.64/26", '
                      '"2001:db8::/64"]\n')
    given = frames(dialogue(port=25).packets + dialogue(port=587).packets + dialogue(6, port=587).packets)
    run = Run(write(tmp_path / "in.pcap", given), "--config", str(config), preset=None)
    changed = [index for index, (before, after) in enumerate(zip(given, run.frames, strict=True)) if before != after]
    assert (run.summary["diverted"], run.summary["flows"], changed) == (16, 1, [16 + 9])


def test_an_extension_header_hides_nothing(tmp_path):
    talk = dialogue(6)
    hidden = []
    for packet in talk.packets:
        wrapped = IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrDestOpt() / packet[TCP]
        wrapped.time, wrapped.side = packet.time, packet.side
        hidden.append(wrapped)
    run = Run(write(tmp_path / "in.pcap", frames(hidden)))
    assert run.summary["diverted"] == 16
    assert not any(b"EXPN" in data for _, data in run.frames)


def test_fragments_of_our_ports_are_dropped_all_of_them(tmp_path):
    talk = Talk().open().say(1, b"220 x\r\n")
    start = len(talk.packets)
    whole = talk.add(0, "PA", b"EXPN " + b"a" * 100 + b"\r\n")
    pieces = fragment(IP(bytes(whole)), fragsize=48)
    other = fragment(IP(bytes(Talk(port=80).add(0, "PA", b"b" * 100))), fragsize=48)
    assert len(pieces) > 2 and len(other) > 2
    for piece in [*pieces, *other]:
        piece.time, piece.side = talk.time, 0
    given = frames([*talk.packets[:start], *pieces, *other])
    run = Run(write(tmp_path / "in.pcap", given))
    assert run.frames == given[:start] + given[start + len(pieces):]
    assert run.summary["dropped"] == len(pieces)
    assert {event["nfqguard"]["reason"] for event in run.events if event["event_type"] == "drop"} == {"fragment"}


def test_ipv6_fragments(tmp_path):
    segment = bytes(TCP(sport=40000, dport=25, flags="PA") / Raw(b"EXPN all please\r\n" * 3))
    pieces = []
    for offset, more in ((0, 1), (3, 1), (6, 0)):
        piece = IPv6(src=CLIENT6, dst=SERVER6) / IPv6ExtHdrFragment(nh=6, offset=offset, m=more, id=7) / Raw(
            segment[offset * 8:offset * 8 + 24 if more else None])
        piece.time, piece.side = START + offset, 0
        pieces.append(piece)
    run = Run(write(tmp_path / "in.pcap", frames(pieces)))
    assert (run.summary["dropped"], run.frames) == (3, [])


def test_a_senders_offload_is_no_bad_checksum(tmp_path):
    """Captured at the sender, the checksum field holds the pseudo-header's sum only; another wrong one is dropped."""
    from scapy.layers.inet import in4_pseudoheader
    from scapy.utils import checksum

    talk = dialogue()
    for packet in talk.packets:
        length = len(bytes(packet[TCP]))
        packet[TCP].chksum = 0xFFFF ^ checksum(in4_pseudoheader(6, packet[IP], length))
    run = Run(write(tmp_path / "in.pcap", frames(talk.packets)))
    assert (run.summary["edited"], run.summary["dropped"]) == (1, 0)
    assert payload(run.frames[9][1], 14) == b"XXXXXXXX\r\nNOOP\r\n", "what was edited has the full sum"
    talk.packets[5][TCP].chksum ^= 0x0101
    run = Run(write(tmp_path / "in.pcap", frames(talk.packets)))
    assert run.summary["dropped"] >= 1
    assert any(event["nfqguard"].get("reason") == "bad-checksum" for event in run.events)


def test_a_cut_record_is_never_judged(tmp_path):
    given = frames(dialogue().packets)
    path = tmp_path / "in.pcap"
    writer = PcapWriter(str(path), linktype=1)
    writer.write_header(None)
    for index, (time, data) in enumerate(given):
        kept = data[:60] if index == 9 else data
        writer._write_packet(kept, 1, sec=int(time), usec=round(time % 1 * 10**6), caplen=len(kept), wirelen=len(data))
    writer.close()
    run = Run(path)
    assert not any(b"EXPN" in data for _, data in run.frames)
    assert run.summary["dropped"] >= 1
    assert any(event["nfqguard"].get("reason") == "truncated-packet" for event in run.events)


def test_a_cut_record_of_others_keeps_its_length(tmp_path):
    given = frames(dialogue(port=80).packets)
    path = tmp_path / "in.pcap"
    writer = PcapWriter(str(path), linktype=1)
    writer.write_header(None)
    for time, data in given:
        writer._write_packet(data[:54], 1, sec=int(time), usec=0, caplen=54, wirelen=len(data))
    writer.close()
    run = Run(path)
    with RawPcapNgReader(str(run.out)) as reader:
        assert [(len(data), meta.wirelen) for data, meta in reader] == [(54, len(data)) for _, data in given]


# ---- time --------------------------------------------------------------------------------------------------------


class Clock:
    """An engine's ear: notes the moments of its ticks, and passes everything on to the real one."""

    def __init__(self, engine):
        self.engine, self.ticks = engine, []

    def tick(self, now):
        self.ticks.append(now)
        return self.engine.tick(now)

    def __getattr__(self, name):
        return getattr(self.engine, name)


def replayed(times: list[float]) -> Clock:
    data = bytes(ethernet(Talk().add(0, "S"), 0))
    replay = Replay(load_preset("ios-esmtp"), 1, lambda record: None, lambda event: None)
    replay._engine = clock = Clock(replay._engine)
    replay.run(Record(int(time * 10**9), data, len(data)) for time in times)
    return clock


def test_a_tick_at_every_whole_second():
    clock = replayed([START + 0.5, START + 0.9, START + 3.2, START + 3.3, START + 4])
    assert clock.ticks == [(START + second) * 10**9 for second in (1, 2, 3, 4)]


def test_a_long_silence_is_collapsed():
    clock = replayed([START, START + 10**9])
    assert len(clock.ticks) == 8001
    assert clock.ticks[-2:] == [(START + 8000) * 10**9, (START + 10**9) * 10**9]


def test_the_clock_never_goes_back(tmp_path):
    clock = replayed([START + 5, START + 1, START + 6.5])
    assert clock.ticks == [(START + 6) * 10**9]
    given = frames(dialogue().packets)
    given[4] = (START - 100, given[4][1])
    run = Run(write(tmp_path / "in.pcap", given))
    assert run.frames[4][0] == START - 100, "its own time stays on the packet"
    assert run.summary["dropped"] == 0


def test_a_flow_expires_by_the_captures_clock(tmp_path):
    talk = dialogue()
    late = Talk(source_port=50000)
    late.time = START + 5000
    late.add(0, "S")
    kept = [*talk.packets[:-3], *late.packets]
    run = Run(write(tmp_path / "in.pcap", frames(kept)))
    first = next(event for event in run.events if event["event_type"] == "flow")
    assert first["nfqguard"]["reason"] == "timeout"
    assert 3600 <= first["flow"]["age"] < 3700


# ---- held, injected ----------------------------------------------------------------------------------------------


def test_a_held_packet_leaves_when_it_is_released(tmp_path):
    """What a client sends behind DATA waits for the server's reply."""
    talk = Talk().open().say(1, b"220 x\r\n").say(0, b"HELO c\r\n").say(1, b"250 x\r\n")
    talk.say(0, b"MAIL FROM:<a@b.example>\r\n").say(1, b"250 ok\r\n")
    talk.say(0, b"RCPT TO:<c@d.example>\r\n").say(1, b"250 ok\r\n").say(0, b"DATA\r\n")
    early = talk.add(0, "PA", b"EXPN is text here\r\n.\r\n")
    reply = talk.add(1, "PA", b"354 go on\r\n", ack=talk.seq[0] - len(b"EXPN is text here\r\n.\r\n"))
    talk.add(1, "A")
    given = frames(talk.packets)
    run = Run(write(tmp_path / "in.pcap", given))
    at = talk.packets.index(early)
    assert run.summary["dropped"] == 0
    order = [payload(data, 14) for _, data in run.frames]
    assert order[at] == b"354 go on\r\n"
    assert order[at + 1] == b"EXPN is text here\r\n.\r\n"
    assert run.frames[at + 1][0] == float(reply.time) > float(early.time)


@pytest.mark.parametrize("link", LINKS)
def test_injected_packets_have_their_directions_link_header(tmp_path, link):
    """max-data ends the session: a reset to both ends, each looking like a packet of its direction."""
    config = tmp_path / "nfqguard.toml"
    config.write_text('policy = "tiny"\n[policies.tiny]\nextends = "ios-esmtp"\nmax-data = 10\n')
    talk = Talk().open().say(1, b"220 x\r\n").say(0, b"HELO c\r\n").say(1, b"250 x\r\n")
    talk.say(0, b"MAIL FROM:<a@b.example>\r\n").say(1, b"250 ok\r\n")
    talk.say(0, b"RCPT TO:<c@d.example>\r\n").say(1, b"250 ok\r\n").say(0, b"DATA\r\n").say(1, b"354 go on\r\n")
    start = len(talk.packets)
    talk.add(0, "PA", b"much more than ten octets of text\r\n.\r\n")
    link_type, _, header = LINKS[link]
    given = frames(talk.packets, link)
    run = Run(write(tmp_path / "in.pcap", given, link_type), "--config", str(config), preset=None)
    assert (run.summary["injected"], run.summary["dropped"]) == (2, 1)
    left = run.frames
    assert left[:start] == given[:start]
    by_direction = {IP(data[header:]).src: data[:header] for _, data in given}
    for time, data in left[start:]:
        packet = IP(data[header:])
        assert packet[TCP].flags.R
        assert data[:header] == by_direction[packet.src]
        assert time == given[start][0]
        payload(data, header)
    assert {IP(data[header:]).src for _, data in left[start:]} == {CLIENT, SERVER}
    (reset,) = [event for event in run.events if event["nfqguard"].get("action") == "reset"]
    assert reset["nfqguard"]["reason"] == "max-data"


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("family", [4, 6])
def test_a_direction_never_seen_gets_the_other_ones_header_turned(tmp_path, link, family):
    """A segment of a connection that began before the capture: both ends are reset, and one has sent nothing here."""
    config = tmp_path / "nfqguard.toml"
    config.write_text('policy = "m"\n[policies.m]\nextends = "ios-esmtp"\nexceptions.midstream = "reset"\n')
    talk = Talk(family)
    talk.add(0, "PA", b"NOOP\r\n", ack=9000)
    link_type, wrap, header = LINKS[link]
    given = frames(talk.packets, link)
    run = Run(write(tmp_path / "in.pcap", given, link_type), "--config", str(config), preset=None)
    assert (run.summary["injected"], run.summary["dropped"]) == (2, 1)
    back = bytes(wrap(talk.packets[0], 1))[:header] if link_type == 1 else given[0][1][:header]
    assert {data[:header] for _, data in run.frames} == {given[0][1][:header], back}
    for _, data in run.frames:
        assert network_offset(link_type, data) == header
        payload(data, header)


@pytest.mark.parametrize("link_type", [1, 113, 276, 101, 12, 14, 228])
@pytest.mark.parametrize("version", [4, 6])
def test_a_header_made_from_nothing_is_one(link_type, version):
    header = plain_header(link_type, version)
    assert network_offset(link_type, header + bytes([version << 4])) == len(header)
    assert turned(link_type, turned(link_type, header)) == header


# ---- input that cannot be used -----------------------------------------------------------------------------------


def refused(path: Path, *options: str, preset: str | None = "ios-esmtp") -> str:
    """The one line that says why; nothing is left behind."""
    before = {entry: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()}
    run = Run(path, *options, preset=preset)
    assert run.code == 2, run.result.output
    assert run.result.stdout == ""
    assert run.result.stderr.count("\n") == 1
    after = {entry: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file() and entry != run.eve}
    assert after == before
    return run.result.stderr.rstrip("\n")


def test_no_capture(tmp_path):
    path = tmp_path / "in.pcap"
    assert refused(path) == f"{path}: cannot be read (No such file or directory)"
    for content in (b"", b"\x00", b"GET / HTTP/1.0\r\n\r\n", b"\xd4\xc3\xb2\xa1", b"\x0a\x0d\x0d\x0a" + b"\xff" * 40,
                    b"\x1f\x8bnot gzip at all"):
        path.write_bytes(content)
        assert refused(path) == f"{path}: this is no pcap or pcapng capture", content


def test_a_link_type_that_we_do_not_know(tmp_path):
    path = write(tmp_path / "in.pcap", [(START, b"x" * 60)], 105)
    assert refused(path) == (f"{path}: link type 105 is not supported: capture on an Ethernet, Linux cooked (v1, v2) "
                             f"or raw "
                             "IP interface")


def test_mixed_link_types(tmp_path):
    path = tmp_path / "in.pcapng"
    writer = PcapNgWriter(str(path))
    writer.linktype = 1
    writer.write_header(None)
    (_, frame), (_, packet) = frames(dialogue().packets)[0], frames(dialogue().packets, "raw")[1]
    writer._write_packet(frame, 1, sec=START, ifname=None)
    writer._write_packet(packet, 101, sec=START, ifname=b"tun0")
    writer.close()
    assert refused(path) == f"{path}: record 2 has link type 101, those before it 1: replay the interfaces one by one"


def test_a_time_that_pcap_cannot_hold(tmp_path):
    path = write(tmp_path / "in.pcapng", [(2**33, frames(dialogue().packets)[0][1])], 1, ng=True)
    assert refused(path) == (f"{path}: record 1 has a time after the year 2106: correct it, for example with editcap "
                             f"-t")


@pytest.mark.parametrize("cut", [1, 15, 16, 30])
def test_a_damaged_end_is_said_and_the_rest_replayed(tmp_path, cut):
    whole = write(tmp_path / "whole.pcap", frames(dialogue().packets))
    last = write(tmp_path / "last.pcap", frames(dialogue().packets)[:1])
    path = tmp_path / "in.pcap"
    path.write_bytes(whole.read_bytes() + last.read_bytes()[24:24 + cut])
    run = Run(path)
    assert (run.code, run.summary["packets-in"], run.summary["edited"]) == (0, 16, 1)
    assert run.summary["damage"].startswith(f"{path}: damaged behind record 16 (")
    assert run.summary["damage"].endswith("): what lies before was replayed")
    assert run.result.stderr == f"warning: {run.summary['damage']}\n"


def test_a_damaged_pcapng(tmp_path):
    whole = write(tmp_path / "whole.pcapng", frames(dialogue().packets), ng=True)
    path = tmp_path / "in.pcapng"
    for cut in (1, 9, 30):
        path.write_bytes(whole.read_bytes()[:-cut])
        run = Run(path)
        assert (run.code, run.summary["packets-in"]) == (0, 15)
        assert run.summary["damage"].startswith(f"{path}: damaged behind record 15 (")


def test_an_absurd_length_ends_the_capture(tmp_path):
    whole = write(tmp_path / "whole.pcap", frames(dialogue().packets))
    path = tmp_path / "in.pcap"
    path.write_bytes(whole.read_bytes() + struct.pack("=IIII", START, 0, 0xFFFFFFF0, 0xFFFFFFF0) + b"x" * 500)
    run = Run(path)
    assert (run.code, run.summary["packets-in"]) == (0, 16)
    assert "(the next one is not complete)" in run.summary["damage"]


CLASSES = """\
policy = "ios-esmtp"
[[classes]]
name = "by-interface"
in-interfaces = ["eth0"]
exempt = true
[[classes]]
name = "all-of-this"
ports = [{port}]
exempt = true
[deployment]
ports = [25, 26]
"""


@pytest.mark.parametrize("port,edited", [(25, 0), (26, 1)])
def test_classes_are_asked_but_for_those_that_name_interfaces(tmp_path, port, edited):
    config = tmp_path / "nfqguard.toml"
    config.write_text(CLASSES.format(port=port))
    run = Run(write(tmp_path / "in.pcap", frames(dialogue().packets)), "--config", str(config), preset=None)
    assert (run.code, run.summary["edited"], run.summary["diverted"]) == (0, edited, 16)
    assert run.result.stderr == (
        "warning: a capture knows no interfaces, so no connection belongs to the class 'by-interface'\n")
    policy = "ios-esmtp" if edited else "exempt"
    assert {event["nfqguard"]["policy"] for event in run.events if event["event_type"] == "flow"} == {policy}


def test_policies_that_cannot_be_had(tmp_path):
    path = write(tmp_path / "in.pcap", [])
    assert refused(path, preset="ios").startswith("preset ios: there is no such preset: did you mean")
    missing = tmp_path / "none.toml"
    assert refused(path, "--config", str(missing), preset=None) == (
        f"{missing}: cannot be read (No such file or directory): give a file that can be read")
    run = Run(path, "--config", str(missing))
    assert run.code == 2
    assert "--config and --preset exclude each other: give one of them" in run.result.stderr


def test_places_that_cannot_be_written(tmp_path):
    path = write(tmp_path / "in.pcap", frames(dialogue().packets))
    nowhere = tmp_path / "none" / "out.pcap"
    assert refused(path, "--write", str(nowhere)) == f"{nowhere}: cannot be written (No such file or directory)"
    (tmp_path / "taken").write_text("")
    blocked = tmp_path / "taken" / "eve.json"
    assert refused(path, "--events", str(blocked)).endswith("cannot be written (Not a directory)")
    assert refused(path, "--write", "/dev/full") == "/dev/full: cannot be written (No space left on device)"


def test_a_device_is_written_to_and_not_replaced(tmp_path):
    path = write(tmp_path / "in.pcap", frames(dialogue().packets))
    assert Run(path, "--write", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


def test_in_place(tmp_path):
    path = write(tmp_path / "in.pcap", frames(dialogue().packets))
    run = Run(path, "--write", str(path))
    assert run.code == 0
    assert len(read(path)) == 16
    assert b"EXPN" not in path.read_bytes()


# ---- what the operator sees --------------------------------------------------------------------------------------


def test_the_summary_in_words(tmp_path):
    path = write(tmp_path / "in.pcap", frames(dialogue().packets))
    result = CliRunner().invoke(main, ["replay", str(path), "--preset", "asa"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "packets: in 16, out 16, edited 3, dropped 0, injected 0\n"
        "inspected: 16 packets, 1 flows\n"
        "events: answer 1, flow 1, mask-banner 1, mask-command 1, mask-keyword 1, match 1\n")
    assert {entry.name for entry in tmp_path.iterdir()} == {"in.pcap"}
    result = CliRunner().invoke(main, ["replay", str(write(path, []))])
    assert result.stdout.endswith("events: none\n")


def test_events_on_standard_output_are_alone_there(tmp_path, capfd):
    path = write(tmp_path / "in.pcap", frames(dialogue().packets))
    with pytest.raises(SystemExit) as caught:
        main(["replay", str(path), "--preset", "ios-esmtp", "--events", "-"])
    out, err = capfd.readouterr()
    assert not caught.value.code
    assert [json.loads(line)["event_type"] for line in out.splitlines()] == ["smtp", "smtp", "flow"]
    assert err.startswith("packets: in 16, ")


def test_scapy_reads_what_is_written(tmp_path):
    run = Run(write(tmp_path / "in.pcap", frames(dialogue().packets)))
    packets = rdpcap(str(run.out))
    assert [packet[TCP].flags for packet in packets][:3] == ["S", "SA", "A"]
