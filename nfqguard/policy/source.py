"""Configuration text: the operator's file and the drop-ins beside it, merged, each key with the file it came from.

Later files win key by key; tables are merged, every other value is replaced whole. Nothing here knows what a key means.
"""
from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from nfqguard.policy.problem import Problem

PRESETS = files("nfqguard.policy.presets")


@dataclass
class Source:
    """Merged text: `data` as tomllib gives it, `origins` from a key path to the file that last wrote it."""

    name: str
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[tuple[str, ...], str] = field(default_factory=dict)
    read: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, path: tuple[str | int, ...]) -> str:
        """The file that wrote the key at `path`, or the nearest table above it."""
        keys = tuple(str(key) for key in path)
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.origins:
                return self.origins[keys[:end]]
        return self.name

    def add(self, file: str, content: bytes) -> None:
        """Lay the text of one file over what is there; what cannot be parsed becomes a problem."""
        self.read.append(file)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            line = content[:error.start].count(b"\n") + 1
            self.problems.append(Problem(f"{file}:{line}", "", "this is not UTF-8 text", "save the file as UTF-8"))
            return
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.problems.append(_syntax(file, text, str(error)))
            return
        self._overlay(self.data, table, (), file)

    def add_file(self, path: Path) -> None:
        """The same for a file on disk."""
        try:
            content = path.read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            self.problems.append(Problem(str(path), "", f"cannot be read ({reason})", "give a file that can be read"))
            return
        self.add(str(path), content)

    def _overlay(self, into: dict[str, Any], table: dict[str, Any], path: tuple[str, ...], file: str) -> None:
        for key, value in table.items():
            self.origins[(*path, key)] = file
            if not isinstance(value, dict):
                into[key] = value
                continue
            if not isinstance(into.get(key), dict):
                into[key] = {}
            self._overlay(into[key], value, (*path, key), file)


def _syntax(file: str, text: str, message: str) -> Problem:
    """tomllib names the place at the end of its sentence; operators' editors want it behind the file's name."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if match is None:
        return Problem(file, "", message)
    what, line, column = match.groups()
    if line is None:
        lines = text.split("\n")
        line, column = str(len(lines)), str(len(lines[-1]) + 1)
    return Problem(f"{file}:{line}:{column}", "", f"this is no valid TOML ({what})", "correct the syntax here")


def read_files(path: Path) -> Source:
    """FILE, then every `conf.d/*.toml` beside it in the order of their names."""
    source = Source(str(path))
    source.add_file(path)
    for dropin in sorted((path.parent / "conf.d").glob("*.toml")):
        source.add_file(dropin)
    return source


def read_preset(name: str) -> Source:
    """The text of a shipped preset. `name` must be one of preset_names()."""
    source = Source(f"preset {name}")
    source.add(source.name, PRESETS.joinpath(f"{name}.toml").read_bytes())
    return source


def preset_names() -> tuple[str, ...]:
    """The shipped presets, sorted."""
    return tuple(sorted(entry.name[:-5] for entry in PRESETS.iterdir() if entry.name.endswith(".toml")))


def preset_text(name: str) -> str:
    """A shipped preset as it is written, comments included."""
    return PRESETS.joinpath(f"{name}.toml").read_text(encoding="utf-8")
