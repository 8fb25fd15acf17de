"""From files to a configuration: every mistake at once, or all that the daemon needs.

    load(path)          the operator's file and conf.d beside it
    load_preset(name)   a shipped preset with the defaults for all else
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from nfqguard.policy.caution import Caution, class_cautions, deployment_cautions, policy_cautions
from nfqguard.policy.check import mistakes
from nfqguard.policy.inherit import Family, Node
from nfqguard.policy.model import Deployment, Document, Engine, Events, Network, Policy
from nfqguard.policy.problem import ConfigError, Problem, dotted, nearest
from nfqguard.policy.source import Source, preset_names, preset_text, read_files, read_preset
from nfqguard.policy.traffic_class import Placed, TrafficClass, covered, faults, same_connections

__all__ = [
    "DEFAULT_FILE", "ConfigError", "Configuration", "Problem", "load", "load_preset", "preset_names", "preset_text",
]

KeyPath = tuple[str | int, ...]

DEFAULT_FILE = Path("/etc/nfqguard/nfqguard.toml")


@dataclass(frozen=True)
class Configuration:
    """A configuration that can be used.

    policy    the name of the policy in force
    policies  the configuration's own policies, the one in force and those of classes, by name, all that they inherit
              filled in
    classes   the first one that fits a connection decides; where none fits, the policy in force
    warnings  what is allowed but will surprise
    files     what was read, in order
    """

    policy: str
    policies: Mapping[str, Policy]
    deployment: Deployment
    engine: Engine
    events: Events
    network: Network
    classes: tuple[TrafficClass, ...]
    warnings: tuple[Problem, ...]
    files: tuple[str, ...]

    @property
    def policy_in_force(self) -> Policy:
        """The policy of connections that fit no class."""
        return self.policies[self.policy]

    @property
    def policies_in_use(self) -> Mapping[str, Policy]:
        """The policy in force and those of classes, by name."""
        names = [self.policy, *(one.policy for one in self.classes if one.policy is not None)]
        return {name: self.policies[name] for name in names}


def default_policy() -> str:
    """The policy in force where the configuration names none."""
    return "modern" if "modern" in preset_names() else "ios-esmtp"


def load(path: Path | str) -> Configuration:
    """Read FILE and `conf.d/*.toml` beside it. Raises ConfigError with every mistake."""
    return _build(read_files(Path(path)))


def load_preset(name: str) -> Configuration:
    """A shipped preset as the whole configuration. Raises ConfigError where there is none of that name."""
    if name not in preset_names():
        raise ConfigError([Problem(f"preset {name}", "", "there is no such preset", nearest(name, preset_names()))])
    return _build(read_preset(name))


def _build(source: Source) -> Configuration:
    problems = [*source.problems, *mistakes(source)]
    family = Family(source)
    policies = {name: family.resolve((False, name)) for name in family.own_names()}
    name = source.data.get("policy", default_policy())
    node = _choose(family, policies, name, ("policy",))
    classes = _sound_classes(source)
    for place, one in classes:
        _choose(family, policies, one.policy, ("classes", place, "policy"))
    problems += [*family.problems, *_misplaced(source, classes)]
    usable = {known: policy for known, policy in policies.items() if policy is not None}
    problems += _contradictions(source, classes, usable)
    warnings = [*_unchosen(source, family, node), *_surprises(source, family, usable, classes)] if source.read else []
    if problems:
        raise ConfigError(problems, warnings)
    document = Document.model_validate(source.data)
    return Configuration(name, usable, document.deployment, document.engine, document.events, document.network,
                         document.classes, tuple(warnings), tuple(source.read))


def _choose(family: Family, policies: dict[str, Policy | None], name: object, path: KeyPath) -> Node | None:
    """The policy that the key at `path` names; a preset joins `policies`. What is no text has been reported."""
    if not isinstance(name, str):
        return None
    node = family.find(name)
    if node is None:
        known = {*family.own_names(), *preset_names()}
        family.problems.append(Problem(family.source.origin(path), dotted(path),
                                       f"there is no policy or preset '{name}'", nearest(name, known)))
    elif node[0] and name not in policies:
        policies[name] = family.resolve(node)
    return node


def _sound_classes(source: Source) -> Placed:
    """The classes that the model has found nothing wrong with."""
    listed = source.data.get("classes", [])
    found = []
    for place, entry in enumerate(listed if isinstance(listed, list) else []):
        with suppress(ValidationError):
            found.append((place, TrafficClass.model_validate(entry, by_alias=True, by_name=False)))
    return found


def _misplaced(source: Source, classes: Placed) -> Iterator[Problem]:
    with suppress(ValidationError):     # its mistakes have been reported
        network = Network.model_validate(source.data.get("network", {}))
        for place, key, text, remedy in faults(classes, network):
            path = ("classes", place, key)
            yield Problem(source.origin(path), dotted(path), text, remedy)


def _contradictions(source: Source, classes: Placed, policies: Mapping[str, Policy]) -> Iterator[Problem]:
    """IOS's error for one interface, for one class: the same connections, and both inspections."""
    judged = [(place, one, policies[one.policy]) for place, one in classes if one.policy and one.policy in policies]
    for index, (place, later, policy) in enumerate(judged):
        for _, earlier, other in judged[:index]:
            if policy.inspect != other.inspect and same_connections(earlier, later):
                path = ("classes", place, "policy")
                yield Problem(source.origin(path), dotted(path), "SMTP and ESMTP inspection cannot be asked for at "
                              f"once: class '{earlier.name}' asks for {other.inspect[0]}, and '{later.name}' for "
                              f"{policy.inspect[0]}, of the same connections", "keep one of them")


def _unchosen(source: Source, family: Family, node: Node | None) -> Iterator[Problem]:
    own = family.own_names()
    if "policy" not in source.data and own and node is not None:
        preset, name = node
        yield Problem(source.name, "policy", f"policies are defined, but none is chosen, so the "
                      f"{'preset' if preset else 'policy'} '{name}' is in force",
                      "write " + " or ".join(f'policy = "{known}"' for known in own))


def _surprises(source: Source, family: Family, policies: Mapping[str, Policy], classes: Placed) -> Iterator[Problem]:
    for known, policy in policies.items():
        file = None if known in family.own_names() else f"preset {known}"
        yield from _placed(source, ("policies", known), policy_cautions(policy), file)
    for place, earlier in covered(classes):
        path = ("classes", place)
        yield Problem(source.origin(path), dotted(path), f"no connection ever belongs to this class: the class "
                      f"'{earlier.name}' before it takes all of them", "put it first, or take it out")
    with suppress(ValidationError):     # its mistakes have been reported
        deployment = Deployment.model_validate(source.data.get("deployment", {}))
        yield from _placed(source, ("deployment",), deployment_cautions(deployment), None)
        network = Network.model_validate(source.data.get("network", {}))
        yield from _placed(source, ("classes",), class_cautions(classes, deployment, network), None)


def _placed(source: Source, table: tuple[str, ...], cautions: Iterable[Caution], file: str | None) -> Iterator[Problem]:
    for below, text, remedy in cautions:
        path = (*table, *below)
        yield Problem(file or source.origin(path), dotted(path), text, remedy)
