"""The tables of docs/inspection.md, made from the model and the presets:

    python -m nfqguard.policy.document docs/inspection.md

rewrites what stands between `<!-- table NAME -->` and `<!-- end -->` and leaves the rest alone.
"""
from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from nfqguard.policy.criterion import CRITERIA, Criterion
from nfqguard.policy.load import load_preset, preset_names
from nfqguard.policy.match import DEEDS, Match, actions, criterion_keys, spelled
from nfqguard.policy.model import Exceptions, Policy
from nfqguard.policy.section import Section, hyphenate
from nfqguard.policy.traffic_class import Network, TrafficClass

MARKED = re.compile(r"(<!-- table ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

WORDS = ("verbs", "ehlo_keywords")
"""Lists of words have tables of their own."""

ABOVE_PRESETS = ("extends", "inspect", "matches", "exceptions", *WORDS)
"""Fields of a policy that the table of parameters says nothing of each preset for."""


def rewritten(text: str) -> str:
    """The page with its tables as they are now. Raises KeyError for a table that there is not."""
    return MARKED.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}", text)


@cache
def _presets() -> dict[str, Policy]:
    return {name: load_preset(name).policy_in_force for name in preset_names()}


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
                     for line in lines) + "\n"


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value in ("", (), None) else str(value)


def _described(field: FieldInfo) -> str:
    """A model's docstring; a blank between its lines."""
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "needed"
    return _value(field.default)


def _keys(section: type[Section]) -> str:
    return _table(("key", "default", "meaning"), (
        (_code(field.alias or hyphenate(name)), _default(field), _described(field))
        for name, field in section.model_fields.items()))


def _parameters() -> str:
    fields = {name: field for name, field in Policy.model_fields.items() if name not in ABOVE_PRESETS}
    presets = _presets().values()
    return _table(("key", "default", *_presets(), "meaning"), (
        (_code(hyphenate(name)), _value(field.default), *(_value(getattr(policy, name)) for policy in presets),
         _described(field)) for name, field in fields.items()))


def _exceptions() -> str:
    return _table(("exception", "default", *_presets(), "meaning"), (
        (_code(name), field.default, *(str(getattr(policy.exceptions, name)) for policy in _presets().values()),
         _described(field)) for name, field in Exceptions.model_fields.items()))


def _words(field: str) -> str:
    """Who lets a word pass; a preset that masks none lets all pass."""
    words = sorted({word for policy in _presets().values() for word in getattr(policy, field)})
    masked = "mask_verbs" if field == "verbs" else "mask_ehlo"

    def passes(policy: Policy, word: str) -> str:
        return "yes" if word in getattr(policy, field) or not getattr(policy, masked) else "X"

    def others(policy: Policy) -> str:
        return "X" if getattr(policy, masked) else "yes"

    rows = [(_code(word), *(passes(policy, word) for policy in _presets().values())) for word in words]
    rest = ("all others", *(others(policy) for policy in _presets().values()))
    return _table((hyphenate(field), *_presets()), [*rows, rest])


def _matches() -> str:
    return _table(("match", "is true for", "keys", "actions", "reply of `reject`"), (
        (_code(criterion.name), criterion.summary, _criterion_keys(criterion),
         ", ".join(actions(criterion)), _code(criterion.reply) if criterion.reply else "-")
        for criterion in CRITERIA.values()))


def _criterion_keys(criterion: Criterion) -> str:
    keys = ", ".join(_code(spelled(key)) for key in criterion_keys(criterion)) or "-"
    words = f" ({' '.join(criterion.words).replace('OTHERS', 'others')})" if criterion.words else ""
    return keys + words


def _presets_matches() -> str:
    return _table(("match", *_presets()), (
        (_code(name), *(_done(policy, name) for policy in _presets().values())) for name in CRITERIA))


def _done(policy: Policy, kind: str) -> str:
    return "; ".join(_told(match) for match in policy.matches if match.match == kind and match.action != "none") or "-"


def _told(match: Match) -> str:
    criteria: dict[str, Any] = {
        "not": match.negate, ">": match.gt, "<": match.lt, "of": " ".join(match.names),
        "but": " ".join(match.except_names), "regex": match.regex, "domains": " ".join(match.domains),
        "codes": " ".join(match.codes),
    }
    said = " ".join(key if value is True else f"{key} {value}" for key, value in criteria.items()
                    if value is not None and value is not False and value != "")
    done = f"{match.action}" + (", log" if match.log and match.action != "log" else "")
    reply = f" ({match.reply})" if match.reply else ""
    return f"{said}: {done}{reply}" if said else f"{done}{reply}"


def _deeds() -> str:
    return _table(("action", "what is done"), ((_code(action), done) for action, done in DEEDS.items()))


TABLES: dict[str, Callable[[], str]] = {
    "parameters": _parameters,
    "verbs": lambda: _words("verbs"),
    "ehlo-keywords": lambda: _words("ehlo_keywords"),
    "exceptions": _exceptions,
    "match-keys": lambda: _keys(Match),
    "actions": _deeds,
    "matches": _matches,
    "presets-matches": _presets_matches,
    "class-keys": lambda: _keys(TrafficClass),
    "network-keys": lambda: _keys(Network),
}
"""By name in the page."""


def main(page: str) -> None:
    """Rewrite the tables of a page."""
    path = Path(page)
    path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
