"""Evasions: ways to bring a forbidden verb past an inspector to a real server. One family a file; see `case`.
`memory` stands apart: its cases do not hide the verb."""
from __future__ import annotations

from evasion import (
    ack,
    checksum,
    fast_open,
    flags,
    fragments,
    ipv6,
    options,
    order,
    overlap,
    rst_fin_syn,
    sequence,
    ttl,
    urgent,
    wrap,
    wrong_side,
)
from evasion.case import Case

FAMILIES: dict[str, tuple[Case, ...]] = {
    module.__name__.rpartition(".")[2]: module.CASES
    for module in (checksum, ttl, sequence, ack, flags, options, rst_fin_syn, order, overlap, urgent, fast_open, wrap,
                   fragments, ipv6, wrong_side)
}
CASES: dict[str, Case] = {f"{family}/{case.name}": case for family, cases in FAMILIES.items() for case in cases}
