"""Policies that extend others: references, cycles, and each policy with all that it inherits filled in.

A name means the policy of the configuration, else the preset; inside a policy that bears a preset's name, that name
means the preset, so that a preset can be changed under its own name.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from nfqguard.policy.model import Kind, Policy
from nfqguard.policy.problem import Problem, nearest
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

        if policy.mask_verbs and "BDAT" in policy.verbs:
            self._problem(node, ("verbs",), "BDAT cannot be allowed: the octets behind it are not counted and would be "
                          "masked as commands", "take BDAT out, and mask CHUNKING")

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
        try:
            own = Policy.model_validate(table, by_alias=True, by_name=False)
        except ValidationError:
            return None     # already reported with its place
        keys: dict[str, Any] = {}
        kinds: dict[Kind, str] = {}
        for ancestor in filter(None, ancestors):
            keys = _override(keys, ancestor.keys)
            kinds.update(ancestor.kinds)
        written = own.model_dump(exclude_unset=True, exclude={"extends", "inspect"})
        kinds.update(dict.fromkeys(own.inspect, f"'{node[1]}'"))
        complete = all(ancestor is not None and ancestor.complete for ancestor in ancestors)
        return Heritage(_override(keys, written), kinds, complete)

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

    def _problem(self, node: Node, below: tuple[str, ...], text: str, remedy: str) -> None:
        preset, name = node
        path = ("policies", name, *below)
        file = f"preset {name}" if preset else self.source.origin(path)
        self.problems.append(Problem(file, ".".join(path), text, remedy))


def _names(extends: object) -> list[str]:
    """The names in `extends` as written; anything else there has been reported by the model."""
    listed = extends if isinstance(extends, list) else [extends]
    return [name for name in listed if isinstance(name, str)]


def _override(keys: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Later keys win; the table of exceptions is merged, lists are replaced whole."""
    merged = {**keys, **later}
    if "exceptions" in keys and "exceptions" in later:
        merged["exceptions"] = {**keys["exceptions"], **later["exceptions"]}
    return merged
