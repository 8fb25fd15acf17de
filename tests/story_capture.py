"""A story as a capture: what its two ends have said to each other, as pcap of raw IP packets."""
from __future__ import annotations

import struct

from player import START
from story import Story
from wire import ACK, ADDRESSES, CLIENT, FIN, PORTS, PSH, RST, SECOND, SERVER, SYN, Segment


def capture(story: Story) -> bytes:
    """What the ends have said to each other, as pcap of raw IP packets; nobody heard the engine."""
    packets: list[tuple[int, bytes, int]] = []
    sent, now = [0, 0], START

    def add(side: int, flags: int, payload: bytes = b"", short: int = 0) -> None:
        nonlocal now
        now += 1_000_000
        ends = [(ADDRESSES[4][each], PORTS[each]) for each in (side, 1 - side)]
        isn = (1000, 9000)
        segment = Segment(ends[0][0], ends[1][0], ends[0][1], ends[1][1], isn[side] + sent[side],
                          isn[1 - side] + sent[1 - side] if flags & ACK else 0, flags, payload=payload)
        packets.append((now, segment.build(), short))
        sent[side] += len(payload) + bool(flags & (SYN | FIN))

    opening = [(CLIENT, SYN), (SERVER, SYN | ACK), (CLIENT, ACK)]
    for side, flags in opening[:{"seen": 3, "missed": 0, "SYN only": 1}[story.opening]]:
        add(side, flags)
    if story.opening == "missed":
        sent[:] = [1, 1]
    for turn in story.turns:
        now += turn.seconds * SECOND
        sent[turn.side] -= len(turn.octets) if turn.what == "again" else 0
        if turn.what in ("fin", "rst"):
            add(turn.side, FIN | ACK if turn.what == "fin" else RST)
        for at in range(0, len(turn.octets), 65000):
            add(turn.side, ACK | PSH, turn.octets[at:at + 65000], turn.what == "truncated")
        sent[turn.side] -= len(turn.octets) if turn.what == "truncated" else 0
        if turn.what in ("say", "again"):
            add(1 - turn.side, ACK)
    parts = [struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 101)]
    for time, data, short in packets:
        second, rest = divmod(time, SECOND)
        kept = len(data) - short
        parts.append(struct.pack("<IIII", second, rest // 1000, kept, len(data)) + data[:kept])
    return b"".join(parts)
