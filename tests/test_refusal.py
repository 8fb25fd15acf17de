"""The polite refusal: the client reads why, the server is reset, and a client in mid-message gets to read it."""
from __future__ import annotations

import pytest
from wire import ACK, CLIENT, FIN, RST, SERVER, Wire, preset_spec

from nfqguard.engine import Policy
from nfqguard.report.event import EventType

C, S = CLIENT, SERVER
TEXT = "554 5.7.1 Refused by the gateway"
REPLYING = Policy(preset_spec("ios-esmtp", max_data=1000, refusal=TEXT))


def in_data(family=4):
    wire = Wire(REPLYING, family).open()
    wire.say(S, b"220 x\r\n")
    wire.say(C, b"DATA\r\n")
    wire.say(S, b"354 go\r\n")
    return wire


@pytest.mark.parametrize("family", [4, 6])
def test_in_the_middle_of_a_message(family):
    wire = in_data(family)
    body = b"0123456789abcdef\r\n" * 500
    heard = wire.at_client
    for at in range(0, len(body), 500):
        wire.say(C, body[at:at + 500])
    assert wire.at_client == heard + TEXT.encode() + b"\r\n" and wire.ends[C].finished
    assert wire.ends[S].reset and not wire.ends[C].reset
    assert len(wire.at_server) <= len(b"DATA\r\n") + 1000
    assert max(s.ack for s in wire.ends[C].segments) == wire.ends[C].isn + 1 + wire.ends[C].sent
    wire.say(C, b".\r\nQUIT\r\n")
    wire.send(wire.segment(C, flags=FIN | ACK))
    assert wire.ends[C].segments[-1].ack == wire.ends[C].isn + 2 + wire.ends[C].sent
    assert [e.type for e in wire.events] == [EventType.REJECT, EventType.FLOW]
    assert wire.counter("refusals") == 1 and wire.counter("resets") == 0


def test_timestamps_are_answered():
    wire = in_data()
    stamps = b"\x01\x01\x08\x0a" + bytes([0, 0, 0, 77]) + bytes([0, 0, 0, 99])
    wire.send(wire.segment(C, b"z" * 1200, options=stamps))
    reply = next(s for s in wire.ends[C].segments if s.payload.startswith(b"554"))
    assert reply.options == b"\x01\x01\x08\x0a" + bytes([0, 0, 0, 99]) + bytes([0, 0, 0, 77])


def test_outside_a_message():
    wire = Wire(REPLYING).open()
    wire.say(S, b"220 x\r\n")
    wire.say(C, b"HEL")
    wire.say(C, b"\r\n")
    assert wire.at_client == b"220 x\r\n" + TEXT.encode() + b"\r\n"
    assert wire.ends[C].finished and wire.ends[S].reset


def test_a_lost_reply_is_said_again():
    wire = in_data()
    wire.acknowledge = False
    wire.say(C, b"z" * 1200)
    ack = wire.ends[C].rcv_nxt - len(TEXT) - 3
    wire.say(C, b"z" * 100)
    said = [s for s in wire.ends[C].segments if s.payload.startswith(b"554")]
    assert len(said) == 1
    wire.now += 2_000_000_000
    wire.send(wire.segment(C, b"z" * 100, ack=ack))
    said = [s for s in wire.ends[C].segments if s.payload.startswith(b"554")]
    assert len(said) == 2 and said[0].seq == said[1].seq


def test_octets_out_of_order_are_not_acknowledged():
    wire = in_data()
    wire.say(C, b"z" * 1200)
    before = wire.ends[C].segments[-1].ack
    wire.send(wire.segment(C, b"z" * 100, seq=wire.ends[C].isn + 1 + wire.ends[C].sent + 100))
    assert wire.ends[C].segments[-1].ack == before


def test_the_server_is_told_again_and_says_nothing_any_more():
    wire = in_data()
    wire.say(C, b"z" * 1200)
    heard = wire.at_client
    wire.send(wire.segment(S, b"250 ok\r\n"))
    assert wire.at_client == heard
    assert len([s for s in wire.ends[S].segments if s.flags & RST]) == 2


def test_patience_ends():
    wire = in_data()
    wire.say(C, b"z" * 1200)
    for _ in range(1100):
        wire.say(C, b"z" * 64000)
        if wire.ends[C].reset:
            break
    assert wire.ends[C].reset
    assert (64 << 20) <= wire.ends[C].sent <= (65 << 20)
    idle = in_data()
    idle.say(C, b"z" * 1200)
    idle.tick(59)
    assert idle.counter("flows") == 1
    idle.tick(2)
    assert idle.counter("flows") == 0


def test_a_server_that_has_closed_speaks_no_more():
    wire = in_data()
    wire.send(wire.segment(S, flags=FIN | ACK))
    wire.ends[S].sent += 1
    wire.say(C, b"z" * 1200)
    assert wire.ends[C].reset and wire.ends[S].reset
