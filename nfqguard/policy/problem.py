"""What is wrong with a configuration, in words that an operator can act on.

A problem has a place (file, key path), a sentence that says what is wrong, and a remedy. Loading collects them all: an
operator who has made five mistakes sees five lines, not the first one five times.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Problem:
    """One mistake, or one warning.

    file    the file's path as the operator gave it, with `:LINE:COLUMN` behind it for mistakes of TOML's syntax
    key     dotted key path; empty where the whole file is meant
    text    what is wrong
    remedy  what to do; may be empty
    """

    file: str
    key: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        place = f"{self.file}: {self.key}: " if self.key else f"{self.file}: "
        return f"{place}{self.text}: {self.remedy}" if self.remedy else f"{place}{self.text}"


class ConfigError(Exception):
    """A configuration that cannot be used. `problems` holds every reason; str() prints them, a line each.

    `warnings` holds what would surprise once the reasons are gone, as far as that can be seen.
    """

    def __init__(self, problems: Iterable[Problem], warnings: Iterable[Problem] = ()) -> None:
        self.problems = tuple(problems)
        self.warnings = tuple(warnings)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def dotted(path: Iterable[str | int]) -> str:
    """A key path as an operator reads it: policies.mail.matches[2].gt"""
    written = ""
    for key in path:
        written += f"[{key}]" if isinstance(key, int) else f".{key}"
    return written.removeprefix(".")


def nearest(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that does not exist: its nearest neighbours, or all there are where none is near.

    The comparison ignores case and takes `_` for `-`.
    """
    names = {candidate.lower(): candidate for candidate in known}
    wanted = name.lower().replace("_", "-")
    close = get_close_matches(wanted, names, n=3, cutoff=0.6) or sorted(known for known in names if wanted and
                                                                        known.startswith(wanted))
    if close:
        return "did you mean " + " or ".join(repr(names[match]) for match in close) + "?"
    return "known are " + ", ".join(sorted(names.values()))
