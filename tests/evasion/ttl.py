"""Packets that end between the inspector and the server: their TTL is spent there (Ptacek and Newsham 1998, 4.1)."""
from evasion.case import BODY_AT, DECOY, FORBIDDEN, SYN, Case, Hear, Pause, Put, decoy_first, in_body, straight

SHORT = 2

CASES = (
    decoy_first("decoy", hops=SHORT),
    Case("second-half", (Put(b"EX"), Put(b"HO root\r\n", at=2, hops=SHORT), Put(FORBIDDEN[2:], at=2))),
    Case("decoys-between-octets", tuple(
        put for at in range(len(FORBIDDEN))
        for put in (Put(DECOY[at:at + 1], at=at, hops=SHORT), Put(FORBIDDEN[at:at + 1], at=at)))),
    Case("fin", (Put(flags="FA", hops=SHORT), Put(FORBIDDEN))),
    Case("rst", (Put(flags="R", hops=SHORT), Put(FORBIDDEN))),
    # Over IPv4 connection tracking itself takes the SYN for a new connection, and the old one loses its translation.
    Case("rst-then-syn", (Put(flags="R", hops=SHORT), Put(at=5000, flags="S", options=SYN.options), Pause(),
                          Put(FORBIDDEN)), versions=(6,)),
    Case("rst-then-syn-that-dies", (Put(flags="R", hops=SHORT), Put(at=-1, flags="S", options=SYN.options, hops=SHORT),
                                    Pause(), Put(flags="A"), Put(FORBIDDEN)), versions=(6,)),
    Case("close-of-both-sides", (Put(flags="FA", hops=SHORT), Put(at=1, flags="A", hops=SHORT),
                                 Put(at=70_000, flags="S", options=SYN.options, hops=SHORT), Put(FORBIDDEN))),
    Case("syn", (Put(at=5000, flags="S", options=SYN.options, hops=SHORT), Put(FORBIDDEN))),
    # Whoever believes the client's DATA reads what follows as mail.
    Case("data", (Put(b"DATA\r\n", hops=SHORT), Put(b"NOOP\r\n"), Hear(2), Put(FORBIDDEN, at=6))),
    Case("end-of-data", in_body(Put(b"a\r\n", at=BODY_AT), Put(b"b\r\n", at=BODY_AT + 3, hops=SHORT),
                                Put(b".\r\n", at=BODY_AT + 3), Hear(5), Put(FORBIDDEN, at=BODY_AT + 6))),
    straight("forbidden", "the packet does not reach the server", hops=SHORT),
)
