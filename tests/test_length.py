"""Edits that change the length: both ends keep their own numbers, and neither notices."""
from __future__ import annotations

import random

import pytest
from wire import ACK, CLIENT, FIN, RST, SERVER, SYN, Segment, Wire, play, preset_spec, two_way_cuts

from nfqguard.engine import Policy
from nfqguard.report.event import EventType

C, S = CLIENT, SERVER
HEADER = "X-Gateway: inspected by nfqguard"
TEXT = "mail gateway, nothing to see here, ESMTP"
EDITING = Policy(preset_spec("asa", banner="text", banner_text=TEXT, remove_keywords=True, insert_header=HEADER))

DIALOGUE = [
    (S, b"220 mail.example.org ESMTP\r\n"),
    (C, b"EHLO client.example.net\r\n"),
    (S, b"250-mail.example.org\r\n250-STARTTLS\r\n250-SIZE 1000\r\n250-CHUNKING\r\n250 SMTPUTF8\r\n"),
    (C, b"MAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"),
    (S, b"250 ok\r\n250 ok\r\n354 go\r\n"),
    (C, b"Subject: one\r\n\r\nbody\r\n.\r\n"),
    (S, b"250 queued\r\n"),
    (C, b"EXPN a\r\n"),
    (S, b"500 what\r\n"),
    (C, b"MAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"),
    (S, b"250 ok\r\n250 ok\r\n354 go\r\n"),
    (C, b".\r\n"),
    (S, b"250 queued\r\n"),
    (C, b"QUIT\r\n"),
    (S, b"221 bye\r\n"),
]
AT_CLIENT = (
    b"220 " + TEXT.encode() + b"\r\n250-mail.example.org\r\n250 SIZE 1000\r\n"
    b"250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n500 what\r\n250 ok\r\n250 ok\r\n354 go\r\n250 queued\r\n221 bye\r\n")
AT_SERVER = (
    b"EHLO client.example.net\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
    + HEADER.encode() + b"\r\nSubject: one\r\n\r\nbody\r\n.\r\nXXXXXX\r\n"
    b"MAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n" + HEADER.encode() + b"\r\n.\r\nQUIT\r\n")


def assert_ends_agree(wire):
    """Each end has acknowledged exactly what the other has sent, in the other's own numbers."""
    for side in (C, S):
        own = wire.ends[side]
        assert max(s.ack for s in own.segments if s.flags & ACK) == own.isn + 1 + own.sent


@pytest.mark.parametrize("family", [4, 6])
def test_whole_packets(family):
    wire = play(DIALOGUE, EDITING, family=family)
    assert wire.at_client == AT_CLIENT
    assert wire.at_server == AT_SERVER
    assert_ends_agree(wire)
    wire.close()
    assert wire.ends[C].finished and wire.ends[S].finished
    assert wire.events[-1].reason == "fin"
    kinds = [event.type for event in wire.events]
    assert kinds.count(EventType.REMOVE_KEYWORD) == 3
    assert kinds.count(EventType.INSERT_HEADER) == 2
    assert kinds.count(EventType.REPLACE_BANNER) == 1
    assert not wire.dropped


def masked(at_server):
    """The first letter of a forbidden verb may have gone before the verb was known."""
    return at_server.replace(b"EXXXXX", b"XXXXXX")


def comparable(at_client):
    """Keyword lines that came in pieces are masked, not removed: leave them out."""
    lines = [line for line in at_client.split(b"\r\n") if b"XX" not in line]
    return [line.replace(b"250-", b"250 ") for line in lines]


def test_every_two_way_cut():
    for cuts in two_way_cuts(DIALOGUE):
        wire = play(DIALOGUE, EDITING, cuts)
        if wire.ends[C].reset:
            assert next(iter(cuts)) == 2, cuts
            continue
        assert masked(wire.at_server) == AT_SERVER, cuts
        assert comparable(wire.at_client) == comparable(AT_CLIENT), cuts
        for line in wire.at_client.split(b"\r\n"):
            assert not line[4:].startswith((b"STARTTLS", b"CHUNKING", b"SMTPUTF8")), cuts
        assert_ends_agree(wire)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 13])
def test_small_packets(step):
    wire = play(DIALOGUE, EDITING, step=step)
    assert masked(wire.at_server) == AT_SERVER
    assert comparable(wire.at_client) == comparable(AT_CLIENT)
    assert_ends_agree(wire)


def opened(*, acknowledge=True):
    wire = Wire(EDITING).open()
    for side, octets in DIALOGUE[:5]:
        wire.say(side, octets)
    wire.acknowledge = acknowledge
    return wire


def test_retransmissions_carry_what_was_added_however_they_are_cut():
    chance = random.Random(7)
    wire = opened(acknowledge=False)
    before = len(wire.at_server)
    body = b"Subject: one\r\n\r\nbody\r\n"
    base = wire.ends[C].isn + 1 + wire.ends[C].sent
    out = wire.ends[S].peer_isn + 1 + before
    wire.send(wire.segment(C, body, seq=base))
    left = HEADER.encode() + b"\r\n" + body
    assert wire.at_server[before:] == left
    for _ in range(200):
        start = chance.randrange(len(body))
        end = chance.randrange(start + 1, len(body) + 1)
        wire.send(wire.segment(C, bytes(chance.randbytes(end - start)), seq=base + start))
        segment = wire.ends[S].segments[-1]
        at = segment.seq - out
        assert segment.payload == left[at:at + len(segment.payload)] and segment.payload
        assert at == 0 or at == start + len(HEADER) + 2


def test_an_ack_inside_an_insertion_acknowledges_nothing_of_the_sender():
    wire = opened(acknowledge=False)
    base = wire.ends[C].isn + 1 + wire.ends[C].sent
    wire.send(wire.segment(C, b"Subject: one\r\n", seq=base))
    out = wire.ends[S].rcv_nxt - len(b"Subject: one\r\n") - len(HEADER) - 2
    for into, expected in ((0, 0), (1, 0), (len(HEADER) + 1, 0), (len(HEADER) + 2, 0), (len(HEADER) + 5, 3)):
        wire.send(wire.segment(S, ack=out + into))
        assert wire.ends[C].segments[-1].ack == base + expected


def sack(*edges):
    return b"\x01\x01\x05" + bytes([2 + 4 * len(edges)]) + b"".join((e & 0xFFFFFFFF).to_bytes(4, "big") for e in edges)


def test_sack_blocks_are_translated():
    wire = opened(acknowledge=False)
    base = wire.ends[C].isn + 1 + wire.ends[C].sent
    wire.send(wire.segment(C, b"Subject: one\r\n\r\n", seq=base))
    grown = len(HEADER) + 2
    first = wire.ends[S].rcv_nxt - 16 - grown
    blocks = sack(first + grown + 4, first + grown + 8, first + 3, first + grown + 2)
    wire.send(wire.segment(S, ack=first, options=blocks))
    options = wire.ends[C].segments[-1].options
    edges = [int.from_bytes(options[at:at + 4], "big") for at in range(4, 20, 4)]
    assert edges == [base + 4, base + 8, base, base + 2]


def test_the_window_leaves_room_for_what_was_added():
    wire = opened(acknowledge=False)
    base = wire.ends[C].isn + 1 + wire.ends[C].sent
    wire.send(wire.segment(C, b"Subject: one\r\n", seq=base))
    first = wire.ends[S].rcv_nxt - 14 - len(HEADER) - 2
    wire.send(wire.segment(S, ack=first, window=1000))
    assert wire.ends[C].segments[-1].window == 1000 - len(HEADER) - 2
    wire.send(wire.segment(S, ack=wire.ends[S].rcv_nxt, window=1000))
    assert wire.ends[C].segments[-1].window == 1000


def test_mss_is_lowered_where_a_policy_may_lengthen():
    wire = Wire(EDITING).open()
    for side in (C, S):
        syn = next(s for s in wire.ends[side].segments if s.flags & SYN)
        assert syn.options == b"\x02\x04" + (1460 - len(TEXT)).to_bytes(2, "big")
    plain = Wire("asa").open()
    assert next(s for s in plain.ends[S].segments if s.flags & SYN).options == b"\x02\x04\x05\xb4"


def test_octets_that_are_taken_out_are_acknowledged_all_the_same():
    """The client gets an empty segment and answers it; the server must learn that its octets arrived."""
    wire = Wire(EDITING).open()
    wire.say(S, b"220 ")
    wire.say(S, b"mail")
    wire.say(S, b".example.org")
    removed = wire.ends[C].segments[-1]
    assert removed.payload == b"" and removed.seq == wire.ends[C].rcv_nxt - 1
    wire.send(wire.segment(C))
    assert wire.ends[S].segments[-1].ack == wire.ends[S].isn + 1 + wire.ends[S].sent


def test_rst_and_fin_carry_the_receivers_numbers():
    for flags in (RST, FIN | ACK):
        wire = opened()
        wire.say(C, b"Subject: one\r\n")
        expected = wire.ends[S].rcv_nxt
        wire.send(wire.segment(C, flags=flags))
        assert wire.ends[S].segments[-1].seq == expected
        assert wire.ends[S].segments[-1].flags == flags


def test_a_reset_of_ours_fits_both_ends():
    wire = opened()
    wire.say(C, b"Subject: one\r\n.\r\n")
    wire.say(S, b"250 ok\r\n")
    wire.say(C, b"HEL")
    wire.acknowledge = False
    expected = (wire.ends[C].rcv_nxt, wire.ends[S].rcv_nxt)
    wire.say(C, b"\r\n")
    resets = [next(s for s in end.segments if s.flags & RST) for end in wire.ends]
    assert tuple(s.seq for s in resets) == expected
    assert resets[C].ack == wire.ends[C].isn + 1 + wire.ends[C].sent - 2


def test_message_data_behind_a_hole_goes_at_once_behind_the_insertion():
    wire = opened(acknowledge=False)
    base = wire.ends[C].isn + 1 + wire.ends[C].sent
    wire.send(wire.segment(C, b"0123456789", seq=base + 20))
    assert wire.counter("ahead") == 0 and wire.counter("held") == 1
    wire.send(wire.segment(C, b"Subject: abcdefghij\n", seq=base))
    wire.send(wire.segment(C, b"klmno", seq=base + 40))
    segment = wire.ends[S].segments[-1]
    assert wire.counter("ahead") == 1 and segment.payload == b"klmno"
    assert segment.seq - wire.ends[S].peer_isn - 1 == len(wire.at_server) + 10
    wire.send(wire.segment(C, b"ABCDEFGHIJ", seq=base + 30))
    wire.send(wire.segment(C, b"klmnozzz", seq=base + 40))
    assert wire.at_server.endswith(b"inspected by nfqguard\r\nSubject: abcdefghij\n0123456789ABCDEFGHIJklmnozzz")


def test_more_edits_than_the_log_holds():
    """Nobody acknowledges; what no longer fits is masked or left out, and nothing breaks."""
    wire = Wire(EDITING).open()
    for side, octets in DIALOGUE[:3]:
        wire.say(side, octets)
    wire.acknowledge = False
    ack = wire.ends[S].rcv_nxt
    for _ in range(40):
        for side, octets in ((C, b"DATA\r\n"), (S, b"354 go\r\n"), (C, b"x\r\n.\r\n"), (S, b"250 ok\r\n")):
            wire.send(wire.segment(side, octets, **({"ack": ack} if side == S else {})))
            wire.ends[side].sent += len(octets)
    assert wire.counter("headers-inserted") + wire.counter("edits-skipped") == 40
    assert wire.counter("edits-skipped") > 20
    assert wire.at_server.count(HEADER.encode()) == wire.counter("headers-inserted")
    assert wire.at_server.count(b"x\r\n.\r\n") == 40


def test_a_gso_packet_that_grows():
    wire = opened()
    body = b"".join(b"line %06d of a message that is long\r\n" % n for n in range(1000))
    wire.say(C, body, range(30000, len(body), 30000))
    assert wire.at_server.endswith(HEADER.encode() + b"\r\n" + body)
    assert_ends_agree(wire)


def test_segments_parse():
    assert Segment.parse(Segment("192.0.2.1", "192.0.2.2", 1, 2, 3, 4, ACK).build()).seq == 3
