"""Segments whose checksum the server refuses: an inspector that does not look reads what the server never does."""
from evasion.case import DECOY, FORBIDDEN, Case, Put, decoy_first, straight

CASES = (
    decoy_first("wrong", checksum="wrong"),
    decoy_first("zero", checksum="zero"),
    # As a local sender leaves it to its network card. Who takes that for valid must bear that the server does not.
    decoy_first("pseudo-header-only", checksum="pseudo"),
    Case("pseudo-header-only-in-part", (Put(b"NOOP", checksum="pseudo"), Put(b"EXPN"), Put(FORBIDDEN[4:], at=4))),
    # RFC 1624: a translating gateway corrects a sum without looking at it, so this one is wrong behind it, too.
    decoy_first("right-behind-the-translation-only", versions=(4,), checksum="inside"),
    decoy_first("ip-header-wrong", versions=(4,), broken_ip=True),
    straight("forbidden-wrong", "the server refuses the segment", checksum="wrong"),
    straight("forbidden-pseudo-header-only", "the server refuses the segment", checksum="pseudo"),
    Case("empty-wrong-fin", (Put(flags="FA", checksum="wrong"), Put(FORBIDDEN))),
    Case("decoy-retransmitted-wrong", (Put(DECOY, checksum="wrong"), Put(DECOY, checksum="zero"), Put(FORBIDDEN))),
)
