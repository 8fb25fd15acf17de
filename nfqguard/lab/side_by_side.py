"""Two views of the same octets beside each other, what differs coloured."""
from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

CHANGED = "bold red"
ORIGINAL = "yellow"


def visible(octets: bytes, other: bytes, style: str) -> Text:
    """Octets as text, a line each, CR and LF shown as \\r\\n; those that differ from `other` in the given style."""
    text = Text()
    for place, octet in enumerate(octets):
        shown = {0x0D: "\\r", 0x0A: "\\n"}.get(octet) or (chr(octet) if 0x20 <= octet < 0x7F else f"\\x{octet:02x}")
        differs = place >= len(other) or other[place] != octet
        text.append(shown, style if differs else "dim" if octet in b"\r\n" else "")
        if octet == 0x0A and place + 1 < len(octets):
            text.append("\n")
    return text


def table(title: str, headings: tuple[str, str, str], rows: Iterable[tuple[str, bytes, bytes]]) -> Table:
    """A table of (note, as it was sent, as it arrived)."""
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for heading in headings:
        made.add_column(heading, overflow="fold")
    for note, sent, arrived in rows:
        made.add_row(note, visible(sent, arrived, ORIGINAL), visible(arrived, sent, CHANGED))
    return made
