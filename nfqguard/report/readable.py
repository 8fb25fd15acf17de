"""An EVE record as one line for a person: pieces of text with the name of a style each; printing is the caller's.

A record may come from any file, so every value is escaped before it is shown.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Piece = tuple[str, str]
"""(text, style of rich; empty: plain)"""

STYLES = {"mask": "yellow", "reset": "bold red", "reject": "bold red",
          "remove": "yellow", "replace": "yellow", "insert": "yellow", "drop": "red", "drop-connection": "bold red",
          "rate-limit": "bold red", "allow": "green", "answer": "dim", "start": "green", "log": "cyan", "flow": "green",
          "stats": "blue"}
SPEAKERS = {"client": "command", "server": "reply"}


def readable(record: Mapping[str, Any]) -> list[Piece]:
    """The record as pieces of one line, without its end."""
    ours = _table(record, "nfqguard")
    kind = _text(ours.get("action") or record.get("event_type") or "?")
    pieces = [(f"{_text(record.get('timestamp', '?'))} ", "dim"), (f"{kind:<5} ", STYLES.get(kind, ""))]
    if "src_ip" in record:
        pieces.append((f"{_end(record, 'src')} -> {_end(record, 'dest')}  ", "bold"))
    if kind == "flow":
        pieces += _flow(_table(record, "flow"))
    elif kind == "stats":
        pieces += _stats(_table(record, "stats"))
    else:
        pieces += _line(ours)
    pieces.append((_because(ours), "dim"))
    return [piece for piece in pieces if piece[0]]


def _line(ours: Mapping[str, Any]) -> Iterator[Piece]:
    length = f"{_text(ours.get('length', '?'))} octets"
    if "line" in ours:
        yield f"{SPEAKERS.get(_text(ours.get('direction')), 'unknown')} line {_text(ours['line'])}, {length}", ""
    else:
        yield f"packet with {length} from the {_text(ours.get('direction', '?'))}", ""
    if "text" in ours:
        yield ": ", ""
        yield f'"{_text(ours["text"])}"', "bold"
    if "after" in ours:
        yield f' -> "{_text(ours["after"])}"', "bold"
    if "value" in ours:
        yield f", {_text(ours['value'])}" + (f" against {_text(ours['bound'])}" if "bound" in ours else ""), ""
    if ours.get("code"):
        yield f", reply {_text(ours['code'])}", ""
    if ours.get("dry-run") is True:
        yield ", not done: dry run", "magenta"


def _flow(flow: Mapping[str, Any]) -> Iterator[Piece]:
    for arrow, way in (("to the server", "toserver"), ("to the client", "toclient")):
        packets, octets = flow.get(f"pkts_{way}", "?"), flow.get(f"bytes_{way}", "?")
        yield f"{_text(packets)} packets and {_text(octets)} octets {arrow}, ", ""
    yield f"{_text(flow.get('age', '?'))} s", ""


def _stats(stats: Mapping[str, Any]) -> Iterator[Piece]:
    shown = ", ".join(f"{_text(name)} {_text(value)}" for name, value in stats.items()
                      if isinstance(value, int) and (value or name == "queue"))
    yield shown, ""


def _because(ours: Mapping[str, Any]) -> str:
    """Match, reason and policy, as far as they are there."""
    parts = [_text(ours[key]) for key in ("match", "rule", "reason") if key in ours]
    parts += [f"policy {_text(ours['policy'])}"] if ours.get("policy") else []
    return f"  ({'; '.join(parts)})" if parts else ""


def _end(record: Mapping[str, Any], end: str) -> str:
    address, port = _text(record.get(f"{end}_ip", "?")), _text(record.get(f"{end}_port", "?"))
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _table(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return "".join(char if char.isascii() and char.isprintable() else char.encode("unicode_escape").decode()
                   for char in str(value))
