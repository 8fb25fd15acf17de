"""Data in the SYN (RFC 7413): the server's application reads it before the handshake is complete."""
from evasion.case import DECOY, FORBIDDEN, MSS, Answer, Case, Hear, Pause, Put, Restart, Step

REQUEST = b"\x22\x02\x01\x01"
EXPERIMENTAL = b"\xfe\x04\xf9\x89"
COOKIE = b"\x22\x0a" + bytes(range(8)) + b"\x01\x01"
LINE = len(FORBIDDEN)


def opened(payload: bytes, options: bytes) -> tuple[Step, ...]:
    """A SYN that carries octets from offset 0 on, and the rest of the handshake."""
    return (Put(payload, at=-1, flags="S", options=MSS + options), Answer(), Put(flags="A", at=len(payload)), Hear(1))


CASES = (
    Case("without-option", (), opening=opened(FORBIDDEN, b"")),
    Case("cookie-requested", (), opening=opened(FORBIDDEN, REQUEST)),
    Case("cookie-invented", (), opening=opened(FORBIDDEN, COOKIE)),
    Case("experimental-option", (), opening=opened(FORBIDDEN, EXPERIMENTAL)),
    Case("two-lines", (), opening=opened(DECOY + FORBIDDEN, REQUEST)),
    Case("first-half", (Put(FORBIDDEN[2:], at=2), Pause(), Put(FORBIDDEN[:2])), opening=opened(FORBIDDEN[:2], REQUEST)),
    Case("repeated-behind-the-handshake", (Put(FORBIDDEN),), opening=opened(FORBIDDEN, REQUEST)),
    Case("decoy-then-forbidden", (Put(FORBIDDEN),), "the server has read the decoy", opening=opened(DECOY, REQUEST)),
    Case("with-fin", (), opening=(Put(FORBIDDEN, at=-1, flags="SF", options=MSS), Answer(), Hear(1)),
         harmless="SYN and FIN together are dropped"),
    Case("twice", (Put(flags="R", at=LINE), Pause(), Restart(), *opened(FORBIDDEN, REQUEST)),
         opening=opened(DECOY, REQUEST)),
)
