"""Packets of the attacker: built by scapy where it has the word, octet by octet where no library makes such a thing."""
from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from scapy.layers.inet import IP, TCP, IPOption
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Raw
from scapy.utils import checksum

from evasion.case import Checksum, Fragments, Put

MASK = 0xFFFFFFFF
PROTOCOL_TCP = 6
FRAGMENT_HEADER = 44
FORGED = 0x04
"""Traffic class of what is sent in another's name, so that its sender does not take it for the other's."""


@dataclass(frozen=True)
class Ends:
    """Who speaks to whom. `inside` is the destination as it is behind the translation."""

    source: str
    destination: str
    inside: str
    source_port: int
    destination_port: int

    @property
    def version(self) -> int:
        return 6 if ":" in self.source else 4

    def back(self) -> Ends:
        """The other direction."""
        return Ends(self.destination, self.source, self.source, self.destination_port, self.source_port)


def pseudo_header(source: str, destination: str, octets: int) -> bytes:
    """RFC 9293 3.1, RFC 8200 8.1."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    return addresses + struct.pack("!II", octets, PROTOCOL_TCP)


def segment(ends: Ends, put: Put, seq: int, ack: int) -> bytes:
    """The TCP part, checksummed as `put` says."""
    options = put.options + b"\0" * (-len(put.options) % 4)
    offset = 5 + len(options) // 4 if put.offset is None else put.offset
    header = TCP(sport=ends.source_port, dport=ends.destination_port, seq=seq & MASK, ack=ack & MASK, dataofs=offset,
                 flags=put.flags, window=put.window, urgptr=put.urgent, chksum=0)
    octets = bytes(header / Raw(options + put.payload))
    return octets[:16] + struct.pack("!H", _checksum(ends, octets, put.checksum)) + octets[18:]


def _checksum(ends: Ends, octets: bytes, kind: Checksum) -> int:
    destination = ends.inside if kind == "inside" else ends.destination
    pseudo = pseudo_header(ends.source, destination, len(octets))
    right = int(checksum(pseudo + octets))
    if kind == "pseudo":
        return int(checksum(pseudo)) ^ 0xFFFF
    return {"wrong": right ^ 0x0100, "zero": 0}.get(kind, right)


def chained(extension: tuple[tuple[int, bytes], ...], inner: bytes) -> tuple[int, bytes]:
    """IPv6 extension headers in front of a TCP segment: the first header's number, and the octets."""
    number = PROTOCOL_TCP
    for own, octets in reversed(extension):
        inner = bytes([number]) + octets + inner
        number = own
    return number, inner


def whole(ends: Ends, put: Put, seq: int, ack: int, traffic_class: int = 0) -> bytes:
    """A packet from the IP header on, with the trailer."""
    inner = segment(ends, put, seq, ack)
    if ends.version == 6:
        number, inner = chained(put.extension, inner)
        header = IPv6(src=ends.source, dst=ends.destination, hlim=put.hops, nh=number, tc=traffic_class,
                      plen=len(inner) + put.flawed_length)
        return bytes(header / Raw(inner)) + put.trailer
    header = IP(src=ends.source, dst=ends.destination, ttl=put.hops, proto=PROTOCOL_TCP, id=seq & 0xFFFF, flags="DF",
                tos=traffic_class)
    if put.ip_options:
        header.options = [IPOption(put.ip_options)]
        header.ihl = 5 + len(put.ip_options) // 4
    if put.flawed_length:
        header.len = len(header) + len(inner) + put.flawed_length
    octets = bytes(header / Raw(inner))
    if put.broken_ip:
        octets = octets[:10] + bytes([octets[10] ^ 1]) + octets[11:]
    return octets + put.trailer


def fragments(ends: Ends, what: Fragments, seq: int, ack: int, number: int) -> list[bytes]:
    """The fragments' packets in order; `number` is the identification they share."""
    first = PROTOCOL_TCP
    texts = {}
    for decoy, payload in ((False, what.payload), (True, what.decoy)):
        first, texts[decoy] = chained(what.extension, segment(ends, Put(payload), seq, ack))
    packets = []
    for piece in what.pieces:
        octets = texts[piece.decoy]
        end = len(octets) if piece.end is None else piece.end
        more = end < len(octets) if piece.more is None else piece.more
        packets.append(_fragment(ends, octets[piece.start:end], piece.start // 8, more, piece.hops, number, first))
    return packets


def _fragment(ends: Ends, octets: bytes, offset: int, more: bool, hops: int, number: int, first: int) -> bytes:
    if ends.version == 6:
        return bytes(IPv6(src=ends.source, dst=ends.destination, hlim=hops, nh=FRAGMENT_HEADER)
                     / IPv6ExtHdrFragment(nh=first, offset=offset, m=int(more), id=number) / Raw(octets))
    return bytes(IP(src=ends.source, dst=ends.destination, ttl=hops, proto=PROTOCOL_TCP, id=number & 0xFFFF,
                    frag=offset, flags="MF" if more else 0) / Raw(octets))


@dataclass(frozen=True)
class Received:
    """A TCP segment as it came off the wire."""

    source: str
    destination: str
    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    options: bytes
    payload: bytes
    forged: bool

    @property
    def end(self) -> int:
        """The sequence number behind it."""
        return (self.seq + len(self.payload) + (self.flags & 1) + (self.flags >> 1 & 1)) & MASK

    @property
    def timestamp(self) -> int | None:
        """TSval, where it leads the options or stands behind others."""
        at = 0
        while at + 1 < len(self.options) and self.options[at] != 0:
            if self.options[at] == 1:
                at += 1
                continue
            if self.options[at] == 8:
                return int.from_bytes(self.options[at + 2:at + 6], "big")
            at += max(self.options[at + 1], 2)
        return None


def received(octets: bytes) -> Received | None:
    """Take a frame's IP packet apart; None where it holds no TCP."""
    if octets[0] >> 4 == 4 and octets[9] == PROTOCOL_TCP:
        family, start, ends = socket.AF_INET, (octets[0] & 15) * 4, (12, 16, 20)
        total, traffic_class = int.from_bytes(octets[2:4], "big"), octets[1]
    elif octets[0] >> 4 == 6 and octets[6] == PROTOCOL_TCP:
        family, start, ends = socket.AF_INET6, 40, (8, 24, 40)
        total, traffic_class = 40 + int.from_bytes(octets[4:6], "big"), int.from_bytes(octets[:2], "big") >> 4 & 0xFF
    else:
        return None
    source, destination = octets[ends[0]:ends[1]], octets[ends[1]:ends[2]]
    tcp = octets[start:total]
    source_port, destination_port, seq, ack, offset, flags = struct.unpack("!HHIIBB", tcp[:14])
    behind = (offset >> 4) * 4
    return Received(socket.inet_ntop(family, source), socket.inet_ntop(family, destination), source_port,
                    destination_port, seq, ack, flags, tcp[20:behind], tcp[behind:], traffic_class == FORGED)
