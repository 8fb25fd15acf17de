"""Community ID: one name for a flow in every tool that computes it (Suricata, Zeek, Elastic).

Community ID flow hashing, version 1: https://github.com/corelight/community-id-spec
"""
from __future__ import annotations

import hashlib
import struct
from base64 import b64encode
from ipaddress import IPv4Address, IPv6Address

TCP = 6

End = tuple[IPv4Address | IPv6Address, int]
"""(address, port in host order)"""


def community_id(one: End, other: End, seed: int = 0) -> str:
    """The flow's name, the same for both directions: base64 of SHA-1 over seed (16 bits, big endian), the smaller end's
    address, the other's, protocol, a zero octet, and the ports in the same order."""
    low, high = sorted(((one[0].packed, one[1]), (other[0].packed, other[1])))
    hashed = hashlib.sha1(struct.pack("!H", seed) + low[0] + high[0] + struct.pack("!BBHH", TCP, 0, low[1], high[1]),
                          usedforsecurity=False)
    return "1:" + b64encode(hashed.digest()).decode()
