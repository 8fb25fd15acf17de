"""When a flow may go to the kernel: TLS that both ends have begun, and exempt connections after their opening."""
from __future__ import annotations

import pytest
from test_classes import MASKED, MSS, TALK, again, classes, ended, esa, exchange
from wire import ACK, CLIENT, FIN, LINKS, RST, SERVER, SYN, Wire, preset_spec

from nfqguard.engine import Policy
from nfqguard.report.event import EventType

C, S = CLIENT, SERVER
CLIENT_HELLO = bytes([22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]) + bytes(506)
ALERT = bytes([21, 3, 3, 0, 2, 2, 40])
SERVER_HELLO = bytes([22, 3, 3, 0, 122, 2, 0, 0, 118, 3, 3]) + bytes(116)


class Marked(Wire):
    """A wire that notes which packets carry the mark."""

    def _deliver(self, outputs):
        outputs = list(outputs)
        self.marked = getattr(self, "marked", [])
        self.marked += [output.id for output in outputs if output.offload]
        super()._deliver(outputs)


def policy(**changes):
    verbs = (*preset_spec("ios-esmtp").verbs, "STARTTLS")
    return Policy(preset_spec("ios-esmtp", **{"verbs": verbs, "offload": True, **changes}))


def started(able=1, family=4, **changes):
    """Up to the server's 220 to STARTTLS."""
    wire = Marked(policy(**changes), family, offload=able).open()
    wire.say(S, b"220 mail ESMTP\r\n")
    wire.say(C, b"EHLO x\r\n")
    wire.say(S, b"250-mail\r\n250 STARTTLS\r\n")
    wire.say(C, b"STARTTLS\r\n")
    wire.say(S, b"220 go ahead\r\n")
    return wire


def offloaded(wire):
    assert wire.counter("flows-offloaded") == bool(wire.marked)
    return bool(wire.marked)


@pytest.mark.parametrize("family", [4, 6])
def test_tls_that_both_ends_have_begun_goes_to_the_kernel(family):
    wire = started(family=family)
    wire.say(C, CLIENT_HELLO)
    assert not offloaded(wire)
    wire.say(S, SERVER_HELLO)
    assert offloaded(wire)
    assert [(event.reason, event.policy) for event in wire.events if event.type is EventType.FLOW] == [
        ("offloaded", "ios-esmtp")]
    assert wire.counter("flows") == 1, "what was queued behind it must still pass"


def test_the_first_packet_that_may_carry_the_mark_carries_it():
    wire = started()
    wire.say(C, CLIENT_HELLO)
    last = wire.serial
    wire.say(S, SERVER_HELLO)
    assert wire.marked == [last + 1]


@pytest.mark.parametrize("cut", range(1, 8))
def test_hellos_in_pieces(cut):
    wire = started()
    wire.say(C, CLIENT_HELLO, (cut,))
    wire.say(S, SERVER_HELLO[:cut])
    assert offloaded(wire) == (cut >= 6)
    wire.say(S, SERVER_HELLO[cut:])
    assert offloaded(wire)


@pytest.mark.parametrize("changes", [{"able": 0}, {"offload": False}])
def test_only_where_it_is_wanted_and_can_be_done(changes):
    wire = started(**changes)
    wire.say(C, CLIENT_HELLO)
    wire.say(S, SERVER_HELLO)
    wire.say(C, b"\x17\x03\x03" * 500)
    assert not offloaded(wire) and len(wire.at_server) > 2000


@pytest.mark.parametrize("first", [b"EHLO x\r\n", ALERT, SERVER_HELLO, b"\x80\x2e\x01\x03\x01"])
def test_what_is_no_client_hello(first):
    wire = started()
    wire.say(C, first)
    wire.say(S, SERVER_HELLO)
    wire.say(C, CLIENT_HELLO)
    wire.say(S, SERVER_HELLO)
    assert not offloaded(wire)


@pytest.mark.parametrize("first", [b"454 not now\r\n", ALERT, CLIENT_HELLO])
def test_what_is_no_server_hello(first):
    wire = started()
    wire.say(C, CLIENT_HELLO)
    wire.say(S, first)
    wire.say(S, SERVER_HELLO)
    wire.say(C, CLIENT_HELLO)
    assert not offloaded(wire)


def test_a_server_that_refuses_tls_keeps_the_inspection():
    wire = Marked(policy(), offload=1).open()
    wire.say(S, b"220 mail ESMTP\r\n")
    wire.say(C, b"STARTTLS\r\n")
    wire.say(S, b"454 not now\r\n")
    wire.say(C, CLIENT_HELLO)
    wire.say(S, SERVER_HELLO)
    assert not offloaded(wire) and CLIENT_HELLO not in wire.at_server


def test_injection_is_refused_and_not_offloaded():
    wire = Marked(policy(), offload=1).open()
    wire.say(S, b"220 mail ESMTP\r\n")
    wire.say(C, b"STARTTLS\r\nEHLO x\r\n")
    wire.say(S, b"220 go\r\n")
    wire.say(C, CLIENT_HELLO)
    wire.say(S, SERVER_HELLO)
    assert wire.ends[S].reset and wire.counter("drop.starttls-injection") and not offloaded(wire)


def test_plaintext_that_has_not_arrived_keeps_the_flow_here():
    wire = Marked(policy(), offload=1).open()
    wire.say(S, b"220 mail ESMTP\r\n")
    wire.say(C, b"STARTTLS\r\n")
    wire.acknowledge = False
    before = wire.ends[C].rcv_nxt
    wire.say(S, b"220 go\r\n")
    wire.send(wire.segment(C, CLIENT_HELLO, ack=before))
    wire.ends[C].sent += len(CLIENT_HELLO)
    wire.say(S, SERVER_HELLO)
    assert not offloaded(wire), "the server's 220 may have to be sent again"
    wire.send(wire.segment(C))
    assert offloaded(wire)


@pytest.mark.parametrize("side", [C, S])
def test_octets_behind_a_hole_keep_the_flow_here(side):
    wire = started()
    own = wire.ends[side]
    wire.say(C, CLIENT_HELLO)
    if side == S:
        wire.send(wire.segment(S, b"ahead", seq=own.isn + 1 + own.sent + len(SERVER_HELLO)))
        wire.say(S, SERVER_HELLO[:100])
        assert not offloaded(wire)
        wire.say(S, SERVER_HELLO[100:])
    else:
        wire.send(wire.segment(C, b"ahead", seq=own.isn + 1 + own.sent + 7))
        wire.say(S, SERVER_HELLO)
        assert not offloaded(wire)
        wire.say(C, b"a hole.")
    assert offloaded(wire)


@pytest.mark.parametrize("changes", [
    {"banner": "text", "banner_text": "a longer greeting than before"},
    {"mask_keywords": True, "remove_keywords": True, "keywords": ("STARTTLS",)},
])
def test_a_flow_whose_length_was_changed_stays_here(changes):
    wire = Marked(policy(**changes), offload=1).open()
    wire.say(S, b"220 mail ESMTP\r\n")
    wire.say(C, b"EHLO x\r\n")
    wire.say(S, b"250-mail\r\n250-SIZE\r\n250 STARTTLS\r\n")
    wire.say(C, b"STARTTLS\r\n")
    wire.say(S, b"220 go\r\n")
    for _ in range(5):
        wire.say(C, CLIENT_HELLO)
        wire.say(S, SERVER_HELLO)
    assert not offloaded(wire)
    assert wire.at_server.endswith(CLIENT_HELLO * 5) and wire.at_client.endswith(SERVER_HELLO * 5)


def test_a_mask_of_the_same_length_does_not_matter():
    wire = Marked(policy(), offload=1).open()
    wire.say(S, b"220 mail ESMTP\r\n")
    wire.say(C, TALK + b"STARTTLS\r\n")
    wire.say(S, b"500 what\r\n220 go\r\n")
    wire.say(C, CLIENT_HELLO)
    wire.say(S, SERVER_HELLO)
    assert offloaded(wire) and wire.at_server.startswith(MASKED)


def test_what_is_arriving_at_this_host_cannot_carry_the_mark():
    """INPUT passes no POSTROUTING: a packet that leaves carries it."""
    wire = Marked(policy(), offload=1)
    arriving, leaving = (11, 0), (0, 11)

    def say(side, octets=b"", flags=ACK, **fields):
        wire.acknowledge = False
        number = wire.send(wire.segment(side, octets, flags=flags, **fields), (arriving, leaving)[side])
        wire.ends[side].sent += len(octets)
        return number
    say(C, seq=wire.ends[C].isn, ack=0, flags=SYN, options=MSS)
    say(S, seq=wire.ends[S].isn, ack=wire.ends[C].isn + 1, flags=SYN | ACK, options=MSS)
    say(C)
    for side, octets in ((S, b"220 mail ESMTP\r\n"), (C, b"STARTTLS\r\n"), (S, b"220 go\r\n"), (C, CLIENT_HELLO)):
        say(side, octets)
    assert wire.marked == []
    mark = say(S, SERVER_HELLO)
    assert wire.marked == [mark]


def offloaded_wire():
    wire = started()
    wire.say(C, CLIENT_HELLO)
    wire.say(S, SERVER_HELLO)
    assert offloaded(wire)
    return wire


def test_what_was_queued_behind_the_mark_passes():
    wire = offloaded_wire()
    wire.say(C, b"\x17\x03\x03\x00\x05EXPN ")
    wire.send(wire.segment(C, b"any retransmission", seq=wire.ends[C].isn + 1))
    assert wire.ends[S].segments[-1].payload == b"any retransmission"
    wire.say(S, b"\x17\x03\x03\x00\x05hello")
    assert wire.at_client.endswith(b"hello") and wire.at_server.endswith(b"EXPN ")
    assert len(wire.dropped) == 0 and wire.counter("flows-ended") == 1


def test_an_offloaded_flow_is_forgotten_and_may_give_way():
    wire = offloaded_wire()
    wire.tick(121)
    assert wire.counter("flows") == 0
    assert [event.reason for event in wire.events if event.type is EventType.FLOW] == ["offloaded"]


def test_where_nobody_keeps_the_mark_the_flow_lives_on_here():
    """The steps in Netfilter are missing, say: it passes as long as a flow that is inspected may be silent."""
    wire = offloaded_wire()
    wire.tick(2)
    wire.say(C, b"\x17\x03\x03\x00\x01a")
    wire.tick(600)
    wire.say(C, b"\x17\x03\x03\x00\x01b")
    assert wire.at_server.endswith(b"b")
    wire.send(wire.segment(C, flags=FIN | ACK))
    wire.send(wire.segment(S, flags=FIN | ACK))
    wire.tick(121)
    assert wire.counter("flows") == 0


def test_the_same_ports_begin_again_and_are_inspected():
    wire = offloaded_wire()
    again(wire, 700_000)
    assert exchange(wire) == MASKED
    assert [event.reason for event in wire.events if event.type is EventType.FLOW] == ["offloaded"]


def test_nobody_speaks_for_the_other_end_of_an_offloaded_flow():
    wire = offloaded_wire()
    before = wire.at_client
    for forged in (wire.segment(S, b"x"), wire.segment(S, flags=RST | ACK), wire.segment(S, flags=FIN | ACK)):
        wire.send(forged, LINKS[C])
    assert wire.counter("drop.wrong-interface") == 3 and wire.at_client == before and not wire.ends[C].reset


@pytest.mark.parametrize("offload", [0, 1])
def test_an_exempt_connection_goes_with_the_first_packet_after_its_opening(offload):
    wire = Marked("ios-esmtp", offload=offload)
    wire.engine.install(classes(*esa()))
    assert exchange(wire) == TALK
    assert wire.counter("flows-offloaded") == offload and bool(wire.marked) == bool(offload)
    assert 1 not in wire.marked and 2 not in wire.marked, "SYN and SYN-ACK are queued whatever the connmark says"
    assert ended(wire) == [("exempt", "offloaded" if offload else "stopped")]
