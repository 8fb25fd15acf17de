"""What is allowed but will surprise: warnings about a configuration that can be used."""
from __future__ import annotations

from collections.abc import Iterator

from nfqguard.policy.model import Deployment, Policy

OFFERS = {"CHUNKING": "BDAT", "STARTTLS": "STARTTLS"}
"""Keyword of an EHLO reply -> the verb that a client uses because of it (RFC 3030, RFC 3207)."""

HARM = {
    "CHUNKING": "mail that is sent with BDAT will fail",
    "STARTTLS": "mail of clients that insist on TLS will fail, and all other mail stays in clear",
}

Caution = tuple[tuple[str, ...], str, str]
"""(key path below the table, text, remedy)"""


def policy_cautions(policy: Policy) -> Iterator[Caution]:
    """Warnings about one policy, all inheritance filled in."""
    if policy.mask_banner == "asa":
        yield (("mask-banner",), "Postfix takes such a greeting for a PIX: its clients fall back to HELO, without TLS, "
               "and may pause before the final dot (smtp_pix_workarounds)",
               'write mask-banner = "none" unless that is wanted')
    if policy.inspect == ("esmtp",) and policy.mask_verbs:
        yield from _broken_offers(policy)
    elif policy.inspect == ("esmtp",) and (not policy.mask_ehlo or "CHUNKING" in policy.ehlo_keywords):
        yield (("mask-verbs",), "BDAT passes, but the octets behind it are not counted and are read as commands, so "
               "such mail may stand still", "mask CHUNKING (mask-ehlo = true, and not among ehlo-keywords)")
    for name, answer in policy.exceptions:
        if answer == "pass":
            yield (("exceptions", name), "what cannot be judged passes uninspected, and so does the rest of its flow",
                   "write drop or reset to close this")


def _broken_offers(policy: Policy) -> Iterator[Caution]:
    for keyword, verb in OFFERS.items():
        passes = not policy.mask_ehlo or keyword in policy.ehlo_keywords
        if passes and verb not in policy.verbs:
            yield (("verbs",),
                   f"{verb} becomes X, but the server may offer {keyword} in its EHLO reply, so {HARM[keyword]}",
                   f"mask {keyword} (mask-ehlo = true, and not among ehlo-keywords) or turn it off in the server")


def deployment_cautions(deployment: Deployment) -> Iterator[Caution]:
    """Warnings about how packets are brought to us."""
    if 465 in deployment.ports:
        yield (("ports",), "on port 465 TLS begins with the first octet: nothing there can be inspected, and "
               "masking breaks it", "take 465 out of ports")
    if deployment.on_absent == "accept":
        yield (("on-absent",), "while no process is bound to the queue, mail passes uninspected",
               'write on-absent = "drop" to close this')
    if deployment.on_overload == "accept":
        yield (("on-overload",), "while the queue is full, mail passes uninspected",
               'write on-overload = "drop" to close this')
