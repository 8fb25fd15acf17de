"""ICMP errors about segments of a flow: path MTU discovery survives a change of length, and nothing is forged."""
from __future__ import annotations

import socket
import struct

import pytest
from wire import CLIENT, LINKS, SERVER, Wire, folded, preset_spec

from nfqguard.engine import Policy, Verdict

C, S = CLIENT, SERVER
HEADER = "X-Gateway: a header line that makes the message longer"
INSERTING = Policy(preset_spec("ios-esmtp", insert_header=HEADER))
ROUTERS = {4: "203.0.113.1", 6: "2001:db8:2::1"}


def too_big(wire, quoted: bytes, octets: int = 28, mtu: int = 1400) -> bytes:
    """Fragmentation needed (RFC 792) or Packet Too Big (RFC 4443), from a router behind the gateway to the client."""
    v6 = quoted[0] >> 4 == 6
    quoted = quoted[:(20 if v6 else 0) + octets]
    family = socket.AF_INET6 if v6 else socket.AF_INET
    router, client = (socket.inet_pton(family, text) for text in (ROUTERS[6 if v6 else 4], wire.ends[C].address))
    icmp = struct.pack("!BBHI", 2 if v6 else 3, 0 if v6 else 4, 0, mtu) + quoted
    pseudo = router + client + struct.pack("!II", len(icmp), 58) if v6 else b""
    icmp = icmp[:2] + struct.pack("!H", folded(pseudo + icmp) ^ 0xFFFF) + icmp[4:]
    if v6:
        return struct.pack("!IHBB", 6 << 28, len(icmp), 58, 64) + router + client + icmp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(icmp), 1, 0, 64, 1, 0) + router + client
    return head[:10] + struct.pack("!H", folded(head) ^ 0xFFFF) + head[12:] + icmp


def judged(wire, packet, links=LINKS[S]):
    (output,) = wire.engine.packet(packet, wire.now, 1, *links)
    return output


def in_message(family, policy=INSERTING):
    wire = Wire(policy, family).open()
    for side, octets in ((S, b"220 x\r\n"), (C, b"DATA\r\n"), (S, b"354 go\r\n"), (C, b"Subject: x\r\n")):
        wire.say(side, octets)
    wire.acknowledge = False
    wire.send(wire.segment(C, b"z" * 1000))
    return wire


@pytest.mark.parametrize("family", [4, 6])
def test_the_quoted_number_becomes_the_senders(family):
    wire = in_message(family)
    output = judged(wire, too_big(wire, wire.ends[S].segments[-1].build()))
    packet = output.data
    icmp = packet[40 if family == 6 else 20:]
    quoted = icmp[8:]
    sequence = struct.unpack("!I", quoted[(40 if family == 6 else 20) + 4:][:4])[0]
    assert sequence == wire.ends[C].isn + 1 + wire.ends[C].sent
    pseudo = packet[8:40] + struct.pack("!II", len(icmp), 58) if family == 6 else b""
    assert folded(pseudo + icmp) == 0xFFFF


@pytest.mark.parametrize("family", [4, 6])
def test_without_a_change_of_length_it_leaves_as_it_came(family):
    wire = in_message(family, "ios-esmtp")
    output = judged(wire, too_big(wire, wire.ends[S].segments[-1].build()))
    assert output.verdict is Verdict.ACCEPT and output.data is None


@pytest.mark.parametrize("family, given, told", [
    (4, 1400, 1400 - len(HEADER) - 2), (4, 0, 0), (4, 2 * len(HEADER), 2 * len(HEADER)),
    (6, 1400, 1400 - len(HEADER) - 2), (6, 1290, 1280), (6, 1280, 1280), (6, 1000, 1000),
])
def test_the_mtu_leaves_room_for_the_edit(family, given, told):
    wire = in_message(family)
    packet = judged(wire, too_big(wire, wire.ends[S].segments[-1].build(), mtu=given)).data
    icmp = packet[40 if family == 6 else 20:]
    assert struct.unpack("!I", icmp[4:8])[0] == told
    pseudo = packet[8:40] + struct.pack("!II", len(icmp), 58) if family == 6 else b""
    assert folded(pseudo + icmp) == 0xFFFF


def test_only_a_packet_too_big_tells_an_mtu():
    wire = in_message(4)
    unreachable = bytearray(too_big(wire, wire.ends[S].segments[-1].build()))
    unreachable[21] = 1
    assert judged(wire, bytes(unreachable)).data[24:28] == bytes(unreachable[24:28])


def test_what_speaks_of_nothing_under_way_is_dropped():
    wire = in_message(4)
    segment = wire.ends[S].segments[-1]
    for changed in ({"seq": segment.seq + 5000}, {"seq": segment.seq - 5000}, {"source_port": 999}):
        forged = type(segment)(**{**segment.__dict__, **changed})
        assert judged(wire, too_big(wire, forged.build())).verdict is Verdict.DROP
    assert judged(wire, too_big(wire, segment.build()), LINKS[C]).verdict is Verdict.DROP
    assert wire.counter("drop.icmp-without-flow") == 4


def test_every_length_of_quotation():
    wire = in_message(4)
    whole = wire.ends[S].segments[-1].build()
    for octets in range(0, 60):
        output = judged(wire, too_big(wire, whole, octets))
        assert (output.verdict is Verdict.ACCEPT) == (octets >= 28)


def test_other_icmp_is_no_business_of_ours():
    wire = in_message(4)
    echo = bytearray(too_big(wire, wire.ends[S].segments[-1].build()))
    echo[20] = 8
    assert judged(wire, bytes(echo)).verdict is Verdict.DROP
    assert wire.counter("drop.not-tcp") == 1
