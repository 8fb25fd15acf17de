"""Combinations of flags that the server drops or that it does not mind."""
from evasion.case import FORBIDDEN, Case, Put, decoy_first, straight

CASES = (
    decoy_first("none", flags=""),
    decoy_first("syn-fin", flags="SF"),
    decoy_first("all", flags="FSRPAUEC", at=50),
    decoy_first("syn-in-the-middle", flags="SPA"),
    decoy_first("syn-without-ack-in-the-middle", flags="SP"),
    decoy_first("fin-without-ack", flags="FP"),
    decoy_first("rst-with-data-elsewhere", flags="RPA", at=50),
    decoy_first("rst-without-ack-elsewhere", flags="R", at=200),
    straight("forbidden-without-push", flags="A"),
    straight("forbidden-with-congestion-flags", flags="PAEC"),
    straight("forbidden-with-the-reserved-bit", flags="PAN"),
    straight("forbidden-with-fin", flags="FPA"),
    Case("fin-on-the-first-half", (Put(FORBIDDEN[:5]), Put(FORBIDDEN[5:], at=5, flags="FPA"))),
)
