"""Segments out of order and twice, around commands and around the end of message data."""
from evasion.case import BODY_AT, DECOY, ENVELOPE, FORBIDDEN, OPENING, Case, Hear, Pause, Put, Restart, in_body

LINE = len(FORBIDDEN)
OCTETS = tuple(Put(FORBIDDEN[at:at + 1], at=at) for at in range(LINE))

CASES = (
    Case("two-swapped", (Put(FORBIDDEN[4:], at=4), Put(FORBIDDEN[:4]))),
    Case("verb-cut-and-swapped", (Put(FORBIDDEN[2:], at=2), Put(FORBIDDEN[:2]))),
    Case("last-octet-first", tuple(reversed(OCTETS))),
    Case("odd-then-even", (*OCTETS[1::2], *OCTETS[::2])),
    Case("every-octet-twice", tuple(put for put in OCTETS for _ in range(2))),
    Case("line-behind-a-line-swapped", (Put(FORBIDDEN, at=LINE), Put(DECOY))),
    Case("line-behind-a-line-swapped-and-repeated", (
        Put(FORBIDDEN, at=LINE), Put(DECOY), Put(DECOY + FORBIDDEN), Put(FORBIDDEN, at=LINE))),
    Case("whole-after-its-end", (Put(FORBIDDEN[6:], at=6), Put(FORBIDDEN))),
    Case("growing", tuple(Put(FORBIDDEN[:end]) for end in range(1, LINE + 1))),
    Case("growing-with-other-octets", tuple(
        Put(b"NOOP root\r\n"[:end - 1] + FORBIDDEN[end - 1:end]) for end in range(1, LINE + 1))),
    # What stands behind a hole may be read as mail or as a command, as the hole will be filled.
    Case("end-of-data-fills-the-hole", in_body(Put(FORBIDDEN, at=BODY_AT + 5), Pause(), Put(b"\r\n.\r\n", at=BODY_AT))),
    Case("dot-alone-fills-the-hole", in_body(
        Put(b"a\r\n", at=BODY_AT), Put(b"\r\n" + FORBIDDEN, at=BODY_AT + 4), Pause(), Put(b".", at=BODY_AT + 3))),
    Case("first-octet-of-data-fills-the-hole", in_body(Put(b"\r\n" + FORBIDDEN, at=BODY_AT + 1), Pause(),
                                                       Put(b".", at=BODY_AT))),
    Case("two-holes-around-the-dot", in_body(
        Put(FORBIDDEN, at=BODY_AT + 8), Put(b"\n.", at=BODY_AT + 4), Pause(), Put(b"\r\n", at=BODY_AT + 6),
        Put(b"abc\r", at=BODY_AT))),
    Case("same-ports-after-a-hole-filled-wrongly", in_body(
        Put(FORBIDDEN, at=BODY_AT + 5), Pause(), Put(b"\r\n.\r\n", at=BODY_AT), Hear(6),
        Put(at=BODY_AT + 5 + LINE, flags="R"), Pause(), Restart(), *OPENING, Put(FORBIDDEN))),
    Case("cr-fills-the-hole", in_body(Put(b"\n.\r\n" + FORBIDDEN, at=BODY_AT + 2), Put(b"a\r", at=BODY_AT))),
    Case("hole-filled-otherwise-first", in_body(
        Put(FORBIDDEN, at=BODY_AT + 5), Pause(), Put(b"hello", at=BODY_AT, checksum="pseudo"),
        Put(b"\r\n.\r\n", at=BODY_AT))),
    Case("hole-filled-together-with-what-is-behind", in_body(
        Put(b"NOOP root\r\n", at=BODY_AT + 5, checksum="pseudo"), Pause(), Put(b"\r\n.\r\n" + FORBIDDEN, at=BODY_AT))),
    Case("message-and-forbidden-in-one-segment", in_body(Put(b"hello\r\n.\r\n" + FORBIDDEN, at=BODY_AT))),
    # What follows DATA is mail only if the server says 354.
    Case("behind-a-refused-data", (Put(b"DATA\r\n" + FORBIDDEN),)),
    Case("behind-a-refused-data-later", (Put(b"DATA\r\n"), Hear(2), Put(FORBIDDEN, at=6))),
    Case("behind-a-refused-data-swapped", (Put(FORBIDDEN, at=6), Put(b"DATA\r\n"))),
    Case("behind-a-refused-data-sent-again", (Put(b"DATA\r\n" + FORBIDDEN), Hear(2), Put(FORBIDDEN, at=6))),
    Case("behind-a-whole-envelope", (Put(b"".join(ENVELOPE) + b"hello\r\n.\r\n" + FORBIDDEN), Hear(4),
                                     Put(b"hello\r\n.\r\n" + FORBIDDEN, at=BODY_AT))),
    Case("behind-the-answer-to-a-challenge", (
        Put(b"AUTH LOGIN\r\n"), Hear(2), Put(b"*\r\n" + FORBIDDEN, at=12), Hear(3), Put(FORBIDDEN, at=15))),
    Case("behind-the-answer-to-a-challenge-swapped", (
        Put(FORBIDDEN, at=16), Put(b"AUTH LOGIN\r\n"), Hear(2), Put(b"abc\n", at=12), Hear(3), Put(FORBIDDEN, at=16))),
    Case("answer-to-a-challenge-of-two-lines", (
        Put(b"AUTH LOGIN\r\n"), Hear(2), Put(b"ab\n" + FORBIDDEN[:4], at=12), Pause(), Put(FORBIDDEN, at=15))),
    Case("behind-a-refused-auth", (Put(b"AUTH PLAIN\r\n" + FORBIDDEN), Hear(2), Put(FORBIDDEN, at=12))),
)
