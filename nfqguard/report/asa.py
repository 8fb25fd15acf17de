"""The message of ASA that an event corresponds to, by its number: what counts those may go on counting the same."""
from __future__ import annotations

from nfqguard.report.event import Doing, Event, EventType

REPLACED, MALICIOUS, ACTED, RECEIVED, OVERSIZED, TLS_STARTED, TERMINATED = (
    108002, 108003, 108004, 108005, 108006, 108007, 507003)
"""SMTP replaced; malicious pattern in the mail address; ESMTP Classification: an action, or only received; size
violation; TLS started; flow terminated by inspection engine."""

BY_MATCH = {"size exceeded": OVERSIZED, "tls started": TLS_STARTED}
ENDINGS = {EventType.RESET, EventType.REJECT}
EDITS = {EventType.MASK_COMMAND, EventType.MASK_KEYWORD, EventType.REMOVE_KEYWORD}


def asa_message(event: Event) -> int | None:
    """The number, or None where ASA has no such message (Syslog Messages guide, 108002 to 108007 and 507003)."""
    rule = event.rule
    if rule is None:
        return ACTED if event.type in EDITS else TERMINATED if event.type in ENDINGS else None
    if rule.match in BY_MATCH:
        return BY_MATCH[rule.match]
    if rule.match == "special-character":
        return REPLACED if rule.action is Doing.REPLACE else RECEIVED if rule.action is Doing.LOG else MALICIOUS
    return RECEIVED if rule.action in (Doing.LOG, Doing.ALLOW) or event.dry_run else ACTED
