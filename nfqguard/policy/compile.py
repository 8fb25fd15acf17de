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
    remove_keywords  with mask_keywords: their lines are taken out instead
    banner         what becomes of the greeting
    banner_text    what it says instead, where banner is "text"
    insert_header  a header line put before each message; empty: none
    refusal        the reply that a refused client reads; empty: both ends are reset
    max_data       octets of message data in one session; 0: no limit
    exceptions     midstream, gap, memory, unparsable, truncated -> drop, reset, pass
    """

    name: str
    verbs: tuple[str, ...]
    keywords: tuple[str, ...]
    mask_verbs: bool
    mask_keywords: bool
    banner: Literal["pass", "asa", "text"]
    max_data: int
    exceptions: dict[str, str] = field(hash=False)
    remove_keywords: bool = False
    banner_text: str = ""
    insert_header: str = ""
    refusal: str = ""

    @property
    def changes_length(self) -> bool:
        """Can an edit change how many octets a stream has?"""
        return self.remove_keywords or self.banner == "text" or bool(self.insert_header)


def compile_policy(name: str, policy: Policy) -> PolicySpec:
    """Flatten a policy of a Configuration (all inheritance filled in)."""
    return PolicySpec(
        name=name,
        verbs=policy.verbs,
        keywords=policy.ehlo_keywords,
        mask_verbs=policy.mask_verbs,
        mask_keywords=policy.mask_ehlo,
        banner="pass" if policy.mask_banner == "none" else policy.mask_banner,
        max_data=policy.max_data,
        exceptions=dict(policy.exceptions),
        remove_keywords=policy.remove_ehlo,
        banner_text=policy.banner_text,
        insert_header=policy.insert_header,
        refusal=policy.refusal,
    )
