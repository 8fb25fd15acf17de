"""Events as EVE JSON: Suricata's names where Suricata has one, all else under `nfqguard{}`.

Octets from the wire appear in two places only, `nfqguard.text` and `nfqguard.after`, and only as printable ASCII: what
is not printable is escaped before JSON escapes it again, so no sender can forge a line, a field, or a terminal's
control sequence.
"""
from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from nfqguard.report.asa import asa_message
from nfqguard.report.community import community_id
from nfqguard.report.event import Event, EventType

ACTIONS = {
    EventType.MASK_COMMAND: ("mask", "cmd verb"),
    EventType.MASK_KEYWORD: ("mask", "ehlo-reply-parameter"),
    EventType.MASK_BANNER: ("mask", "mask-banner"),
    EventType.RESET: ("reset", None),
    EventType.DROP: ("drop", None),
    EventType.TRANSITION: ("log", None),
    EventType.REMOVE_KEYWORD: ("remove", "ehlo-reply-parameter"),
    EventType.REPLACE_BANNER: ("replace", "mask-banner"),
    EventType.INSERT_HEADER: ("insert", "header"),
    EventType.REJECT: ("reject", None),
    EventType.MATCH: ("log", None),
    EventType.ANSWER: ("answer", None),
    EventType.START: ("start", None),
}
"""Event -> what was done, and by which match (ASA's names)."""

DIRECTIONS = ("client", "server")
NANOSECONDS = 1_000_000_000
FLOW_ID_BITS = 51
"""As wide as Suricata's: exact in the double-precision numbers of JavaScript."""


def timestamp(nanoseconds: int) -> str:
    """A moment in ns since the epoch as Suricata writes it: ISO 8601, microseconds, UTC as +0000. Never rounded up."""
    seconds, rest = divmod(nanoseconds, NANOSECONDS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}+0000"


def printable(octets: bytes) -> str:
    """Octets as printable ASCII: CR, LF, TAB and backslash as in C, all else that is not printable as \\xNN."""
    named = {0x5C: r"\\", 0x0D: r"\r", 0x0A: r"\n", 0x09: r"\t"}
    return "".join(named.get(octet) or (chr(octet) if 0x20 <= octet <= 0x7E else f"\\x{octet:02x}") for octet in octets)


def flow_id(flow: int, queue: int | None, instance: int) -> int:
    """A flow's number for the record: flows of different queues and of different runs do not share one.

    flow      number within its engine
    queue     number of the queue; None in a replay
    instance  64 bits drawn anew for every run; 0 in a replay, so that it always tells the same
    """
    key = struct.pack("!QiQ", flow, -1 if queue is None else queue, instance)
    return int.from_bytes(blake2b(key, digest_size=8).digest()) >> (64 - FLOW_ID_BITS)


def event_record(event: Event, queue: int | None = None, instance: int = 0) -> dict[str, Any]:
    """An event as an EVE record, ready for json.dumps()."""
    record: dict[str, Any] = {"timestamp": timestamp(event.time)}
    if event.flow:
        record["flow_id"] = flow_id(event.flow, queue, instance)
    client, server = (event.client, event.client_port), (event.server, event.server_port)
    from_server = event.direction == 1 and event.type is not EventType.FLOW
    source, destination = (server, client) if from_server else (client, server)
    record |= {
        "event_type": {EventType.FLOW: "flow", EventType.DROP: "drop"}.get(event.type, "smtp"),
        "src_ip": str(source[0]), "src_port": source[1], "dest_ip": str(destination[0]), "dest_port": destination[1],
        "proto": "TCP", "app_proto": "smtp", "community_id": community_id(client, server),
    }
    if event.type is EventType.FLOW:
        record["flow"] = _flow(event)
    record["nfqguard"] = _details(event, queue)
    return record


def stats_record(now: int, queue: int, counters: Mapping[str, int], kernel: Mapping[str, int] | None) -> dict[str, Any]:
    """What was counted on a queue, as Suricata's `stats`; `kernel` is what the kernel counted on it."""
    return {
        "timestamp": timestamp(now), "event_type": "stats",
        "stats": {"queue": queue, **counters, "kernel": dict(kernel) if kernel is not None else None},
    }


def _flow(event: Event) -> dict[str, Any]:
    return {
        "pkts_toserver": event.packets[0], "pkts_toclient": event.packets[1],
        "bytes_toserver": event.octets[0], "bytes_toclient": event.octets[1],
        "start": timestamp(event.started), "end": timestamp(event.time),
        "age": max(0, event.time - event.started) // NANOSECONDS,
    }


def _details(event: Event, queue: int | None) -> dict[str, Any]:
    """What Suricata has no name for. A flow's record and a dropped packet have no line, and so no text."""
    details: dict[str, Any] = {}
    if event.type in ACTIONS:
        action, match = ACTIONS[event.type]
        details["action"] = action
        details |= {"match": match} if match else {}
    details |= _rule(event)
    details |= {"dry-run": True} if event.dry_run else {}
    details |= {"policy": event.policy} if event.policy else {}
    if event.type not in (EventType.FLOW, EventType.START):
        details |= {"direction": DIRECTIONS[event.direction], "length": event.length}
    if event.type not in (EventType.FLOW, EventType.DROP, EventType.START):
        details |= {"line": event.line, "offset": event.offset}
        details |= {"text": printable(event.text)} if event.text else {}
        details |= {"after": printable(event.after)} if event.after else {}
        details |= {"code": event.code} if event.code else {}
    details |= {"reason": event.reason} if event.reason else {}
    asa = asa_message(event)
    details |= {"asa": asa} if asa else {}
    details |= {"queue": queue} if queue is not None else {}
    return details


def _rule(event: Event) -> dict[str, Any]:
    """The rule that asked for it; `action` is what it did, or would have done in a dry run."""
    rule = event.rule
    if rule is None:
        return {}
    said: dict[str, Any] = {"match": rule.match, "rule": rule.name, "place": rule.place}
    if event.type is EventType.MATCH:
        said["action"] = rule.action.name.lower().replace("_", "-")
    if rule.value:
        said["value"] = rule.value
    if rule.bound:
        said["bound"] = rule.bound
    return said
