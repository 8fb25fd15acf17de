"""Acknowledgements that the server does not accept, and what comes before the handshake is complete."""
from evasion.case import DECOY, FORBIDDEN, HANDSHAKE, SYN, Answer, Case, Hear, Pause, Put, decoy_first, straight

CASES = (
    decoy_first("ahead-of-what-was-sent", ack=1000),
    decoy_first("one-octet-ahead", ack=1),
    decoy_first("far-in-the-past", ack=-(1 << 24)),
    decoy_first("half-the-space-away", ack=1 << 31),
    decoy_first("no-ack-flag", flags="P"),
    straight("forbidden-without-ack-flag", "a segment without ACK is dropped (RFC 9293, 3.10.7.4)", flags="P"),
    straight("forbidden-with-an-old-ack", ack=-20),
    Case("forbidden-completes-the-handshake", (Put(FORBIDDEN),), opening=(SYN, Answer())),
    Case("forbidden-before-the-greeting", (Put(FORBIDDEN),), opening=HANDSHAKE),
    Case("decoy-completes-the-handshake-wrongly", (Put(DECOY, ack=77), Put(FORBIDDEN)), opening=(SYN, Answer())),
    Case("decoy-before-the-answer", (Put(DECOY, flags="A", ack=5), Answer(), Put(FORBIDDEN)), opening=(SYN,)),
    Case("forbidden-before-the-answer", (
        Put(FORBIDDEN, flags="P"), Answer(), Put(flags="A"), Hear(1), Put(FORBIDDEN[1:], at=1), Pause(),
        Put(FORBIDDEN)), opening=(SYN,)),
    Case("acknowledges-replies-to-come", (Put(flags="A", ack=100), Put(DECOY, ack=100), Put(flags="A", ack=500),
                                          Put(FORBIDDEN))),
    Case("acknowledges-nothing", (Put(DECOY, ack=-26), Put(FORBIDDEN, at=len(DECOY), ack=-26))),
)
