"""What is allowed but will surprise: warnings about a configuration that can be used."""
from __future__ import annotations

from collections.abc import Iterator

from nfqguard.policy.match import Match, automaton
from nfqguard.policy.model import Deployment, Policy
from nfqguard.policy.regex_dfa import MATCHED
from nfqguard.policy.traffic_class import Network, Placed

OFFERS = {"CHUNKING": "BDAT", "STARTTLS": "STARTTLS"}
"""Keyword of an EHLO reply -> the verb that a client uses because of it (RFC 3030, RFC 3207)."""

HARM = {
    "CHUNKING": "mail that is sent with BDAT will fail",
    "STARTTLS": "mail of clients that insist on TLS will fail, and all other mail stays in clear",
}

LINE_MAX = 16384
"""Octets of a command line that ever pass: NQ_COMMAND_LINE_MAX in csrc/nq.h."""

Caution = tuple[tuple[str | int, ...], str, str]
"""(key path below the table, text, remedy)"""


def policy_cautions(policy: Policy) -> Iterator[Caution]:
    """Warnings about one policy, all inheritance filled in."""
    if policy.dry_run:
        yield (("dry-run",), "nothing is changed and nothing is stopped: events say what would have been",
               "write dry-run = false once they say what you want")
    if policy.mask_banner == "asa":
        yield (("mask-banner",), "Postfix takes such a greeting for a PIX: its clients fall back to HELO, without TLS, "
               "and may pause before the final dot (smtp_pix_workarounds)",
               'write mask-banner = "modern" or "none" unless that is wanted')
    if policy.inspect == ("esmtp",):
        yield from _broken_offers(policy)
        yield from _tls(policy)
    for match in policy.matches if not policy.dry_run else ():
        yield from _match_cautions(match)
    for name, answer in policy.exceptions:
        if answer == "pass":
            yield (("exceptions", name), "what cannot be judged passes uninspected, and so does the rest of its flow",
                   "write drop or reset to close this")


def _offered(policy: Policy, keyword: str) -> bool:
    """Does the client read this keyword where the server says it?"""
    return not policy.mask_ehlo or keyword in policy.ehlo_keywords


def _said(policy: Policy, verb: str) -> bool:
    """Does this verb reach the server?"""
    return not policy.mask_verbs or verb in policy.verbs


def _broken_offers(policy: Policy) -> Iterator[Caution]:
    for keyword, verb in OFFERS.items():
        if _offered(policy, keyword) and not _said(policy, verb):
            yield (("verbs",),
                   f"{verb} becomes X, but the server may offer {keyword} in its EHLO reply, so {HARM[keyword]}",
                   f"mask {keyword} (mask-ehlo = true, and not among ehlo-keywords) or turn it off in the server")
        elif policy.mask_verbs and verb in policy.verbs and not _offered(policy, keyword):
            yield (("ehlo-keywords",),
                   f"{verb} is among the verbs, but no client reads that the server offers {keyword}, so none uses it",
                   f"add {keyword} to ehlo-keywords, or take {verb} out of verbs")


def _tls(policy: Policy) -> Iterator[Caution]:
    begins = _offered(policy, "STARTTLS") and _said(policy, "STARTTLS")
    if begins:
        yield (("verbs",), "STARTTLS passes: nothing behind it is inspected, for it is encrypted",
               "let clients have TLS, or take STARTTLS out of verbs and ehlo-keywords, which keeps mail in clear")
    for match in policy.matches:
        if match.match == "tls required" and match.acts and not match.negate and not begins:
            yield (("matches", match.name), "mail needs TLS here, but STARTTLS does not pass, so no mail does",
                   "add STARTTLS to verbs and to ehlo-keywords")


def _match_cautions(match: Match) -> Iterator[Caution]:
    if match.action == "none":
        return
    for text, remedy in (*_reach(match), *_silence(match)):
        yield ("matches", match.name), text, remedy


def _reach(match: Match) -> Iterator[tuple[str, str]]:
    """It hits everything, or nothing."""
    tried = automaton(match)
    if tried is not None and tried.accepts[0] & MATCHED:
        yield ("the regular expression matches everything, the empty text, too" +
               (", so this match, with not, never does" if match.negate else ""),
               "look for a part that may be left out, such as .* or x?")
    if match.match == "cmd line length" and match.gt is not None and match.gt >= LINE_MAX:
        yield (f"the engine lets no command line of more than {LINE_MAX} octets pass, so this never matches",
               "write a smaller gt")
    if match.dry_run and match.action not in ("log", "allow"):
        yield "nothing is done where this matches: it is told only", "write dry-run = false once that is what you want"


def _silence(match: Match) -> Iterator[tuple[str, str]]:
    """Closing without a word what honest senders send: they read nothing, and try again for days."""
    if not match.acts or match.action not in ("drop-connection", "reset") or match.negate or match.gt is None:
        return
    if match.match in ("header line length", "body line length") and match.gt <= 998:
        yield ("honest mail has such lines, and its sender is not told why the connection ends, so it tries for days",
               'write action = "reject", or "log"')
    if match.match == "cmd RCPT count" and match.gt <= 100:
        yield ("mailing lists send to as many recipients, and are not told why the connection ends, so they try for "
               "days (RFC 5321, 4.5.3.1.8 wants 100 at least)", 'write action = "reject", which says 452 4.5.3')


def class_cautions(classes: Placed, deployment: Deployment, network: Network) -> Iterator[Caution]:
    """Warnings about classes that no connection can be of."""
    for place, one in classes:
        if network.inside and not one.lies_inside(network.inside):
            end = "server" if one.direction == "inbound" else "client"
            yield ((place, f"{end}s"), f"none of these {end}s is inside, so no {one.direction} connection belongs to "
                   "this class", "correct it, or inside of [network], or take the class out")
        if one.ports and not set(one.ports) & set(deployment.ports):
            yield ((place, "ports"), "none of these ports is brought to us, so no connection belongs to this class",
                   "add them to ports of [deployment], or take the class out")


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
