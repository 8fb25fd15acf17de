"""Attacks on the inspector's memory: not to pass, but to leave nothing for the session beside. They need a small pool,
or they would take minutes, and are tried in a round of their own."""
from evasion.case import BODY_AT, FORBIDDEN, Case, Pause, Put, Step, in_body

SMALL_BLOCKS = 512
"""The pool that they exhaust, in blocks; each segment that is kept on its own takes one."""
COUNT = 600
AFTERWARDS = Pause(1.0)


def every_other_octet(at: int, hops: int = 64) -> tuple[Step, ...]:
    """One octet a segment, each behind a hole."""
    return tuple(Put(b"x", at=at + 1 + 2 * number, hops=hops) for number in range(COUNT))


CASES = (
    Case("message-with-holes", in_body(*every_other_octet(BODY_AT), AFTERWARDS)),
    Case("command-with-holes", (*every_other_octet(0), AFTERWARDS)),
    Case("message-with-holes-that-dies-behind", in_body(*every_other_octet(BODY_AT, hops=2), AFTERWARDS)),
    Case("message-that-dies-behind", in_body(
        *(Put(b"y" * 1000, at=BODY_AT + 1000 * number, hops=2) for number in range(60)), AFTERWARDS)),
    Case("message-octet-by-octet-that-dies-behind", in_body(
        *(Put(b"z", at=BODY_AT + number, hops=2) for number in range(COUNT)), AFTERWARDS)),
    Case("forbidden-behind-the-hoard", (*every_other_octet(200), AFTERWARDS, Put(FORBIDDEN))),
)
