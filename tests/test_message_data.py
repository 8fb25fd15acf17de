"""Message data behind `modern`, as servers read it that take a bare LF or CR for a line's end or drop NULs: whatever is
sent, and however it is cut, sent out of order and again with other octets, they see no end but the one that all see."""
from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise, product

import pytest
from wire import CLIENT, SERVER, Wire

OPENING = (
    (SERVER, b"220 mx ESMTP\r\n"), (CLIENT, b"EHLO c\r\n"), (SERVER, b"250-mx\r\n250 PIPELINING\r\n"),
    (CLIENT, b"MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n"), (SERVER, b"250 ok\r\n250 ok\r\n354 go\r\n"),
)
PIECES = (b"a", b"\r", b"\n", b".", b"\0", b"\r\n", b"\r\n.")
TOLD = 64
"""Newlines of one message that are told one by one; NQ_NEWLINES_TOLD in csrc/nq.h."""


def opened(large_blocks: int = 16) -> Wire:
    """A session as far as 354; its events so far are forgotten."""
    wire = Wire("modern", large_blocks=large_blocks).open()
    for side, octets in OPENING:
        wire.say(side, octets)
    wire.events.clear()
    return wire


def data_at(wire: Wire) -> bytes:
    return wire.at_server.split(b"DATA\r\n", 1)[1]


def parts(octets: bytes, cuts: Sequence[int]) -> list[tuple[int, bytes]]:
    edges = [0, *cuts, len(octets)]
    return [(start, octets[start:end]) for start, end in pairwise(edges) if end > start]


def shuffled(wire: Wire, octets: bytes, cuts: Sequence[int], order: random.Random, lie: bool) -> None:
    """Send the parts in some order, then all of them twice again; with other octets where the client lies."""
    first = wire.ends[CLIENT].isn + 1 + wire.ends[CLIENT].sent
    pieces = parts(octets, cuts)
    for start, part in order.sample(pieces, len(pieces)):
        wire.send(wire.segment(CLIENT, part, seq=first + start))
    for start, part in pieces * 2:
        other = bytes(order.choice(b"a\r\n.\0") if lie and order.random() < 0.3 else octet for octet in part)
        wire.send(wire.segment(CLIENT, other, seq=first + start))
    wire.ends[CLIENT].sent += len(octets)


def strict_end(octets: bytes) -> int | None:
    """Behind CRLF.CRLF; None: not there."""
    at = (b"\r\n" + octets).find(b"\r\n.\r\n")
    return None if at < 0 else at + 3


def lenient_ends(octets: bytes, cr: bool, lf: bool) -> set[int]:
    """Where a line of one dot ends for a server that takes a CR, an LF for a line's end, too. CRs before LF are its."""
    ends, line = set(), bytearray()
    for at, octet in enumerate(octets):
        ends_line = (octet == 10 and (lf or line[-1:] == b"\r")) or (octet == 13 and cr)
        if not ends_line:
            line.append(octet)
        elif not (cr and octet == 10 and octets[at - 1:at] == b"\r"):
            if bytes(line).rstrip(b"\r") == b".":
                ends.add(at + 1)
            line.clear()
    return ends


def false_ends(octets: bytes) -> set[int]:
    """Where some server sees an end before the one that all see. At the last octet is none: nothing follows."""
    kept = [at for at, octet in enumerate(octets) if octet]
    seen: set[int] = set()
    for cr, lf in product((False, True), repeat=2):
        seen |= lenient_ends(octets, cr, lf)
        seen |= {kept[end - 1] + 1 for end in lenient_ends(octets.replace(b"\0", b""), cr, lf)}
    strict = strict_end(octets)
    last = strict - 1 if strict else len(octets)
    return {end for end in seen if end < last}


def test_the_readers_see_what_they_are_known_to_see() -> None:
    for octets in (b"x\n.\ny", b"x\n.\r\ny", b"x\r\n.\ny", b"x\r.\ry", b"x\n.\ry", b"x\r.\r\ny", b"x\r\n\0.\r\ny",
                   b"x\r\n.\0\n\ny"):
        assert false_ends(octets), octets
    for octets in (b"x\r\n.\r\nMAIL\n.\n", b".\r\n", b"x.\r\n..\r\n.\r\n"):
        assert not false_ends(octets), octets


def random_message(choice: random.Random) -> tuple[bytes, list[int]]:
    text = b"".join(choice.choices(PIECES, k=choice.randrange(3, 12)))
    message = choice.choice((b"", b"q", b"Subject: x\r\n\r\n")) + text + choice.choice((b"", b"b")) + b"\r\n.\r\n"
    return message, sorted(choice.sample(range(1, len(message)), choice.randrange(min(5, len(message) - 1))))


@pytest.mark.parametrize("how", ["in order", "out of order", "lies"])
def test_no_server_sees_another_end_of_data(how: str) -> None:
    choice = random.Random(how)
    for _ in range(1200):
        message, cuts = random_message(choice)
        wire = opened()
        if how == "in order":
            wire.say(CLIENT, message, cuts)
        else:
            shuffled(wire, message, cuts, choice, how == "lies")
        arrived = data_at(wire)
        assert not false_ends(arrived), (message, cuts, arrived)
        if how != "lies" and not any(end.reset for end in wire.ends):
            assert strict_end(arrived) == strict_end(message), (message, cuts, arrived)


def test_whatever_four_octets_stand_in_a_message() -> None:
    for octets in product(b"a\r\n.\0", repeat=4):
        for step in (1, 100):
            message = b"q" + bytes(octets) + b"b\r\n.\r\n"
            wire = opened()
            wire.say(CLIENT, message, range(step, len(message), step))
            assert not false_ends(data_at(wire)), (message, step)


def test_conforming_messages_pass_untouched_in_any_order() -> None:
    choice = random.Random(5321)
    lines = (b"", b"a", b"..", b"..b", b"Subject: x", b"q.", b"....")
    for _ in range(1000):
        message = b"".join(choice.choice(lines) + b"\r\n" for _ in range(choice.randrange(8))) + b".\r\n"
        cuts = sorted(choice.sample(range(1, len(message)), min(len(message) - 1, choice.randrange(6))))
        wire = opened()
        shuffled(wire, message, cuts, choice, False)
        assert data_at(wire) == message, (message, cuts)
        assert not any(end.reset for end in wire.ends) and not wire.events, (message, cuts)


def test_one_message_does_not_wash_the_events_of_others_away() -> None:
    wire = opened(large_blocks=64)
    wire.say(CLIENT, b"\n" * 20000 + b"\n.\n" * 1000 + b"x\r\n.\r\n")
    told = [event.rule.name for event in wire.events if event.rule]
    assert (told.count("bare-newline"), told.count("smuggling"), wire.counter("events-lost")) == (TOLD, TOLD, 0)
    assert wire.counter("events-spared") == wire.counter("rules-matched") - len(told)
    assert wire.counter("octets-replaced") > 20000 and b"\n." not in data_at(wire)[:-5]
    wire.say(SERVER, b"250 ok\r\n")
    wire.say(CLIENT, b"MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\nDATA\r\n")
    wire.say(SERVER, b"250 ok\r\n250 ok\r\n354 go\r\n")
    wire.events.clear()
    wire.say(CLIENT, b"x\ny\r\n.\r\n")
    assert [event.rule and event.rule.name for event in wire.events] == ["bare-newline"]
