"""RST, FIN and SYN that the server does not believe, and connections that begin anew."""
from evasion.case import DECOY, FORBIDDEN, HANDSHAKE, MSS, OPENING, SYN, Answer, Case, Harm, Hear, Pause, Put, Restart

CASES = (
    # RFC 5961, 3.2: anywhere else in the window a RST earns a challenge ACK.
    Case("rst-in-the-window", (Put(at=100, flags="R"), Put(FORBIDDEN))),
    Case("rst-with-ack-in-the-window", (Put(at=1, flags="RA"), Put(FORBIDDEN))),
    Case("rst-behind-the-window", (Put(at=1 << 20, flags="R"), Put(FORBIDDEN))),
    Case("rst-before-the-window", (Put(at=-1, flags="R"), Put(FORBIDDEN))),
    Case("rst-with-a-wrong-checksum", (Put(flags="R", checksum="wrong"), Put(FORBIDDEN))),
    Case("rst-with-a-pseudo-header-checksum", (Put(flags="R", checksum="pseudo"), Put(FORBIDDEN))),
    Case("rst-then-data", (Put(flags="R"), Pause(), Put(FORBIDDEN)), "the server has closed"),
    Case("rst-while-opening", (Put(FORBIDDEN),),
         opening=(SYN, Put(at=500, flags="R"), Answer(), Put(flags="A"), Hear(1))),
    Case("rst-at-the-oldest-octet", (Put(DECOY), Put(at=0, flags="R"), Put(FORBIDDEN, at=len(DECOY)))),
    Case("fin-behind-a-hole", (Put(at=len(FORBIDDEN), flags="FA"), Put(FORBIDDEN))),
    Case("fin-inside-the-line", (Put(at=2, flags="FA"), Put(FORBIDDEN))),
    Case("fin-then-data", (Put(flags="FA"), Put(FORBIDDEN, at=1)), "nothing follows a FIN"),
    Case("fin-then-data-in-its-place", (Put(flags="FA"), Put(FORBIDDEN)), "nothing follows a FIN"),
    Case("fin-with-a-wrong-ack", (Put(flags="FA", ack=5000), Put(FORBIDDEN))),
    Case("fin-with-a-pseudo-header-checksum", (Put(flags="FA", checksum="pseudo"), Put(FORBIDDEN))),
    Case("fin-before-the-window", (Put(at=-1, flags="FA"), Put(FORBIDDEN))),
    Case("syn-in-the-window", (Put(at=0, flags="S", options=MSS), Put(FORBIDDEN))),
    Case("syn-elsewhere", (Put(at=1 << 24, flags="S", options=MSS), Put(FORBIDDEN))),
    Case("syn-and-answer-from-the-client", (Put(at=0, flags="SA", options=MSS), Put(FORBIDDEN))),
    Case("syn-twice", (Put(FORBIDDEN),), opening=(SYN, SYN, *OPENING[1:])),
    Case("syn-twice-the-second-elsewhere", (Put(FORBIDDEN),),
         opening=(SYN, Put(at=1 << 24, flags="S", options=MSS), *OPENING[1:])),
    Case("syn-twice-the-second-in-the-window", (Put(FORBIDDEN),), "the server gives up what is half open",
         opening=(SYN, Put(at=9999, flags="S", options=MSS), *OPENING[1:])),
    Case("syn-elsewhere-in-the-middle-of-a-line", (Put(FORBIDDEN[:2]), Put(at=9999, flags="S", options=MSS),
                                                   Put(FORBIDDEN[2:], at=2))),
    Case("same-ports-after-rst", (Put(DECOY), Hear(2), Put(at=len(DECOY), flags="R"), Pause(), Restart(), *OPENING,
                                  Put(FORBIDDEN))),
    Case("same-ports-after-rst-without-greeting", (
        Put(at=0, flags="R"), Pause(), Restart(), *HANDSHAKE, Put(FORBIDDEN))),
    Case("same-ports-after-quit", (
        Put(b"QUIT\r\n"), Hear(2), Pause(), Put(at=6, flags="FA"), Pause(), Restart(), *OPENING, Put(FORBIDDEN))),
    Case("same-ports-in-the-middle-of-data", (
        Put(b"MAIL FROM:<a@b.example>\r\n"), Hear(2), Put(b"RCPT TO:<c@d.example>\r\n", at=25), Hear(3),
        Put(b"DATA\r\n", at=48), Hear(4), Put(at=54, flags="R"), Pause(), Restart(), *OPENING, Put(FORBIDDEN))),
    # Against the session beside: somebody who listens on its link and does not hit the one octet that counts.
    Case("neighbour-rst-in-the-window", (Harm("client", "R", at=10), Harm("client", "RA", at=1), Put(FORBIDDEN))),
    Case("neighbour-syn", (Harm("client", "S", at=0), Harm("client", "S", at=100_000), Put(FORBIDDEN))),
    Case("neighbour-fin-with-a-wrong-checksum", (Harm("client", "FA", checksum="wrong"), Put(FORBIDDEN))),
    Case("neighbour-data-with-a-wrong-ack", (Harm("client", "PA", ack=999, payload=FORBIDDEN), Put(FORBIDDEN))),
)
