"""Classes through the engine: who gets which policy, who none, and what becomes of flows under way."""
from __future__ import annotations

import gc
from dataclasses import replace
from ipaddress import ip_network

import pytest
from wire import ACK, ADDRESSES, CLIENT, FIN, LINKS, PORTS, RST, SERVER, SYN, Wire, preset, preset_spec

from nfqguard.engine import Classes, EngineError, Policy
from nfqguard.policy.compile import ClassSpec
from nfqguard.report.event import EventType

C, S = CLIENT, SERVER
FAMILIES = (4, 6)
INTERFACES = {"outside": LINKS[C][0], "inside": LINKS[C][1], "elsewhere": 77}
MSS = b"\x02\x04\x05\xb4"
TALK = b"EXPN staff\r\n"
MASKED = b"XXXXXXXXXX\r\n"


def networks(*texts):
    return tuple(map(ip_network, texts))


def esa(family=4):
    """The example of Cisco's mail gateways: an ESA inspects mail itself, so nothing to it or from it is inspected."""
    (alone,) = networks(ADDRESSES[family][C])
    return (ClassSpec("esa-out", clients=(alone,)), ClassSpec("esa-in", servers=(alone,)))


def classes(*specs):
    return Classes(specs, {"ios-smtp": preset("ios-smtp")}, preset("ios-esmtp"), INTERFACES)


def classed(*specs, family=4):
    wire = Wire("ios-esmtp", family)
    wire.engine.install(classes(*specs))
    return wire


def exchange(wire):
    """Open, and say what ios-esmtp masks. Returns what the server reads."""
    wire.open()
    wire.say(S, b"220 mail ESMTP\r\n")
    wire.say(C, TALK)
    return wire.at_server


def records(wire):
    return [(event.policy, event.reason) for event in wire.events if event.type is EventType.FLOW]


def ended(wire):
    wire.drain()
    return records(wire)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_esa_that_sends_is_exempt(family):
    wire = classed(*esa(family), family=family)
    assert exchange(wire) == TALK
    assert wire.counter("flows-exempt") == 1 and wire.counter("flows-given-up") == 0
    assert wire.counter("commands-masked") == 0 and wire.counter("edited") == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_esa_that_receives_is_exempt(family):
    wire = classed(*esa(family), family=family)
    wire.ends[C].address, wire.ends[S].address = ADDRESSES[family][::-1]
    assert exchange(wire) == TALK
    assert wire.counter("flows-exempt") == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", [C, S])
def test_everybody_elses_mail_is_inspected(family, side):
    wire = classed(*esa(family), family=family)
    other = {4: "192.0.2.11", 6: "2001:db8::11"}[family]
    wire.ends[C].address, wire.ends[S].address = (other, ADDRESSES[family][S])[:: 1 - 2 * side]
    assert exchange(wire) == MASKED
    assert wire.counter("flows-exempt") == 0


def test_the_exempt_pass_as_they_come():
    """TCP Fast Open, MD5 (RFC 2385), data in the SYN, urgent octets: nothing is touched, and no octet is held."""
    wire = classed(*esa())
    options = MSS + b"\x22\x02" + b"\x13\x12" + bytes(16)
    opening = wire.segment(C, b"EHLO x\r\n", seq=wire.ends[C].isn, ack=0, flags=SYN, options=options)
    wire.send(opening)
    assert wire.ends[S].segments[-1].payload == b"EHLO x\r\n"
    assert wire.ends[S].segments[-1].options == opening.options + bytes(-len(opening.options) % 4)
    wire.ends[C].sent = 0
    wire.send(wire.segment(S, seq=wire.ends[S].isn, ack=wire.ends[C].isn + 1, flags=SYN | ACK, options=MSS))
    wire.send(wire.segment(C, b"far ahead", seq=wire.ends[C].isn + 5000))
    assert wire.ends[S].segments[-1].payload == b"far ahead"
    wire.send(wire.segment(C, b"urgent", flags=ACK | 32, urgent=3))
    assert wire.ends[S].segments[-1].urgent == 3
    assert not wire.dropped and wire.counter("held") == 0 and wire.counter("edited") == 0


def test_a_class_chooses_a_policy_and_its_name_is_told():
    wire = classed(ClassSpec("dull", policy="ios-smtp", ports=(PORTS[1],)))
    wire.open()
    wire.say(S, b"220 mail ESMTP\r\n")
    wire.say(C, b"EHLO x\r\n")
    assert wire.at_server == b"XXXXXX\r\n", "ios-smtp knows no EHLO, ios-esmtp does"
    assert ended(wire) == [("ios-smtp", "stopped")]


@pytest.mark.parametrize("spec,hit", [
    (ClassSpec("in", in_interfaces=("outside",)), True),
    (ClassSpec("in", in_interfaces=("inside",)), False),
    (ClassSpec("in", in_interfaces=("elsewhere", "outside"), out_interfaces=("inside",)), True),
    (ClassSpec("out", out_interfaces=("inside",)), True),
    (ClassSpec("out", out_interfaces=("elsewhere",)), False),
    (ClassSpec("port", ports=(26, 25)), True),
    (ClassSpec("port", ports=(40000,)), False),
    (ClassSpec("inbound", direction="inbound", inside=networks("198.51.100.0/24")), True),
    (ClassSpec("inbound", direction="inbound", inside=networks("192.0.2.0/24")), False),
    (ClassSpec("inbound", direction="inbound", inside=networks("0.0.0.0/0")), False),
    (ClassSpec("outbound", direction="outbound", inside=networks("192.0.2.0/24")), True),
    (ClassSpec("one of ours", networks("192.0.2.9/32"), direction="outbound", inside=networks("192.0.2.0/24")), False),
    (ClassSpec("everything"), True),
])
def test_what_a_class_asks_for(spec, hit):
    assert exchange(classed(spec)) == (TALK if hit else MASKED)


def test_flows_under_way_keep_what_they_have():
    wire = classed()
    assert exchange(wire) == MASKED
    wire.engine.install(Classes([ClassSpec("all")], {}, preset("ios-esmtp"), {}))
    wire.say(C, TALK)
    assert wire.at_server == MASKED * 2
    other = classed(ClassSpec("all"))
    assert exchange(other) == TALK
    other.engine.install(preset("ios-esmtp"))
    other.say(C, TALK)
    assert other.at_server == TALK * 2


def test_a_new_connection_on_the_ports_of_an_exempt_one_is_judged_by_the_classes_of_now():
    wire = classed(*esa())
    assert exchange(wire) == TALK
    wire.engine.install(preset("ios-esmtp"))
    again(wire, 500_000)
    assert exchange(wire) == MASKED
    assert wire.counter("flows-exempt") == 1


def again(wire, isn):
    """Both ends have forgotten the connection and begin anew."""
    for end in wire.ends:
        end.isn, end.sent, end.peer_isn, end.heard, end.segments = end.isn + isn, 0, 0, bytearray(), []


def test_a_forged_syn_does_not_end_an_exemption():
    wire = classed(*esa())
    assert exchange(wire) == TALK
    wire.send(wire.segment(C, seq=77, ack=0, flags=SYN, options=MSS))
    wire.say(C, TALK)
    assert wire.at_server == TALK * 2
    assert ended(wire) == [("exempt", "stopped")]


def test_nobody_speaks_for_the_other_end_of_an_exempt_connection():
    wire = classed(*esa())
    exchange(wire)
    for octets, flags in ((b"421 go away\r\n", ACK), (b"", RST | ACK), (b"", FIN | ACK)):
        wire.send(wire.segment(S, octets, flags=flags), LINKS[C])
    assert wire.counter("drop.wrong-interface") == 3
    assert not wire.ends[C].reset and not wire.ends[C].finished and wire.at_client == b"220 mail ESMTP\r\n"


def test_an_exempt_connection_that_ended_is_forgotten_soon():
    wire = classed(*esa())
    exchange(wire)
    wire.close()
    assert wire.counter("flows") == 1
    assert records(wire) == [("exempt", "fin")]
    wire.tick(121)
    assert wire.counter("flows") == 0


def test_an_exempt_connection_that_lives_is_not_forgotten():
    wire = classed(*esa())
    exchange(wire)
    wire.send(wire.segment(C, flags=FIN | ACK))
    wire.send(wire.segment(C, flags=RST, seq=1))
    for _ in range(2):
        wire.tick(1200)
    wire.say(S, b"421 slow\r\n")
    assert wire.at_client.endswith(b"421 slow\r\n")


def test_policies_live_as_long_as_the_classes_that_name_them():
    wire = Wire()
    own = {"own": Policy(replace(preset_spec("ios-smtp"), name="own"))}
    wire.engine.install(Classes([ClassSpec("dull", policy="own")], own, preset("ios-esmtp"), {}))
    own.clear()
    gc.collect()
    wire.open()
    wire.say(S, b"220 mail ESMTP\r\n")
    wire.say(C, b"EHLO x\r\n")
    assert wire.at_server == b"XXXXXX\r\n"
    assert ended(wire) == [("own", "stopped")]


def test_names_that_are_not_there():
    with pytest.raises(KeyError, match="nobody"):
        Classes([ClassSpec("a", policy="nobody")], {}, preset("ios-esmtp"), {})
    with pytest.raises(KeyError, match="eth9"):
        Classes([ClassSpec("a", in_interfaces=("eth9",))], {}, preset("ios-esmtp"), {})
    with pytest.raises(EngineError, match="1025 classes are too many"):
        Classes([ClassSpec("a")] * 1025, {}, preset("ios-esmtp"), {})
