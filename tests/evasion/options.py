"""TCP and IP options: what makes the server refuse a segment, and what it overlooks."""
from evasion.case import FORBIDDEN, MSS, Answer, Case, Hear, Put, Step, decoy_first, straight

NOP = b"\x01"
MD5 = b"\x13\x12" + bytes(16)
RECORD_ROUTE = b"\x07\x07\x04" + bytes(4) + b"\x00"
LOOSE_SOURCE_ROUTE = b"\x83\x07\x04\x0a\x0a\x0a\x02\x00"
OLD = 1


def opened_with(options: bytes, window: int = 65000) -> tuple[Step, ...]:
    """The opening with other options in the SYN."""
    return (Put(at=-1, flags="S", options=options, window=window), Answer(), Put(flags="A"), Hear(1))


CASES = (
    # RFC 7323, 5: protection against wrapped sequence numbers drops what is older than what was seen.
    Case("timestamp-in-the-past", (Put(b"NOOP root\r\n", timestamp=OLD), Put(FORBIDDEN)), timestamps=True),
    Case("timestamp-half-the-space-ahead", (Put(b"NOOP root\r\n", timestamp=1_000_100 + (1 << 31)), Put(FORBIDDEN)),
         timestamps=True),
    Case("timestamps-not-agreed-on", (Put(FORBIDDEN, timestamp=OLD),)),
    # RFC 2385: a signature where none was agreed on.
    decoy_first("md5-signature", options=MD5),
    straight("forbidden-with-md5-signature", "the server has no key and drops the segment", options=MD5),
    Case("md5-signature-on-the-syn", (Put(FORBIDDEN),), "the server has no key and drops the SYN",
         opening=opened_with(MD5)),
    straight("forbidden-behind-forty-octets", options=NOP * 40),
    straight("forbidden-behind-the-end-of-the-list", options=b"\x00" + b"EXPN" + bytes(3)),
    straight("option-of-length-zero", options=b"\x08\x00\x01\x01"),
    straight("option-longer-than-the-header", options=b"\xfd\x28\x00\x00"),
    straight("unknown-option", options=b"\xc8\x04\xff\xff"),
    straight("selective-acknowledgement-of-nothing", options=b"\x01\x01\x05\x0a" + bytes(8)),
    decoy_first("header-shorter-than-it-can-be", offset=4),
    decoy_first("header-longer-than-the-segment", offset=15),
    Case("header-of-all-that-there-is", (Put(b"NOOP root1\r\n", offset=8), Put(FORBIDDEN))),
    Case("mss-zero", (Put(FORBIDDEN),), opening=opened_with(b"\x02\x04\x00\x00")),
    Case("mss-one", (Put(FORBIDDEN),), opening=opened_with(b"\x02\x04\x00\x01")),
    Case("no-mss", (Put(FORBIDDEN),), opening=opened_with(b"")),
    Case("window-scale-beyond-fourteen", (Put(FORBIDDEN),), opening=opened_with(MSS + b"\x01\x03\x03\xff")),
    Case("window-zero", (Put(FORBIDDEN, window=0),)),
    Case("window-zero-in-the-syn", (Put(FORBIDDEN),), opening=opened_with(MSS, window=0)),
    straight("ip-no-operations", versions=(4,), ip_options=NOP * 8),
    straight("ip-record-route", versions=(4,), ip_options=RECORD_ROUTE),
    decoy_first("ip-source-route", versions=(4,), ip_options=LOOSE_SOURCE_ROUTE),
    straight("octets-behind-the-packet", trailer=b"\r\nNOOP"),
    decoy_first("forbidden-behind-the-packet", trailer=FORBIDDEN, checksum="wrong"),
    decoy_first("ip-length-beyond-the-frame", flawed_length=20),
    decoy_first("ip-length-short-of-the-segment", flawed_length=-3),
)
