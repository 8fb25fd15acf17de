"""One value per octet, for ever: retransmission, overlap, reordering, forgery, as seen by the ends."""
from __future__ import annotations

import itertools
import random

import pytest
from wire import ACK, CLIENT, FIN, LINKS, RST, SECOND, SERVER, SYN, URG, Wire, preset_spec

from nfqguard.engine import PacketFlag, Policy
from nfqguard.report.event import EventType

C, S = CLIENT, SERVER


def greeted(**settings):
    wire = Wire(**settings).open()
    wire.say(S, b"220 mail ESMTP\r\n")
    return wire


def test_retransmission_with_other_content_leaves_as_the_first():
    wire = greeted()
    wire.acknowledge = False
    wire.send(wire.segment(C, b"EXPN a\r\n"))
    wire.send(wire.segment(C, b"NOOP b\r\n"))
    assert [s.payload for s in wire.ends[S].segments[-2:]] == [b"XXXXXX\r\n"] * 2
    assert wire.counter("retransmissions-restored") == 1


@pytest.mark.parametrize("lie", [b"NOOP zzzz\r\n", b"EXPN", b"QQQQQQQQQQQQQQQQQQQQQQQQQ"])
def test_retransmission_cut_anywhere(lie):
    text = b"NOOP one\r\nEXPN two\r\nNOOP three\r\n"
    truth = b"NOOP one\r\nXXXXXXXX\r\nNOOP three\r\n"
    wire = greeted()
    wire.acknowledge = False
    for at in range(0, len(text), 5):
        wire.say(C, text[at:at + 5])
    base = wire.ends[C].isn + 1
    assert wire.at_server[:11] == truth[:11]
    first = wire.at_server
    for start, end in itertools.combinations(range(0, len(text)), 2):
        wire.send(wire.segment(C, (lie * 9)[: end - start], seq=base + start))
        assert wire.ends[S].segments[-1].payload == first[start:end]


def test_overlap_keeps_the_old_and_judges_the_new():
    wire = greeted()
    wire.acknowledge = False
    wire.say(C, b"NOOP a")
    wire.send(wire.segment(C, b"EXPN b\r\nEXPN c\r\n", seq=wire.ends[C].isn + 1))
    assert wire.ends[S].segments[-1].payload == b"NOOP a\r\nXXXXXX\r\n"


def test_octets_the_receiver_has_are_not_let_through_again():
    wire = greeted()
    wire.say(C, b"NOOP a\r\n")
    wire.send(wire.segment(C, b"EXPN a\r\n", seq=wire.ends[C].isn + 1))
    assert wire.ends[S].segments[-1].payload == bytes(8)
    assert wire.at_server == b"NOOP a\r\n"


def test_keep_alive_passes_unread():
    wire = greeted()
    wire.say(C, b"NOOP a\r\n")
    for probe in (b"", b"\0"):
        wire.send(wire.segment(C, probe, seq=wire.ends[C].isn + wire.ends[C].sent))
        assert wire.ends[S].segments[-1].payload == probe


def test_any_order_of_segments_gives_the_linear_result():
    text = b"NOOP 1\r\nEXPN 2\r\nVRFY 3\r\nVERB 4\r\nNOOP 5\r\n"
    truth = b"NOOP 1\r\nXXXXXX\r\nVRFY 3\r\nXXXXXX\r\nNOOP 5\r\n"
    pieces = [(at, text[at:at + 8]) for at in range(0, len(text), 8)]
    for order in itertools.permutations(pieces):
        wire = greeted()
        for at, piece in order:
            wire.send(wire.segment(C, piece, seq=wire.ends[C].isn + 1 + at))
        assert wire.at_server == truth
        assert not wire.dropped


def test_random_cuts_orders_and_lies():
    chance = random.Random(4711)
    text = b"".join(b"NOOP %d\r\nEXPN %d\r\n" % (n, n) for n in range(7))
    truth = b"".join(b"NOOP %d\r\n" % n + b"X" * len(b"EXPN %d" % n) + b"\r\n" for n in range(7))
    for _ in range(300):
        wire = greeted()
        base = wire.ends[C].isn + 1
        for _ in range(2000):
            if len(wire.at_server) == len(text) or wire.ends[S].reset:
                break
            at = chance.randrange(max(len(wire.at_server) - 20, 0), min(len(wire.at_server) + 60, len(text)))
            size = chance.randrange(1, 40)
            wire.acknowledge = chance.random() < 0.8
            wire.send(wire.segment(C, text[at:at + size], seq=base + at))
        assert wire.ends[S].reset or len(wire.at_server) == len(truth)
        for got, want in zip(wire.at_server.split(b"\r\n"), truth.split(b"\r\n"), strict=False):
            assert got == want or (b"EXPN"[:3].startswith(got[:3].rstrip(b"X")) and b"X" in got) or wire.ends[S].reset


def test_hold_is_bounded():
    wire = greeted(held_per_flow=4)
    base = wire.ends[C].isn + 1
    for at in range(10, 20):
        wire.send(wire.segment(C, b"z", seq=base + at))
    assert wire.counter("held") == 4 and wire.counter("drop.held-limit") == 6
    wire.send(wire.segment(C, b"z", seq=base + 11))
    assert wire.counter("drop.held-already") == 1


def test_held_packets_expire():
    wire = greeted()
    held = wire.send(wire.segment(C, b"NOOP\r\n", seq=wire.ends[C].isn + 100))
    assert held not in wire.decided
    wire.tick(5)
    assert held not in wire.decided
    wire.tick(8)
    assert held in wire.dropped


@pytest.mark.parametrize("forged", [b"354 go\r\n", b"220 go\r\n", b"250 ok\r\n", b""])
def test_the_client_cannot_speak_for_the_server(forged):
    """A client knows both sequence numbers; what betrays it is the interface it comes from."""
    wire = greeted()
    wire.say(C, b"DATA\r\n")
    before = wire.at_client
    for links in (LINKS[C], (11, 11), (0, 0), (22, 22)):
        wire.send(wire.segment(S, forged), links)
        wire.send(wire.segment(S, forged, ack=wire.ends[C].isn + 1 + wire.ends[C].sent + 1000), links)
    wire.say(C, b"EXPN a\r\n")
    assert wire.at_server == b"DATA\r\n"
    assert wire.at_client == before
    wire.say(S, b"503 no\r\n")
    assert wire.at_server == b"DATA\r\nXXXXXX\r\n"
    assert wire.counter("drop.wrong-interface") + wire.counter("drop.midstream") == 8


def test_an_ack_beyond_what_was_forwarded_frees_nothing():
    wire = greeted()
    wire.acknowledge = False
    wire.say(C, b"EXPN a\r\n")
    wire.send(wire.segment(S, ack=wire.ends[C].isn + 1 + 500))
    assert wire.counter("drop.ack-beyond") == 1
    wire.send(wire.segment(C, b"NOOP b\r\n", seq=wire.ends[C].isn + 1))
    assert wire.ends[S].segments[-1].payload == b"XXXXXX\r\n"


def test_data_beyond_the_window_is_dropped():
    wire = greeted()
    wire.send(wire.segment(S, window=5))
    wide = wire.ends[C].isn + 1 + 65000
    wire.send(wire.segment(C, b"NOOP\r\n", seq=wide))
    assert wire.counter("drop.outside-window") == 1


def test_rst_counts_only_where_the_receiver_would_take_it():
    wire = greeted()
    for offset in (1, 1000, -1):
        wire.send(wire.segment(C, flags=RST, seq=wire.ends[C].isn + 1 + wire.ends[C].sent + offset))
    assert wire.counter("drop.rst-sequence") == 3 and not wire.ends[S].reset
    wire.say(C, b"EXPN\r\n")
    assert wire.at_server == b"XXXX\r\n"
    wire.send(wire.segment(C, flags=RST))
    assert wire.ends[S].reset


def test_rst_before_the_handshake_must_acknowledge_the_syn():
    wire = Wire()
    wire.send(wire.segment(C, seq=1000, ack=0, flags=SYN))
    wire.send(wire.segment(S, seq=0, ack=5, flags=RST | ACK))
    assert wire.counter("drop.rst-sequence") == 1
    wire.send(wire.segment(S, seq=0, ack=1001, flags=RST | ACK))
    assert wire.ends[C].reset


def test_data_in_a_syn_and_fast_open_are_trimmed():
    wire = Wire()
    wire.send(wire.segment(C, b"EXPN a\r\n", seq=1000, ack=0, flags=SYN, options=b"\x22\x04\x01\x02"))
    assert wire.ends[S].segments[-1].payload == b""
    assert wire.ends[S].segments[-1].options == b"\x01" * 4


def test_urgent_is_cleared():
    wire = greeted()
    wire.send(wire.segment(C, b"NOOP\r\n", flags=ACK | URG, urgent=3))
    segment = wire.ends[S].segments[-1]
    assert segment.flags & URG == 0 and segment.urgent == 0 and segment.payload == b"NOOP\r\n"


@pytest.mark.parametrize("size", [0, 3000])
def test_urgent_stays_cleared_in_a_packet_that_waited(size):
    """The receiver would take the x out, and read the end of the data where the inspection read none."""
    wire = greeted()
    wire.say(C, b"DATA\r\n")
    body = b"a" * size + b"\r\n.x\r\nEXPN a\r\n.\r\n"
    wire.send(wire.segment(C, body, flags=ACK | URG, urgent=size + 4))
    wire.say(S, b"354 go\r\n")
    segment = wire.ends[S].segments[-1]
    assert segment.payload == body and segment.flags & URG == 0 and segment.urgent == 0


def test_a_clamped_window_stays_clamped_in_a_packet_that_waited():
    wire = Wire(store_per_stream=67584)
    options = b"\x02\x04\x05\xb4\x03\x03\x07\0"
    client, server = wire.ends
    wire.send(wire.segment(C, seq=client.isn, ack=0, flags=SYN, options=options))
    wire.send(wire.segment(S, seq=server.isn, ack=client.isn + 1, flags=SYN | ACK, options=options))
    wire.send(wire.segment(C, window=500))
    wire.say(S, b"220 x\r\n")
    wire.send(wire.segment(C, b"NOOP\r\n", seq=client.isn + 7, window=60000))
    wire.say(C, b"NOOP\r\n")
    assert server.segments[-1].seq == client.isn + 7 and server.segments[-1].window == 67584 >> 7


def test_sequence_numbers_wrap():
    wire = Wire(isn=(0xFFFFFFF0, 0xFFFFFFFA)).open()
    wire.say(S, b"220 a long greeting\r\n")
    wire.say(C, b"NOOP a\r\nEXPN b\r\nNOOP c\r\n")
    assert wire.at_server == b"NOOP a\r\nXXXXXX\r\nNOOP c\r\n"
    assert wire.at_client == b"220 a long greeting\r\n"


def test_a_forged_syn_changes_nothing_and_a_confirmed_one_begins_anew():
    wire = greeted()
    wire.say(C, b"DATA\r\n")
    wire.send(wire.segment(C, seq=555, ack=0, flags=SYN))
    wire.say(S, b"354 go\r\n")
    wire.say(C, b"EXPN\r\n")
    assert wire.at_server.endswith(b"EXPN\r\n")
    wire.send(wire.segment(S, seq=777, ack=556, flags=SYN | ACK))
    wire.send(wire.segment(C, seq=556, ack=778))
    wire.send(wire.segment(S, b"220 x\r\n", seq=778, ack=556))
    wire.send(wire.segment(C, b"EXPN\r\n", seq=556, ack=785))
    assert wire.ends[S].segments[-1].payload == b"XXXX\r\n"
    assert wire.events[0].reason == "reopened"


def test_a_connection_that_begins_anew_is_judged_by_the_policy_of_now():
    wire = greeted()
    smtp = Policy(preset_spec("ios-smtp"))
    wire.engine.install(smtp)
    wire.say(C, b"EHLO x\r\n")
    assert wire.at_server == b"EHLO x\r\n"
    wire.send(wire.segment(C, seq=500000, ack=0, flags=SYN))
    wire.send(wire.segment(S, seq=700000, ack=500001, flags=SYN | ACK))
    wire.send(wire.segment(C, seq=500001, ack=700001))
    wire.send(wire.segment(C, b"EHLO x\r\n", seq=500001, ack=700001))
    assert wire.ends[S].segments[-1].payload == b"XXXXXX\r\n"


def test_midstream_is_dropped():
    wire = Wire()
    wire.send(wire.segment(C, b"NOOP\r\n"))
    assert wire.counter("drop.midstream") == 1 and not wire.ends[S].segments


@pytest.mark.parametrize("flags", [0, SYN | FIN, SYN | RST, SYN | ACK | FIN])
def test_flags_that_nobody_sends(flags):
    wire = greeted()
    wire.send(wire.segment(C, b"NOOP\r\n", flags=flags))
    assert wire.at_server == b""
    assert wire.counter("drop.bad-tcp-flags") == 1


def test_bad_checksum_is_dropped_and_a_partial_one_is_not():
    wire = greeted()
    packet = bytearray(wire.segment(C, b"NOOP\r\n").build())
    packet[36] ^= 1
    wire.send_packet(bytes(packet), LINKS[C])
    assert wire.counter("drop.bad-checksum") == 1 and wire.at_server == b""
    edited = bytearray(wire.segment(C, b"EXPN\r\n").build())
    edited[36:38] = b"\0\0"
    wire.send_packet(bytes(edited), LINKS[C], PacketFlag.CSUM_NOT_READY)
    assert wire.at_server == b"XXXX\r\n"


def test_truncated_and_fragmented_packets_are_dropped():
    wire = greeted()
    wire.send(wire.segment(C, b"NOOP\r\n"), flags=PacketFlag.TRUNCATED)
    fragment = bytearray(wire.segment(C, b"NOOP\r\n").build())
    fragment[6:8] = b"\x20\x00"
    wire.send_packet(bytes(fragment), LINKS[C])
    assert wire.counter("drop.truncated-packet") == 1 and wire.counter("drop.fragment") == 1
    assert wire.at_server == b""


def test_a_whole_life_leaves_a_record():
    wire = greeted()
    wire.say(C, b"QUIT\r\n")
    wire.say(S, b"221 bye\r\n")
    wire.close()
    record = wire.events[-1]
    assert record.type is EventType.FLOW and record.reason == "fin"
    assert record.packets[0] >= 5 and record.packets[1] >= 4
    wire.send(wire.segment(C, b"NOOP\r\n"))
    assert wire.at_server == b"QUIT\r\n"
    wire.tick(6)
    assert wire.counter("flows") == 0


def test_timers():
    for state, seconds in (("syn", 30), ("idle", 3600)):
        wire = Wire()
        if state == "syn":
            wire.send(wire.segment(C, seq=1000, ack=0, flags=SYN))
        else:
            wire.open()
        wire.tick(seconds - 1)
        assert wire.counter("flows") == 1
        wire.tick(2)
        assert wire.counter("flows") == 0
        assert wire.events[-1].reason == "timeout"


def test_the_ends_of_a_refused_flow_are_told_again():
    wire = greeted()
    wire.say(C, b"HEL")
    wire.say(C, b"\r\n")
    resets = len([s for s in wire.ends[C].segments if s.flags & RST])
    wire.send(wire.segment(C, b"NOOP\r\n"))
    again = [s for s in wire.ends[C].segments if s.flags & RST]
    assert len(again) == resets + 1 and wire.at_server == b"HEL"
    wire.tick(100)
    wire.send(wire.segment(C, b"NOOP\r\n"))
    wire.tick(100)
    assert wire.counter("flows") == 1
    wire.now += 30 * SECOND
    wire.tick(0)
    assert wire.counter("flows") == 0


def test_the_flow_table_gives_way_to_new_flows():
    wire = Wire(flows=4)
    for port in range(50000, 50010):
        segment = wire.segment(C, seq=1, ack=0, flags=SYN)
        wire.send(type(segment)(**{**segment.__dict__, "source_port": port}))
    assert wire.counter("flows") == 4 and wire.counter("flows-opened") == 10
    assert len([e for e in wire.events if e.reason == "evicted"]) == 6


def test_drain_decides_what_is_held_and_records_what_lives():
    wire = greeted()
    held = wire.send(wire.segment(C, b"NOOP\r\n", seq=wire.ends[C].isn + 100))
    wire.drain()
    assert held in wire.dropped and wire.counter("flows") == 0
    assert wire.events[-1].reason == "stopped"


def in_data():
    wire = greeted()
    wire.say(C, b"DATA\r\n")
    wire.say(S, b"354 go\r\n")
    return wire, wire.ends[C].isn + 1 + wire.ends[C].sent


def test_octets_behind_a_hole_in_data_go_at_once():
    wire, base = in_data()
    body = b"".join(b"line %d of the message\r\n" % n for n in range(40)) + b".\r\n"
    pieces = [(at, body[at:at + 50]) for at in range(0, len(body), 50)]
    for at, piece in pieces[1:]:
        wire.send(wire.segment(C, piece, seq=base + at))
        last = at + 50 >= len(body)
        assert (wire.ends[S].segments[-1].payload == piece) is not last
    assert wire.at_server == b"DATA\r\n"
    wire.send(wire.segment(C, b"A LIE" * 10, seq=base + 100))
    assert wire.ends[S].segments[-1].payload == body[100:150]
    wire.send(wire.segment(C, pieces[0][1], seq=base))
    assert wire.counter("messages") == 1 and not wire.ends[S].reset
    assert wire.counter("ahead") == len(pieces) - 2
    wire.acknowledge = False
    for at, piece in pieces:
        wire.send(wire.segment(C, piece, seq=base + at))
    assert wire.at_server == b"DATA\r\n" + body


def test_a_filler_that_proves_a_forwarded_octet_wrong_never_arrives():
    wire, base = in_data()
    wire.send(wire.segment(C, b"EXPN everybody\r\n", seq=base + 10))
    assert wire.ends[S].segments[-1].payload == b"EXPN everybody\r\n"
    wire.send(wire.segment(C, b"hello\r\n.\r\n", seq=base))
    assert wire.at_server == b"DATA\r\n" and wire.ends[S].reset and wire.ends[C].reset
    assert [e.reason for e in wire.events if e.type is EventType.RESET] == ["forwarded-octet-wrong"]


def test_a_filler_may_end_the_data_where_what_follows_is_allowed():
    wire, base = in_data()
    wire.send(wire.segment(C, b"NOOP\r\nQUIT\r\n", seq=base + 10))
    wire.send(wire.segment(C, b"hello\r\n.\r\n", seq=base))
    assert not wire.ends[S].reset and wire.counter("messages") == 1
    assert wire.counter("commands") == 3


def test_a_filler_longer_than_its_hole_keeps_what_went_ahead():
    wire, base = in_data()
    wire.acknowledge = False
    wire.send(wire.segment(C, b"0123456789", seq=base + 10))
    wire.send(wire.segment(C, b"abcdefghijABCDEFGHIJKLMNO", seq=base))
    assert wire.ends[S].segments[-1].payload == b"abcdefghij0123456789KLMNO"


def test_commands_behind_a_hole_wait():
    wire = greeted()
    base = wire.ends[C].isn + 1
    wire.send(wire.segment(C, b"NOOP\r\n", seq=base + 6))
    assert wire.at_server == b"" and wire.counter("held") == 1
    wire.send(wire.segment(C, b"RSET\r\n", seq=base))
    assert wire.at_server == b"RSET\r\nNOOP\r\n"


def test_a_host_that_speaks_to_itself():
    """On loopback both directions leave by OUTPUT: no interface in, the same interface out."""
    wire = Wire()
    mss = b"\x02\x04\x05\xb4"
    wire.send(wire.segment(C, seq=1000, ack=0, flags=SYN, options=mss), (0, 1))
    wire.send(wire.segment(S, seq=9000, ack=1001, flags=SYN | ACK, options=mss), (0, 1))
    wire.send(wire.segment(C), (0, 1))
    wire.send(wire.segment(C, b"EXPN\r\n"), (0, 1))
    assert wire.at_server == b"XXXX\r\n"


def test_a_window_wider_than_the_store_is_offered_narrower():
    wire = Wire(store_per_stream=100_000)
    options = b"\x02\x04\x05\xb4\x03\x03\x04\x01"
    wire.send(wire.segment(C, seq=1000, ack=0, flags=SYN, options=options))
    wire.send(wire.segment(S, seq=9000, ack=1001, flags=SYN | ACK, options=options))
    wire.send(wire.segment(C))
    wire.send(wire.segment(S, window=5000))
    assert wire.ends[C].segments[-1].window == 5000
    wire.send(wire.segment(S, window=60000))
    assert wire.ends[C].segments[-1].window == 100_000 >> 4
    wire.send(wire.segment(C, b"z", seq=wire.ends[C].isn + 1 + 100_100))
    assert wire.counter("drop.outside-window") == 1


def test_a_fin_among_decided_octets_is_taken_off():
    wire = greeted()
    wire.acknowledge = False
    wire.say(C, b"NOOP a\r\nNOOP b\r\n")
    for payload in (b"NOOP a\r\n", b""):
        wire.send(wire.segment(C, payload, seq=wire.ends[C].isn + 1, flags=FIN | ACK))
        assert not wire.ends[S].segments[-1].flags & FIN
    assert not wire.ends[S].finished


def test_a_client_that_sends_what_went_ahead_again_with_its_fin():
    wire, base = in_data()
    wire.send(wire.segment(C, b"0123456789", seq=base + 10))
    wire.send(wire.segment(C, b"abcdefghij0123456789", seq=base, flags=FIN | ACK))
    assert not wire.ends[S].reset and wire.ends[S].finished
    assert wire.at_server.endswith(b"abcdefghij0123456789")


def test_what_is_held_long_expires_behind_what_is_held_lately():
    wire = greeted()
    base = wire.ends[C].isn + 1
    old = wire.send(wire.segment(C, b"NOOP\r\n", seq=base + 200))
    wire.tick(8)
    new = wire.send(wire.segment(C, b"NOOP\r\n", seq=base + 100))
    wire.tick(4)
    assert old in wire.dropped and new not in wire.dropped


def test_a_client_that_waits_for_a_server_that_has_closed_is_told():
    wire = greeted()
    wire.say(C, b"DATA\r\n")
    wire.say(C, b"body\r\n")
    assert wire.counter("held") == 1
    wire.acknowledge = False
    wire.send(wire.segment(S, flags=FIN | ACK))
    wire.ends[S].sent += 1
    assert not wire.ends[C].reset
    wire.send(wire.segment(C))
    assert wire.ends[C].reset and wire.ends[S].reset and wire.at_server == b"DATA\r\n"
    assert [e.reason for e in wire.events if e.type is EventType.RESET] == ["server-closed"]


def test_a_server_that_closes_instead_of_taking_data_keeps_nobody_waiting():
    wire = greeted()
    wire.say(C, b"DATA\r\n")
    wire.say(C, b"body\r\nQUIT\r\n")
    assert wire.counter("held") == 1
    wire.say(S, b"421 going away\r\n")
    assert wire.at_client.endswith(b"421 going away\r\n")
    assert wire.at_server == b"DATA\r\nXXXX\r\nQUIT\r\n"


@pytest.mark.parametrize("size", [1795, 1800, 1805, 1900, 2000, 2008, 2015, 4000])
def test_what_was_held_and_what_follows_stay_as_they_left(size):
    """Held octets are kept in their packet's own block; what comes behind must not be written into it."""
    wire = greeted()
    wire.acknowledge = False
    base = wire.ends[C].isn + 1
    text = b"".join(b"NOOP %06d\r\n" % n for n in range(size // 13 + 2))
    pieces = [(0, 6), (6, 6 + size), (6 + size, 6 + size + 5), (6 + size + 5, 6 + size + 9)]
    for start, end in (pieces[1], pieces[0], *pieces[2:]):
        wire.send(wire.segment(C, text[start:end], seq=base + start))
    assert wire.at_server == text[:6 + size + 9]
    for start, end in pieces:
        wire.send(wire.segment(C, b"?" * (end - start), seq=base + start))
        assert wire.ends[S].segments[-1].payload == text[start:end]
