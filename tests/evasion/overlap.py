"""Overlapping segments: which of two octets for one sequence number does the server take? (Ptacek and Newsham 1998,
5.4; Novak and Sturges 2007.) Every host has its own answer, so an inspector may leave only one octet."""
from evasion.case import DECOY, FORBIDDEN, Case, Hear, Put

COMMON = b"NOOP aaaa\r\n"
STREAMS = {True: COMMON + FORBIDDEN, False: COMMON + DECOY}
"""By whether the forbidden line is in it; they differ in the verb alone, octets 11 to 14."""
END = len(COMMON + FORBIDDEN)

RELATIONS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "the-same": ((8, 20), (8, 20)),
    "begins-before-ends-inside": ((10, 20), (6, 16)),
    "begins-before-ends-the-same": ((10, 18), (6, 18)),
    "begins-before-ends-behind": ((10, 16), (6, 20)),
    "begins-the-same-ends-inside": ((8, 20), (8, 16)),
    "begins-the-same-ends-behind": ((8, 16), (8, 20)),
    "begins-inside-ends-inside": ((6, 20), (10, 16)),
    "begins-inside-ends-the-same": ((6, 18), (10, 18)),
    "begins-inside-ends-behind": ((6, 16), (10, 20)),
}
"""How the second segment lies to the first: both ranges, [from, to). Both hold the whole verb: either decides alone."""

LINUX_TAKES_THE_LATER = {
    "begins-before-ends-inside", "begins-before-ends-the-same", "begins-before-ends-behind",
    "begins-the-same-ends-behind",
}
"""tcp_data_queue_ofo() in tcp_input.c: of what waits, the segment that begins first is read first, and one that covers
another replaces it."""


def behind_a_hole(relation: str, forbidden_first: bool) -> Case:
    """Both wait at the server for what is before them; then all is filled."""
    (begin, end), (again, until) = RELATIONS[relation]
    later = relation in LINUX_TAKES_THE_LATER
    steps = (Put(STREAMS[forbidden_first][begin:end], at=begin),
             Put(STREAMS[not forbidden_first][again:until], at=again),
             Put(STREAMS[True][:6]), Put(STREAMS[True][6:min(begin, again)], at=6),
             Put(STREAMS[True][max(end, until):], at=max(end, until)))
    harmless = "" if later is not forbidden_first else f"Linux takes the {'later' if later else 'earlier'} of the two"
    return Case(f"hole-{relation}-{'forbidden' if forbidden_first else 'decoy'}-first", steps, harmless)


def in_order(relation: str) -> Case:
    """The decoy arrives in order, and what overlaps it has the forbidden line: a retransmission with other octets."""
    (begin, end), (again, until) = RELATIONS[relation]
    steps = (Put(STREAMS[False][:begin]), Put(STREAMS[False][begin:end], at=begin),
             Put(STREAMS[True][again:until], at=again), Put(STREAMS[True][max(end, until):], at=max(end, until)))
    return Case(f"order-{relation}", steps, "what has been delivered is not taken back")


def unseen(relation: str) -> Case:
    """As in_order, but the server refuses the first segment for its checksum, while it looks like one that a network
    card is to finish; so the later one is new to the server."""
    (begin, end), (again, until) = RELATIONS[relation]
    steps = (Put(STREAMS[True][:min(begin, again)]), Put(STREAMS[False][begin:end], at=begin, checksum="pseudo"),
             Put(STREAMS[True][again:until], at=again),
             Put(STREAMS[True][min(begin, again):], at=min(begin, again)))
    return Case(f"unseen-{relation}", steps)


CASES = (
    *(behind_a_hole(relation, forbidden) for relation in RELATIONS for forbidden in (True, False)),
    *(in_order(relation) for relation in RELATIONS),
    *(unseen(relation) for relation in RELATIONS),
    Case("three-deep", (Put(b"PN roo", at=2), Put(b"OP root\r\n", at=2), Put(b"XPN root\r\n", at=1), Put(b"E"))),
    Case("decoy-answered-then-repeated", (Put(DECOY), Hear(2), Put(FORBIDDEN), Put(FORBIDDEN + FORBIDDEN))),
)
