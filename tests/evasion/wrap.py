"""The sequence numbers pass 2^32 inside the line."""
from evasion.case import DECOY, FORBIDDEN, Case, Hear, Put

LINE = len(FORBIDDEN)


def wrapping(at: int) -> int:
    """The initial sequence number that has octet `at` numbered 0."""
    return ((1 << 32) - at - 1) % (1 << 32)


CASES = (
    *(Case(f"at-{at}", (Put(FORBIDDEN),), isn=wrapping(at)) for at in (0, 1, 3, LINE)),
    *(Case(f"cut-at-{at}", (Put(FORBIDDEN[:at]), Put(FORBIDDEN[at:], at=at)), isn=wrapping(at)) for at in (1, 2, 4)),
    *(Case(f"swapped-at-{at}", (Put(FORBIDDEN[at:], at=at), Put(FORBIDDEN[:at])), isn=wrapping(at))
      for at in (1, 2, 4)),
    Case("decoy-unseen", (Put(DECOY, checksum="pseudo"), Put(FORBIDDEN)), isn=wrapping(3)),
    Case("decoy-behind-the-window", (Put(DECOY, at=1 << 20), Put(FORBIDDEN)), isn=wrapping(3)),
    Case("begins-before-the-wrap", (Put(DECOY), Hear(2), Put(DECOY + FORBIDDEN)), isn=wrapping(LINE)),
    Case("octet-by-octet", tuple(Put(FORBIDDEN[at:at + 1], at=at) for at in reversed(range(LINE))), isn=wrapping(5)),
    Case("sign-changes", (Put(FORBIDDEN[:3]), Put(FORBIDDEN[3:], at=3)), isn=(1 << 31) - 3),
)
