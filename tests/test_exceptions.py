"""What cannot be judged, and the policy's answer to it."""
from __future__ import annotations

import pytest
from wire import ACK, CLIENT, LINKS, SERVER, SYN, Wire, preset_spec

from nfqguard.engine import PacketFlag, Policy

C, S = CLIENT, SERVER
ANSWERS = ("drop", "reset", "pass")
CLOSED = {"midstream": "drop", "gap": "drop", "memory": "drop", "unparsable": "drop", "truncated": "drop"}


def wire_with(exception, answer, **settings):
    policy = Policy(preset_spec("ios-esmtp", exceptions={**CLOSED, exception: answer}))
    return Wire(policy, **settings)


def outcome(wire):
    return "reset" if wire.ends[S].reset or wire.ends[C].reset else "pass" if b"EXPN" in wire.at_server else "drop"


@pytest.mark.parametrize("answer", ANSWERS)
def test_midstream(answer):
    wire = wire_with("midstream", answer)
    wire.ends[S].peer_isn = wire.ends[C].isn
    wire.send(wire.segment(C, b"EXPN a\r\n"))
    assert outcome(wire) == answer
    if answer == "reset":
        assert wire.ends[S].reset and wire.ends[C].reset


@pytest.mark.parametrize("answer", ANSWERS)
def test_gap(answer):
    """The server acknowledges what never came by here: somebody else carried it."""
    wire = wire_with("gap", answer).open()
    wire.send(wire.segment(S, ack=wire.ends[C].isn + 1 + 50))
    wire.say(C, b"EXPN a\r\n")
    assert outcome(wire) == answer if answer != "drop" else wire.at_server == b"XXXXXX\r\n"
    assert wire.counter("flows-given-up") == (answer == "pass")


@pytest.mark.parametrize("answer", ANSWERS)
def test_memory(answer):
    wire = wire_with("memory", answer, small_blocks=4, extents=64).open()
    wire.acknowledge = False
    drain_small_blocks(wire)
    wire.say(C, b"EXPN a\r\n")
    assert outcome(wire) == answer


def drain_small_blocks(wire):
    """Other flows hold the pool's last blocks: each keeps one packet behind a hole."""
    for port in range(50000, 50008):
        opening = wire.segment(C, seq=1, ack=0, flags=SYN)
        change(wire, opening, source_port=port)
        change(wire, wire.segment(S, seq=1, ack=2, flags=SYN | 16), destination_port=port)
        change(wire, wire.segment(C, seq=2, ack=2), source_port=port)
        change(wire, wire.segment(C, b"NOOP", seq=50, ack=2), source_port=port)
    wire.ends[S].reset = wire.ends[C].reset = False
    wire.ends[S].heard.clear()


def change(wire, segment, **fields):
    wire.send_packet(type(segment)(**{**segment.__dict__, **fields}).build(),
                     LINKS[C if segment.source == wire.ends[C].address else S])


@pytest.mark.parametrize("answer", ANSWERS)
def test_unparsable(answer):
    """An opening with TCP MD5 signatures (RFC 2385) cannot be edited."""
    wire = wire_with("unparsable", answer)
    md5 = b"\x13\x12" + bytes(16)
    wire.send(wire.segment(C, seq=1000, ack=0, flags=SYN, options=md5))
    reached = [s for s in wire.ends[S].segments if s.flags & SYN]
    assert bool(reached) == (answer == "pass")
    if answer == "pass":
        wire.send(wire.segment(S, seq=9000, ack=1001, flags=SYN | 16, options=md5))
        wire.send(wire.segment(C, b"EXPN a\r\n"))
        assert wire.at_server == b"EXPN a\r\n" and wire.counter("flows-given-up") == 1


@pytest.mark.parametrize("answer", ["drop", "pass"])
def test_truncated(answer):
    wire = wire_with("truncated", answer).open()
    wire.send(wire.segment(C, b"EXPN a\r\n"), flags=PacketFlag.TRUNCATED)
    assert outcome(wire) == answer


@pytest.mark.parametrize("answer", ["reset", "pass"])
@pytest.mark.parametrize("options", [b"\x13\x12" + bytes(16), b"\x02\x00"])
def test_a_forged_syn_is_no_exception_of_a_living_connection(answer, options):
    """Whoever knows the ports could end the connection, or its inspection."""
    wire = wire_with("unparsable", answer).open()
    wire.say(SERVER, b"220 x\r\n")
    wire.send(wire.segment(CLIENT, seq=500000, ack=0, flags=SYN, options=options))
    wire.say(CLIENT, b"EXPN x\r\n")
    assert wire.at_server == b"XXXXXX\r\n" and not wire.ends[SERVER].reset


@pytest.mark.parametrize("answer", ["reset", "pass"])
def test_an_ack_from_outside_the_window_is_no_exception(answer):
    """Whoever knows the ports could end the connection, or its inspection; RFC 5961, 5."""
    wire = wire_with("gap", answer).open()
    wire.say(SERVER, b"220 x\r\n")
    wire.send(wire.segment(CLIENT, seq=500000, ack=wire.ends[CLIENT].rcv_nxt + 5))
    wire.say(CLIENT, b"EXPN x\r\n")
    assert wire.at_server == b"XXXXXX\r\n" and not wire.ends[SERVER].reset


def test_a_flow_whose_length_was_changed_is_reset_and_never_given_up():
    policy = Policy(preset_spec("ios-esmtp", banner="text", banner_text="hello", exceptions={**CLOSED, "gap": "pass"}))
    wire = Wire(policy).open()
    wire.say(S, b"220 mail\r\n")
    wire.send(wire.segment(S, ack=wire.ends[C].isn + 1 + 50))
    assert wire.ends[S].reset and wire.ends[C].reset


def test_a_connection_that_begins_anew_is_not_given_up():
    """Its SYN came before the old one was given up, its SYN-ACK after."""
    wire = wire_with("gap", "pass").open()
    wire.say(SERVER, b"220 x\r\n")
    wire.send(wire.segment(CLIENT, seq=500000, ack=0, flags=SYN))
    wire.send(wire.segment(CLIENT, ack=wire.ends[CLIENT].rcv_nxt + 5))
    assert wire.counter("flows-given-up") == 1
    wire.send(wire.segment(SERVER, seq=700000, ack=500001, flags=SYN | ACK))
    wire.send(wire.segment(CLIENT, seq=500001, ack=700001))
    wire.send(wire.segment(CLIENT, b"EXPN x\r\n", seq=500001, ack=700001))
    assert wire.ends[SERVER].segments[-1].payload == b"XXXXXX\r\n"


def test_a_forged_syn_does_not_end_a_connection_that_was_given_up():
    wire = wire_with("gap", "pass").open()
    wire.say(SERVER, b"220 x\r\n")
    wire.send(wire.segment(CLIENT, ack=wire.ends[CLIENT].rcv_nxt + 5))
    for side in (CLIENT, SERVER):
        wire.send(wire.segment(side, seq=500000, ack=0, flags=SYN))
    wire.say(CLIENT, b"EXPN x\r\n")
    assert wire.counter("flows-given-up") == 1 and wire.at_server == b"EXPN x\r\n"
    wire.send(wire.segment(CLIENT, seq=600000, ack=0, flags=SYN))
    wire.send(wire.segment(SERVER, seq=700000, ack=600001, flags=SYN | ACK))
    wire.send(wire.segment(CLIENT, seq=600001, ack=700001))
    wire.send(wire.segment(CLIENT, b"EXPN x\r\n", seq=600001, ack=700001))
    assert wire.ends[SERVER].segments[-1].payload == b"XXXXXX\r\n"
