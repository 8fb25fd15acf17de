"""The merged text against the model: every mistake as a problem with its file, key path and remedy.

pydantic finds the mistakes; its sentences are for programmers, so the frequent ones are said again in plain words.
"""
from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from nfqguard.policy.model import Deployment, Document, Engine, Events, Exceptions, Policy, hyphenate
from nfqguard.policy.problem import Problem, nearest
from nfqguard.policy.source import Source

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
            found[path] = Problem(source.origin(path), _dotted(path), text, remedy)
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


def _dotted(path: Path) -> str:
    dotted = ""
    for key in path:
        dotted += f"[{key}]" if isinstance(key, int) else f".{key}"
    return dotted.removeprefix(".")


def _explain(detail: ErrorDetails, path: Path) -> tuple[str, str]:
    """What is wrong, and the remedy."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return "there is no such key", nearest(str(path[-1]), _known_keys(path))
    if kind == "string_pattern_mismatch":
        if path[0] == "policies":
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
    if kind == "string_too_short":
        return "the text is empty", "give a value or leave the key out"
    return message, ""


def _known_keys(path: Path) -> list[str]:
    """The keys that exist in the table where `path` ends."""
    sections: dict[Path, type[BaseModel]] = {
        (): Document, ("deployment",): Deployment, ("engine",): Engine, ("events",): Events}
    table = path[:-1]
    model = sections.get(table)
    if model is None:
        model = Exceptions if table[-1] == "exceptions" else Policy
    return [hyphenate(name) for name in model.model_fields]
