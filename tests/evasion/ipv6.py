"""IPv6: extension headers before TCP (RFC 8200), and fragments, which Linux joins by other code than IPv4's."""
from evasion.case import FORBIDDEN, Case, Fragments, Piece, Put, Step, Version, decoy_first, straight

HOP_BY_HOP, ROUTING, NO_NEXT, DESTINATION = 0, 43, 59, 60
PADDING = b"\x00\x01\x04" + bytes(4)
"""An options header of 8 octets, without its next-header octet: PadN alone."""
DISCARD = b"\x00\x80\x04" + bytes(4)
"""An unknown option that asks to be discarded with the packet."""
IGNORE = b"\x00\x1e\x04" + bytes(4)
"""An unknown option that asks to be skipped."""
ROUTING_0 = b"\x02\x00\x01" + bytes(4) + bytes(16)
ROUTING_USED_UP = b"\x02\x02\x00" + bytes(4) + bytes(16)
ROUTING_UNKNOWN = b"\x00\xfd\x05" + bytes(4)
OVERLAP = "Linux drops a datagram whose fragments overlap (RFC 5722)"
ONLY: tuple[Version, ...] = (6,)


def headers(name: str, *extension: tuple[int, bytes], harmless: str = "") -> Case:
    """The forbidden line behind extension headers."""
    return straight(name, harmless, ONLY, extension=extension)


def pieces(name: str, *them: Piece, harmless: str = "", then: tuple[Step, ...] = (),
           extension: tuple[tuple[int, bytes], ...] = ()) -> Case:
    """The forbidden line in fragments, then what follows them."""
    return Case(name, (Fragments(them, extension=extension), *then), harmless, versions=ONLY)


CASES = (
    headers("destination-options", (DESTINATION, PADDING)),
    headers("hop-by-hop", (HOP_BY_HOP, PADDING)),
    headers("both", (HOP_BY_HOP, PADDING), (DESTINATION, PADDING)),
    headers("eight-headers", *((DESTINATION, PADDING),) * 8),
    headers("nine-headers", *((DESTINATION, PADDING),) * 9),
    headers("option-to-skip", (DESTINATION, IGNORE)),
    headers("option-to-discard", (DESTINATION, DISCARD), harmless="the server discards the packet"),
    headers("hop-by-hop-second", (DESTINATION, PADDING), (HOP_BY_HOP, PADDING),
            harmless="hop-by-hop options must come first (RFC 8200, 4.1)"),
    headers("routing-header", (ROUTING, ROUTING_0), harmless="routing headers of type 0 are obsolete (RFC 5095)"),
    headers("routing-header-used-up", (ROUTING, ROUTING_USED_UP)),
    headers("no-next-header", (NO_NEXT, PADDING), harmless="nothing follows no-next-header"),
    decoy_first("decoy-to-discard", versions=ONLY, extension=((DESTINATION, DISCARD),)),
    decoy_first("decoy-routed-on", versions=ONLY, extension=((ROUTING, ROUTING_UNKNOWN),)),
    decoy_first("decoy-header-too-long", versions=ONLY, extension=((DESTINATION, b"\xff\x01\x04" + bytes(4)),)),
    pieces("two", Piece(0, 24), Piece(24)),
    pieces("two-swapped", Piece(24), Piece(0, 24)),
    pieces("three-swapped", Piece(24), Piece(16, 24), Piece(0, 16),
           harmless="a first fragment without the whole TCP header is dropped (RFC 8200, 4.5)"),
    pieces("atomic", Piece(0)),
    pieces("atomic-decoy-that-dies-behind", Piece(0, None, decoy=True, hops=2), then=(Put(FORBIDDEN),)),
    pieces("decoy-that-dies-behind", Piece(0, 24, decoy=True, hops=2), Piece(24, None, decoy=True, hops=2),
           then=(Put(FORBIDDEN),)),
    pieces("header-in-the-second", Piece(0, 8), Piece(8), extension=((DESTINATION, PADDING),),
           harmless="the first fragment must hold all headers (RFC 8200, 4.5)"),
    pieces("options-in-the-first", Piece(0, 32), Piece(32), extension=((DESTINATION, PADDING),)),
    pieces("decoy-overlaps", Piece(0, 24, decoy=True), Piece(16, 24), Piece(24), harmless=OVERLAP),
    pieces("decoy-the-same", Piece(0, 24, decoy=True), Piece(0, 24), Piece(24),
           harmless="of two fragments of the same place Linux keeps the first"),
    pieces("never-completed-then-whole", Piece(0, 24, decoy=True), then=(Put(FORBIDDEN),)),
)
