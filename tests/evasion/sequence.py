"""Segments that lie elsewhere in the sequence space than they seem to, and the cuts of a plain one."""
from evasion.case import DECOY, FORBIDDEN, Case, Hear, Put, decoy_first, straight

PAIR = DECOY + FORBIDDEN

CASES = (
    straight("plain"),
    Case("from-the-server's-own-port", (Put(FORBIDDEN),), port=25),
    Case("two-lines-in-one-segment", (Put(PAIR),)),
    Case("octet-by-octet", tuple(Put(FORBIDDEN[at:at + 1], at=at) for at in range(len(FORBIDDEN)))),
    *(Case(f"cut-at-{at}", (Put(FORBIDDEN[:at]), Put(FORBIDDEN[at:], at=at))) for at in (1, 2, 3, 4, 9, 10)),
    decoy_first("decoy-long-before-the-window", at=-(1 << 30) - 5),
    decoy_first("decoy-behind-the-window", at=1 << 20),
    decoy_first("decoy-half-the-space-away", at=1 << 31),
    decoy_first("decoy-just-before-the-window", at=-len(DECOY) - 1),
    # The server takes only what lies behind its next octet; the rest of the segment is a past that never was.
    Case("begins-in-the-syn", (Put(b"N" + FORBIDDEN, at=-1),)),
    Case("begins-before-the-syn", (Put(b"NOOP " + FORBIDDEN, at=-5),)),
    Case("begins-in-what-was-acknowledged", (Put(DECOY), Hear(2), Put(b"NOOP abcd " + FORBIDDEN[:1], at=0),
                                             Put(b"NOOP abc\r\n\n" + FORBIDDEN))),
    Case("other-past", (Put(DECOY), Hear(2), Put(b"RSET \r\nNOOP"), Put(b"NOOP aaaaa " + FORBIDDEN),
                        Put(FORBIDDEN, at=len(DECOY)))),
    Case("keep-alive-before", (Put(b"N", at=-1), Put(FORBIDDEN))),
    Case("keep-alive-without-octet-before", (Put(at=-1), Put(FORBIDDEN))),
    Case("fills-the-window-and-one-more", (Put(b"X" * 1000, at=65160), Put(FORBIDDEN))),
)
