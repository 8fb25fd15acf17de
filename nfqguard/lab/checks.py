"""The list of what was looked at and whether it was as it must be: a demonstration's conscience."""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Checks:
    """What was looked at so far. `failed` holds a sentence for each that was not as it must be."""

    done: int = 0
    failed: list[str] = field(default_factory=list)

    def equal(self, what: str, found: object, wanted: object) -> bool:
        """Look whether two values are equal."""
        return self.true(what, found == wanted, f"must be {_short(wanted)}, is {_short(found)}")

    def true(self, what: str, holds: bool, otherwise: str) -> bool:
        """Look whether something holds; `otherwise` says what is the case where it does not."""
        self.done += 1
        if not holds:
            self.failed.append(f"{what}: {otherwise}")
        return holds


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:400]}... ({len(text)} characters)"
