"""Streams put together from segments, as a receiver does it."""
from __future__ import annotations

import itertools

import pytest

from nfqguard.lab.recorder import FIN, RST, SYN, Stream


def stream(*segments: tuple[int, bytes], first: int = 1000) -> Stream:
    made = Stream()
    made.take(first - 1 & 0xFFFFFFFF, SYN, b"")
    for offset, payload in segments:
        made.take(first + offset & 0xFFFFFFFF, 0, payload)
    return made


PIECES = ((0, b"HELO "), (5, b"client"), (11, b"\r\n"), (3, b"O cli"))


@pytest.mark.parametrize("order", list(itertools.permutations(PIECES)))
@pytest.mark.parametrize("first", [1000, 0, 0xFFFFFFFA])
def test_every_order_gives_the_same_octets(order: tuple[tuple[int, bytes], ...], first: int) -> None:
    made = stream(*order, first=first)
    assert bytes(made.octets) == b"HELO client\r\n"
    assert made.conflicts == 0


def test_of_octets_that_come_twice_the_first_stay_and_others_are_counted() -> None:
    made = stream((0, b"HELO client"), (0, b"HELO XXXent\r\n"))
    assert bytes(made.octets) == b"HELO client\r\n"
    assert made.conflicts == 3


def test_nothing_appears_behind_a_hole() -> None:
    assert bytes(stream((0, b"HELO"), (5, b"client")).octets) == b"HELO"


def test_a_stream_without_its_beginning_holds_nothing() -> None:
    made = Stream()
    made.take(1000, 0, b"HELO")
    assert bytes(made.octets) == b""


def test_the_end_is_seen() -> None:
    made = stream((0, b"QUIT\r\n"))
    made.take(1006, FIN, b"")
    assert made.finished and not made.reset
    made.take(1007, RST, b"")
    assert made.reset
