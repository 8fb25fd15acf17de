"""The merged text against the model: every mistake as a problem with its file, key path and remedy.

pydantic finds the mistakes; its sentences are for programmers, so the frequent ones are said again in plain words.
"""
from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nfqguard.policy.match import Match
from nfqguard.policy.model import Deployment, Document, Engine, Events, Exceptions, Network, Policy
from nfqguard.policy.problem import Problem, dotted, nearest
from nfqguard.policy.section import Section
from nfqguard.policy.source import Source
from nfqguard.policy.text import ONE_LINE
from nfqguard.policy.traffic_class import TrafficClass

Path = tuple[str | int, ...]

WANTED = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "bool_type": "true or false", "string_type": "a text in quotes", "tuple_type": "a list in brackets",
    "model_type": "a table", "model_attributes_type": "a table", "dict_type": "a table",
    "ip_v4_network": "a network such as 192.0.2.0/24 or 2001:db8::/32, without host bits",
    "ip_v6_network": "a network such as 192.0.2.0/24 or 2001:db8::/32, without host bits",
}
"""pydantic's kinds of error -> what the value has to be."""


def mistakes(source: Source) -> list[Problem]:
    """Every mistake in the merged text that can be seen without following `extends`."""
    try:
        Document.model_validate(source.data, by_alias=True, by_name=False)
    except ValidationError as error:
        return _explain_all(source, error)
    return []


def _explain_all(source: Source, error: ValidationError) -> list[Problem]:
    found: dict[Path, Problem] = {}
    for detail in error.errors():
        path = _written(source.data, detail["loc"])
        if path not in found:   # a union reports one error for each of its members
            text, remedy = _explain(detail, path)
            found[path] = Problem(source.origin(path), dotted(path), text, remedy)
    return list(found.values())


def _written(data: Any, location: Path) -> Path:
    """pydantic's location without the names it gives to a union's members: the part that the operator wrote."""
    path: list[str | int] = []
    for key in location:
        inside_list = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if not inside_list and not (isinstance(data, dict) and key in data):
            break
        data = data[key]
        path.append(key)
    return tuple(path)


def _explain(detail: ErrorDetails, path: Path) -> tuple[str, str]:
    """What is wrong, and the remedy."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return "there is no such key", nearest(str(path[-1]), _known_keys(path))
    if kind == "missing":
        return f"the key {detail['loc'][-1]} is missing", "write it"
    if kind == "string_pattern_mismatch":
        if context["pattern"] == ONE_LINE:
            return f"{value!r} does not fit", "give one line of printable ASCII"
        if path[-1] == "name":
            return (f"{value!r} cannot be a name",
                    f"use 1 to 31 letters, digits and {'_ . -' if path[0] == 'classes' else '-'} (not first)")
        if path[0] == "policies" and len(path) == 2:
            return "this cannot be a policy's name", "use 1 to 31 letters, digits, and _ . - (not first)"
        return f"{value!r} does not fit", f"it has to match {context['pattern']}"
    if kind == "value_error":
        text, _, remedy = str(context["error"]).partition(": ")
        return text, remedy
    if kind in WANTED:
        return f"{value!r} is not what is needed", f"give {WANTED[kind]}"
    return _explain_range(kind, value, context, detail["msg"])


def _explain_range(kind: str, value: object, context: dict[str, Any], message: str) -> tuple[str, str]:
    if kind == "greater_than_equal":
        return f"{value!r} is too small", f"give at least {context['ge']}"
    if kind == "less_than_equal":
        return f"{value!r} is too large", f"give at most {context['le']}"
    if kind == "literal_error":
        return f"{value!r} is not known", f"give {context['expected']}"
    if kind == "string_too_long":
        return "the text is too long", f"give at most {context['max_length']} characters"
    if kind == "string_too_short":
        return "the text is empty", "give a value or leave the key out"
    return message, ""


def _known_keys(path: Path) -> list[str]:
    """The keys that exist in the table where `path` ends."""
    sections: dict[Path, type[Section]] = {
        (): Document, ("deployment",): Deployment, ("engine",): Engine, ("events",): Events, ("network",): Network}
    table = path[:-1]
    if table in sections:
        return sections[table].spellings()
    if isinstance(table[-1], int):
        return (TrafficClass if table[0] == "classes" else Match).spellings()
    return (Exceptions if table[-1] == "exceptions" else Policy).spellings()
