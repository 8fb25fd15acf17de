"""Segments with the server's address from the client's link: the client knows every number, so nothing but the
interface tells them apart. Connection tracking lets them through; strict reverse-path filtering, here off, would not.
"""
from evasion.case import DECOY, ENVELOPE, FORBIDDEN, MSS, SYN, Answer, Case, Forge, Harm, Hear, Pause, Put, Version

LINE = len(FORBIDDEN)
ONLY_4: tuple[Version, ...] = (4,)

CASES = (
    Case("forged-354", (Put(b"DATA\r\n"), Forge(b"354 go ahead\r\n", ack=6), Hear(2), Put(FORBIDDEN, at=6))),
    Case("forged-354-as-public", (Put(b"DATA\r\n"), Forge(b"354 go ahead\r\n", ack=6, as_public=True), Hear(2),
                                  Put(FORBIDDEN, at=6))),
    Case("forged-354-before-data", (Forge(b"354 go ahead\r\n"), Put(b"DATA\r\n" + FORBIDDEN), Hear(2),
                                    Put(FORBIDDEN, at=6))),
    Case("forged-334", (Put(b"AUTH PLAIN\r\n"), Forge(b"334 \r\n", ack=12), Hear(2), Put(FORBIDDEN, at=12))),
    Case("forged-220-to-starttls", (Put(b"STARTTLS\r\n"), Forge(b"220 go on\r\n", ack=10), Hear(2),
                                    Put(FORBIDDEN, at=10))),
    Case("forged-greeting", (Put(FORBIDDEN),), opening=(SYN, Answer(), Put(flags="A"), Forge(b"220 you\r\n354 go\r\n"),
                                                        Hear(1))),
    # Who believes this acknowledgement forgets the octets that a retransmission must equal.
    Case("forged-ack-of-an-unseen-decoy", (Put(DECOY, checksum="pseudo"), Forge(flags="A", ack=LINE), Put(FORBIDDEN))),
    Case("forged-ack-of-a-dying-decoy", (Put(DECOY, hops=2), Forge(flags="A", ack=LINE), Put(FORBIDDEN))),
    Case("forged-ack-far-ahead", (Forge(flags="A", ack=50_000), Put(DECOY, at=60_000), Put(FORBIDDEN))),
    Case("forged-window", (Forge(flags="A", window=0), Put(FORBIDDEN))),
    Case("forged-syn-ack", (Put(FORBIDDEN),),
         opening=(SYN, Forge(flags="SA", at=777), Answer(), Put(flags="A"), Hear(1))),
    Case("forged-rst", (Forge(flags="R"), Forge(flags="RA"), Put(FORBIDDEN))),
    Case("forged-fin", (Forge(flags="FA"), Put(FORBIDDEN))),
    Case("forged-close-then-syn-elsewhere", (Forge(flags="RA"), Put(at=100_000, flags="S", options=MSS), Pause(),
                                             Put(FORBIDDEN))),
    Case("forged-confirmation-of-a-syn", (
        Put(DECOY), Hear(2), Put(at=100_000, flags="S", options=MSS), Forge(flags="SA", at=5000, ack=100_001), Pause(),
        Put(FORBIDDEN, at=LINE))),
    Case("forged-end-of-message", (Put(ENVELOPE[2]), Hear(2), Forge(b"250 taken\r\n", ack=6), Put(FORBIDDEN, at=6))),
    # Against the session beside.
    Case("neighbour-rst-from-the-server", (Harm("server", "R"), Harm("server", "RA"), Put(FORBIDDEN)), harms=True),
    Case("neighbour-fin-from-the-server", (Harm("server", "FA"), Put(FORBIDDEN)), harms=True),
    Case("neighbour-reply-from-the-server", (Harm("server", "PA", payload=b"354 go ahead\r\n"), Put(FORBIDDEN)),
         harms=True),
    Case("neighbour-ack-from-the-server", (Harm("server", "A", ack=5000), Harm("server", "A"), Put(FORBIDDEN))),
)
