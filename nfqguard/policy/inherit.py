"""Policies that extend others: references, cycles, and each policy with all that it inherits filled in.

A name means the policy of the configuration, else the preset; inside a policy that bears a preset's name, that name
means the preset, so that a preset can be changed under its own name.
"""
from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from nfqguard.policy import overlay
from nfqguard.policy.match import Match, faults
from nfqguard.policy.model import Kind, Policy
from nfqguard.policy.problem import Problem, dotted, nearest
from nfqguard.policy.room import excesses
from nfqguard.policy.source import Source, preset_names, read_preset

Node = tuple[bool, str]
"""(is a preset, name)"""


@dataclass(frozen=True)
class Heritage:
    """What a policy and all that it extends have written: keys, and who asked for which inspection.

    It is incomplete where a part of it could not be had, which has been reported.
    """

    keys: dict[str, Any]
    kinds: dict[Kind, str]
    complete: bool


@dataclass
class Family:
    """The policies of a configuration and the presets, and how they depend on each other."""

    source: Source
    problems: list[Problem] = field(default_factory=list)
    _known: dict[Node, Heritage | None] = field(default_factory=dict)

    def own_names(self) -> list[str]:
        """The policies that the configuration itself defines."""
        tables = self.source.data.get("policies", {})
        return [name for name, table in tables.items() if isinstance(table, dict)] if isinstance(tables, dict) else []

    def find(self, name: str, inside: Node | None = None) -> Node | None:
        """Which policy `name` means, said inside the policy `inside`; None where there is none."""
        if name in self.own_names() and inside != (False, name) and not (inside and inside[0]):
            return (False, name)
        return (True, name) if name in preset_names() else None

    def resolve(self, node: Node) -> Policy | None:
        """The policy with all that it inherits; None, and problems, where it cannot be had."""
        heritage = self._heritage(node, ())
        if heritage is None:
            return None
        _, name = node
        before = len(self.problems)
        if len(heritage.kinds) > 1:
            asked = " and ".join(f"{kind} by {who}" for kind, who in sorted(heritage.kinds.items()))
            self._problem(node, (), f"SMTP and ESMTP inspection cannot be asked for at once: policy '{name}' asks for "
                          f"{asked}", "keep one of them")
        if not heritage.complete:
            return None
        if not heritage.kinds:
            self._problem(node, (), f"policy '{name}' neither inspects nor extends anything",
                          'write inspect = "smtp" or "esmtp", or extends = "ios-esmtp"')
        policy = Policy.model_validate({**heritage.keys, "inspect": tuple(heritage.kinds)})
        self._check_words(node, policy)
        return policy if len(self.problems) == before else None

    def _check_words(self, node: Node, policy: Policy) -> None:
        if policy.mask_verbs and not policy.verbs and policy.inspect:
            self._problem(node, ("verbs",), "no verb is allowed, so every command would become X",
                          "name the verbs, or write mask-verbs = false")
        if policy.inspect == ("smtp",) and policy.mask_verbs and "EHLO" in policy.verbs:
            self._problem(node, ("verbs",), "SMTP and ESMTP inspection cannot be asked for at once: inspect is smtp, "
                          "but EHLO, which opens ESMTP, is among the verbs",
                          'write inspect = "esmtp" or take EHLO out')
        for key, text, remedy in excesses(policy):
            self._problem(node, (key,), text, remedy)

    def _heritage(self, node: Node, above: tuple[Node, ...]) -> Heritage | None:
        if node in above:
            circle = [name for _, name in (*above[above.index(node):], node)]
            self._problem(node, ("extends",), "policies extend each other in a circle: " + " -> ".join(circle),
                          "let one of them extend nothing, or a preset")
            return None
        if node not in self._known:
            self._known[node] = self._gather(node, above)
        return self._known[node]

    def _gather(self, node: Node, above: tuple[Node, ...]) -> Heritage | None:
        table = self._table(node)
        ancestors = [self._follow(name, node, above) for name in _names(table.get("extends"))]
        inherited = all(ancestor is not None and ancestor.complete for ancestor in ancestors)
        keys: dict[str, Any] = {}
        kinds: dict[Kind, str] = {}
        for ancestor in filter(None, ancestors):
            keys = overlay.policy(keys, ancestor.keys)
            kinds.update(ancestor.kinds)
        own, sound = _sound(table)
        kinds.update(dict.fromkeys(own.inspect, f"'{node[1]}'"))
        written = own.model_dump(exclude_unset=True, exclude={"extends", "inspect"})
        before = len(self.problems)
        matches = self._matches(node, keys.get("matches", []), table, inherited)
        keys = {**overlay.policy(keys, written), "matches": matches}
        return Heritage(keys, kinds, sound and inherited and len(self.problems) == before)

    def _matches(self, node: Node, inherited: list[Any], table: dict[str, Any], complete: bool) -> list[dict[str, Any]]:
        """The matches that the policy inherits, and its own ones laid over them; what is wrong with the outcome becomes
        a problem. Where not all that is inherited is known, matches that seem to change an inherited one are left
        unjudged."""
        own = _sound_matches(table)
        merged = overlay.matches(inherited, [match for _, match in own])
        known = {match["name"]: match for match in inherited}
        seen: set[str] = set()
        for place, match in own:
            name = match["name"]
            if name in seen:
                self._match_problem(node, place, "name", f"there is a match '{name}' already",
                                    "give each a name of its own")
            elif name not in known and "match" not in match:
                if complete:
                    self._orphan(node, place, match, known)
            else:
                outcome = overlay.match(known.get(name, {}), match)
                for key, text, remedy in faults(Match.model_validate(outcome)):
                    self._match_problem(node, place, key, text, remedy)
            seen.add(name)
        self._mixed(node, [match for match in merged if match["name"] not in seen and complete])
        return merged

    def _orphan(self, node: Node, place: int, match: dict[str, Any], known: Collection[str]) -> None:
        """A match that can only mean an inherited one, and none has its name."""
        remedy = nearest(match["name"], known) if known else "the policy inherits none"
        if match.get("action") != "none":
            remedy = f'write match = "..." to say what is looked at, or the name of an inherited one: {remedy}'
        self._match_problem(node, place, "name", f"no match '{match['name']}' is inherited", remedy)

    def _mixed(self, node: Node, inherited: list[dict[str, Any]]) -> None:
        """Two policies that are extended may each say a part of one match that does not fit the other."""
        for match in inherited:
            for key, text, remedy in faults(Match.model_validate(match)):
                self._problem(node, ("extends",), f"match '{match['name']}', put together of what several policies "
                              f"say: {key}: {text}", remedy)

    def _match_problem(self, node: Node, place: int, key: str, text: str, remedy: str) -> None:
        self._problem(node, ("matches", place, key), text, remedy)

    def _follow(self, name: str, node: Node, above: tuple[Node, ...]) -> Heritage | None:
        target = self.find(name, node)
        if target is None and name == node[1]:
            self._problem(node, ("extends",), f"policy '{name}' extends itself", "take its own name out of extends")
            return None
        if target is None:
            known = {*self.own_names(), *preset_names()} - {node[1]}
            self._problem(node, ("extends",), f"there is no policy or preset '{name}'", nearest(name, known))
            return None
        return self._heritage(target, (*above, node))

    def _table(self, node: Node) -> dict[str, Any]:
        preset, name = node
        data = read_preset(name).data if preset else self.source.data
        table: dict[str, Any] = data["policies"][name]
        return table

    def _problem(self, node: Node, below: tuple[str | int, ...], text: str, remedy: str) -> None:
        preset, name = node
        path = ("policies", name, *below)
        file = f"preset {name}" if preset else self.source.origin(path)
        self.problems.append(Problem(file, dotted(path), text, remedy))


def _names(extends: object) -> list[str]:
    """The names in `extends` as written; anything else there has been reported by the model."""
    listed = extends if isinstance(extends, list) else [extends]
    return [name for name in listed if isinstance(name, str)]


def _sound(table: dict[str, Any]) -> tuple[Policy, bool]:
    """The table's policy without matches and without the keys that are wrong, which the model has reported; and whether
    nothing is wrong."""
    try:
        sound = Policy.model_validate(table, by_alias=True, by_name=False)
        return sound.model_copy(update={"matches": ()}), True
    except ValidationError as error:
        wrong = {detail["loc"][0] for detail in error.errors()} | {"matches"}
    return Policy.model_validate({key: value for key, value in table.items() if key not in wrong}), False


def _sound_matches(table: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """(place, what is written) of each match of the table that the model has found nothing wrong with."""
    listed = table.get("matches", [])
    found = []
    for place, entry in enumerate(listed if isinstance(listed, list) else []):
        with suppress(ValidationError):
            match = Match.model_validate(entry, by_alias=True, by_name=False)
            found.append((place, match.model_dump(exclude_unset=True)))
    return found
