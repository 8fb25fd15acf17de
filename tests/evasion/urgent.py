"""The urgent pointer: a kernel takes the octet before it out of the stream (RFC 6093), the wire still shows it."""
from evasion.case import BODY_AT, FORBIDDEN, Case, Put, in_body, straight

CASES = (
    Case("octet-inside-the-verb", (Put(b"EX?PN root\r\n", flags="PAU", urgent=3),)),
    Case("octet-before-the-verb", (Put(b"NEXPN root\r\n", flags="PAU", urgent=1),)),
    Case("octet-behind-the-verb", (Put(b"EXPNN root\r\n", flags="PAU", urgent=5),)),
    Case("octet-makes-it-a-permitted-verb", (Put(b"EXPN\x08 root\r\n", flags="PAU", urgent=5),)),
    Case("octet-in-a-later-segment", (Put(b"EX", flags="PAU", urgent=3), Put(b"?PN root\r\n", at=2))),
    Case("two-octets", (Put(b"E?", flags="PAU", urgent=2), Put(b"X?PN root\r\n", at=2, flags="PAU", urgent=2)),
         "a second urgent octet puts the first one back into the stream"),
    Case("line-end-hidden", (Put(b"NOOP a\r\n?EXPN root\r\n", flags="PAU", urgent=9),)),
    Case("end-of-data-hidden", in_body(Put(b"a\r\n?.\r\n" + FORBIDDEN, at=BODY_AT, flags="PAU", urgent=4))),
    Case("pointer-zero", (Put(b"NEXPN root\r\n", flags="PAU", urgent=0),)),
    straight("pointer-behind-the-segment", flags="PAU", urgent=500),
    straight("pointer-without-flag", urgent=3),
    Case("pointer-to-the-end", (Put(FORBIDDEN + b"?", flags="PAU", urgent=len(FORBIDDEN) + 1),)),
)
