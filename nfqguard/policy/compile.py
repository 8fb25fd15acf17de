"""A policy as flat tables: what the engine compiles, free of TOML, inheritance and pydantic."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from nfqguard.policy.criterion import ASA_KEYWORDS, CRITERIA, OTHERS
from nfqguard.policy.match import REFUSING, Action, Match, automaton, canonical, code_range
from nfqguard.policy.model import Policy
from nfqguard.policy.regex import Automaton
from nfqguard.policy.traffic_class import Address, Network, TrafficClass


@dataclass(frozen=True)
class RuleSpec:
    """A match for the engine; mirrors struct nq_rule_spec in csrc/engine.h.

    name          at most 31 octets; appears in events
    match         a name of csrc/matches.def
    action        what is done; never "none"
    negate        acts on what does not match
    log           tell it
    dry_run       tell what would be done, and change nothing
    rate          matches a second, for "rate-limit"
    bound         the threshold of kinds that compare
    words         upper case; none: any
    except_words  all but these words
    codes         first and last reply code of each range
    regex         the automaton of kinds that try one
    reply         what a refused client reads; empty where the action refuses nobody
    """

    name: str
    match: str
    action: Action
    negate: bool = False
    log: bool = True
    dry_run: bool = False
    rate: int = 0
    bound: int = 0
    words: tuple[str, ...] = ()
    except_words: bool = False
    codes: tuple[tuple[int, int], ...] = ()
    regex: Automaton | None = field(default=None, hash=False)
    reply: str = ""


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
    timeout        seconds of silence after which a flow is forgotten; 0: the engine's
    alert          edits and matches are told
    audit_trail    the beginning of a session is told, too
    dry_run        tell what would be done, and change nothing
    offload        once TLS has begun the kernel may take the flow over
    rules          in order
    exceptions     midstream, gap, memory, unparsable, truncated -> drop, reset, pass
    """

    name: str
    verbs: tuple[str, ...]
    keywords: tuple[str, ...]
    mask_verbs: bool
    mask_keywords: bool
    banner: Literal["pass", "asa", "text", "modern"]
    max_data: int
    exceptions: dict[str, str] = field(hash=False)
    remove_keywords: bool = False
    banner_text: str = ""
    insert_header: str = ""
    refusal: str = ""
    timeout: int = 0
    alert: bool = True
    audit_trail: bool = False
    dry_run: bool = False
    offload: bool = False
    rules: tuple[RuleSpec, ...] = ()

    @property
    def changes_length(self) -> bool:
        """Can an edit change how many octets a stream has?"""
        removes = any(rule.action == "remove" and not rule.dry_run for rule in self.rules)
        return not self.dry_run and (self.remove_keywords or self.banner == "text" or bool(self.insert_header) or
                                     removes)


@dataclass(frozen=True)
class ClassSpec:
    """A traffic class for the engine. Every criterion has to fit; of a list, one entry; an empty list fits all.

    clients, servers               networks
    ports                          of the server
    in_interfaces, out_interfaces  names, of the client's packets
    direction                      "inbound": the server is inside and the client is not; "outbound": the other way
    inside                         the networks that `direction` means; empty where it means none
    policy                         name; None: these connections are not inspected
    """

    name: str
    clients: tuple[Address, ...] = ()
    servers: tuple[Address, ...] = ()
    ports: tuple[int, ...] = ()
    in_interfaces: tuple[str, ...] = ()
    out_interfaces: tuple[str, ...] = ()
    direction: Literal["inbound", "outbound"] | None = None
    inside: tuple[Address, ...] = ()
    policy: str | None = None


def compile_classes(classes: Iterable[TrafficClass], network: Network) -> tuple[ClassSpec, ...]:
    """Flatten the classes of a Configuration, in order: the first one that fits a connection decides."""
    return tuple(ClassSpec(one.name, one.clients, one.servers, one.ports, one.in_interfaces, one.out_interfaces,
                           one.direction, network.inside if one.direction else (), one.policy) for one in classes)


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
        timeout=policy.timeout,
        alert=policy.alert,
        audit_trail=policy.audit_trail,
        dry_run=policy.dry_run,
        offload=policy.offload_tls,
        rules=tuple(_rule(match, policy) for match in policy.matches if match.action != "none"),
    )


def _rule(match: Match, policy: Policy) -> RuleSpec:
    assert match.match is not None and match.action is not None     # faults() saw to it
    criterion = CRITERIA[match.match]
    words, except_words = _words(match, policy)
    return RuleSpec(
        name=match.name,
        match=match.match,
        action=match.action,
        negate=match.negate != (match.match == "mail-relay"),   # its automaton is of what is inside
        log=match.log,
        dry_run=match.dry_run,
        rate=match.rate or 0,
        bound=next((bound for bound in (match.gt, match.lt) if bound is not None), 0),
        words=words,
        except_words=except_words,
        codes=tuple(code_range(code) for code in match.codes),
        regex=automaton(match),
        reply=(match.reply or criterion.reply) if match.action in REFUSING else "",
    )


def _words(match: Match, policy: Policy) -> tuple[tuple[str, ...], bool]:
    """The words, and whether they are exceptions. For ehlo-reply-parameter, ASA's `others` is all but ehlo-keywords
    (where the policy has none: all but those that ASA names); a keyword that is named beside it matches, too."""
    words, excepted = match.names or match.except_names, bool(match.except_names)
    if match.match != "ehlo-reply-parameter":
        return words, excepted
    words = tuple(dict.fromkeys(canonical(word) for word in words))
    if OTHERS not in words:
        return words, excepted
    return tuple(word for word in policy.ehlo_keywords or ASA_KEYWORDS if word not in words), True
