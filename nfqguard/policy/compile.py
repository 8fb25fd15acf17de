"""A policy as flat tables: what the engine compiles, free of TOML, inheritance and pydantic."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nfqguard.policy.model import Policy


@dataclass(frozen=True)
class PolicySpec:
    """A policy for the engine; mirrors struct nq_policy_spec in csrc/engine.h.

    name           at most 31 octets; appears in events
    verbs          upper case; what a client may say
    keywords       upper case; what a server may offer in its EHLO reply
    mask_verbs     other verbs become X
    mask_keywords  other keywords become X
    banner         what becomes of the greeting
    max_data       octets of message data in one session; 0: no limit
    exceptions     midstream, gap, memory, unparsable, truncated -> drop, reset, pass
    """

    name: str
    verbs: tuple[str, ...]
    keywords: tuple[str, ...]
    mask_verbs: bool
    mask_keywords: bool
    banner: Literal["pass", "asa"]
    max_data: int
    exceptions: dict[str, str] = field(hash=False)


def compile_policy(name: str, policy: Policy) -> PolicySpec:
    """Flatten a policy of a Configuration (all inheritance filled in)."""
    return PolicySpec(
        name=name,
        verbs=policy.verbs,
        keywords=policy.ehlo_keywords,
        mask_verbs=policy.mask_verbs,
        mask_keywords=policy.mask_ehlo,
        banner="asa" if policy.mask_banner == "asa" else "pass",
        max_data=policy.max_data,
        exceptions=dict(policy.exceptions),
    )
