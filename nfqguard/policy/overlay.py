"""What a policy writes, laid over what it inherits. Both are tables of the keys that somebody wrote, by field name."""
from __future__ import annotations

from typing import Any

from nfqguard.policy.criterion import CRITERIA
from nfqguard.policy.match import CRITERION_KEYS, REFUSING, criterion_keys

Table = dict[str, Any]

REPLACES = {"names": "except_names", "except_names": "names"}
"""A key -> the key of an inherited match that it stands instead of."""


def policy(inherited: Table, written: Table) -> Table:
    """What is written wins; exceptions are merged key by key, matches by name, other lists are replaced whole."""
    merged = {**inherited, **written}
    if "exceptions" in inherited and "exceptions" in written:
        merged["exceptions"] = {**inherited["exceptions"], **written["exceptions"]}
    merged["matches"] = matches(list(inherited.get("matches", ())), list(written.get("matches", ())))
    return merged


def matches(inherited: list[Table], written: list[Table]) -> list[Table]:
    """One with the name of an inherited one changes it where it stands; new ones come before the inherited ones."""
    own = {one["name"]: one for one in written}
    known = {one["name"] for one in inherited}
    changed = [match(one, own[one["name"]]) if one["name"] in own else one for one in inherited]
    return [one for one in written if one["name"] not in known] + changed


def match(inherited: Table, written: Table) -> Table:
    """Key by key. What an inherited match says of its former kind or of its former action does not outlive them."""
    kept = {key: value for key, value in inherited.items() if REPLACES.get(key) not in written}
    merged = {**kept, **written}
    criterion = CRITERIA.get(merged.get("match", ""))
    if criterion is not None and written.get("match") not in (None, inherited.get("match")):
        belong = criterion_keys(criterion)
        merged = {key: value for key, value in merged.items()
                  if key in written or key not in CRITERION_KEYS or key in belong}
    return {key: value for key, value in merged.items() if key in written or _outlives(key, merged.get("action"))}


def _outlives(key: str, action: object) -> bool:
    """Does an inherited key mean something with this action?"""
    if action in (None, "none"):
        return True     # a later policy may switch the match on again
    if key == "reply":
        return action in REFUSING
    if key == "rate":
        return action == "rate-limit"
    return key != "log" or action != "log"
