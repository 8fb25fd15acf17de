"""IPv4 fragments: whole, tiny, swapped, overlapping (RFC 815, 1858, 3128)."""
from evasion.case import FORBIDDEN, Case, Fragments, Piece, Put, Step, Version

OVERLAP = "Linux drops a datagram whose fragments overlap (ip_fragment.c, since 4.19)"
HEADER = 20
"""Octets of a TCP header without options; payload begins there, and fragments at multiples of 8."""
ONLY: tuple[Version, ...] = (4,)


def case(name: str, *pieces: Piece, harmless: str = "", then: tuple[Step, ...] = ()) -> Case:
    """The pieces, then what follows them."""
    return Case(name, (Fragments(pieces), *then), harmless, versions=ONLY)


CASES = (
    case("two", Piece(0, 24), Piece(24)),
    case("two-swapped", Piece(24), Piece(0, 24)),
    case("tiny", Piece(0, 8), Piece(8, 16), Piece(16, 24), Piece(24)),
    case("tiny-swapped", Piece(24), Piece(16, 24), Piece(8, 16), Piece(0, 8)),
    case("flags-in-the-second", Piece(0, 8), Piece(8)),
    case("one-twice", Piece(0, 24), Piece(0, 24), Piece(24)),
    case("decoy-overlaps-before", Piece(0, 24, decoy=True), Piece(16, 24), Piece(0, 16), Piece(24), harmless=OVERLAP),
    case("decoy-overlaps-behind", Piece(0, 24), Piece(16, None, decoy=True), Piece(24), harmless=OVERLAP),
    case("decoy-the-same", Piece(0, 24, decoy=True), Piece(0, 24), Piece(24),
         harmless="of two fragments of the same place Linux keeps the first"),
    case("decoy-the-same-second", Piece(24), Piece(16, 24), Piece(16, 24, decoy=True), Piece(0, 16)),
    # Joined by the gateway or not, the decoy dies behind it.
    case("decoy-that-dies-behind", Piece(0, 24, decoy=True, hops=2), Piece(24, None, decoy=True, hops=2),
         then=(Put(FORBIDDEN),)),
    case("never-completed-then-whole", Piece(0, 24, decoy=True), then=(Put(FORBIDDEN),)),
    case("first-missing-then-whole", Piece(24, None, decoy=True), then=(Put(FORBIDDEN),)),
    case("beyond-the-largest-datagram", Piece(0, 24, decoy=True), Piece(65528, more=False), then=(Put(FORBIDDEN),)),
    case("whole-and-more-to-come", Piece(0, None, more=True), harmless="the last fragment never comes"),
)
