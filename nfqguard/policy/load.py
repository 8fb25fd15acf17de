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

from nfqguard.policy.caution import Caution, deployment_cautions, policy_cautions
from nfqguard.policy.check import mistakes
from nfqguard.policy.inherit import Family, Node
from nfqguard.policy.model import Deployment, Document, Engine, Events, Policy
from nfqguard.policy.problem import ConfigError, Problem, nearest
from nfqguard.policy.source import Source, preset_names, preset_text, read_files, read_preset

__all__ = [
    "DEFAULT_FILE", "ConfigError", "Configuration", "Problem", "load", "load_preset", "preset_names", "preset_text",
]

DEFAULT_FILE = Path("/etc/nfqguard/nfqguard.toml")


@dataclass(frozen=True)
class Configuration:
    """A configuration that can be used.

    policy    the name of the policy in force
    policies  the configuration's own policies and the one in force, by name, all that they inherit filled in
    warnings  what is allowed but will surprise
    files     what was read, in order
    """

    policy: str
    policies: Mapping[str, Policy]
    deployment: Deployment
    engine: Engine
    events: Events
    warnings: tuple[Problem, ...]
    files: tuple[str, ...]

    @property
    def policy_in_force(self) -> Policy:
        """The policy that the engine starts with."""
        return self.policies[self.policy]


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
    node = family.find(name) if isinstance(name, str) else None
    if node is None and isinstance(name, str):
        family.problems.append(Problem(source.origin(("policy",)), "policy", f"there is no policy or preset '{name}'",
                                       nearest(name, {*family.own_names(), *preset_names()})))
    elif node is not None and node[0]:
        policies[name] = family.resolve(node)
    problems += family.problems
    usable = {known: policy for known, policy in policies.items() if policy is not None}
    warnings = [*_unchosen(source, family, node), *_surprises(source, family, usable)] if source.data else []
    if problems:
        raise ConfigError(problems, warnings)
    document = Document.model_validate(source.data)
    return Configuration(name, usable, document.deployment, document.engine, document.events, tuple(warnings),
                         tuple(source.read))


def _unchosen(source: Source, family: Family, node: Node | None) -> Iterator[Problem]:
    own = family.own_names()
    if "policy" not in source.data and own and node is not None:
        preset, name = node
        yield Problem(source.name, "policy", f"policies are defined, but none is chosen, so the "
                      f"{'preset' if preset else 'policy'} '{name}' is in force",
                      "write " + " or ".join(f'policy = "{known}"' for known in own))


def _surprises(source: Source, family: Family, policies: Mapping[str, Policy]) -> Iterator[Problem]:
    for known, policy in policies.items():
        file = None if known in family.own_names() else f"preset {known}"
        yield from _placed(source, ("policies", known), policy_cautions(policy), file)
    with suppress(ValidationError):     # its mistakes have been reported
        deployment = Deployment.model_validate(source.data.get("deployment", {}))
        yield from _placed(source, ("deployment",), deployment_cautions(deployment), None)


def _placed(source: Source, table: tuple[str, ...], cautions: Iterable[Caution], file: str | None) -> Iterator[Problem]:
    for below, text, remedy in cautions:
        path = (*table, *below)
        yield Problem(file or source.origin(path), ".".join(path), text, remedy)
