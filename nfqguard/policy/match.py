"""A match: what is looked for, and what is done about it. `[[policies.NAME.matches]]` in the configuration.

A match of a policy may be written in part, for it can change one that the policy inherits. So the model holds what can
be said of a key by itself, and faults() what can be said of a match once all its keys are known.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, StrictBool, StrictInt

from nfqguard.policy.criterion import ASA_SPELLING, CRITERIA, OTHERS, Criterion, Takes
from nfqguard.policy.problem import nearest
from nfqguard.policy.regex import Automaton, RegexError, compile_regex
from nfqguard.policy.section import Section
from nfqguard.policy.text import OneOrMore, Reply, Words

Action = Literal[
    "log", "allow", "mask", "replace", "remove", "drop-connection", "reset", "reject", "rate-limit", "none",
]
ACTIONS: tuple[Action, ...] = get_args(Action)

DEEDS: dict[Action, str] = {
    "log": "It is told, and nothing else.",
    "allow": "Nothing is done, and no later match is asked about the same thing.",
    "mask": "The line becomes X, its line end stays; the server refuses it. In an EHLO reply, code and separator stay.",
    "replace": "The octets that matched become blanks. Where a command ends in a bare LF behind a blank, the blank "
               "becomes CR.",
    "remove": "The line of the EHLO reply is taken out where it is at hand whole, else it becomes X. Changes the "
              "connection's length.",
    "drop-connection": "This packet and all that follow are dropped, silently.",
    "reset": "Both ends are reset.",
    "reject": "The client reads a reply, then the connection is closed; the server is reset.",
    "rate-limit": "As `log` up to `rate` matches a second, as `reject` beyond.",
    "none": "An inherited match is switched off.",
}
"""What becomes of what matched."""

REFUSING = ("reject", "rate-limit")
"""The actions behind which a client reads a reply."""

TOLD_AFTERWARDS = {"truncated command", "silent server"}
"""Matches that are known once the connection is over: nothing is left to be done about it."""

MAX_MATCHES = 64
MAX_REGEXES = 8
MAX_CODES = 8
"""Of a policy, of one subject in a policy, of a match: NQ_RULES, NQ_REGEXES and NQ_CODE_PAIRS in csrc/nq.h."""

CRITERION_KEYS = {
    "gt": Takes.ABOVE, "lt": Takes.BELOW, "names": Takes.WORDS, "except_names": Takes.WORDS, "regex": Takes.REGEX,
    "ignore_case": Takes.REGEX, "domains": Takes.REGEX, "codes": Takes.CODES,
}
"""Field -> the kind of match that it belongs to."""

Fault = tuple[str, str, str]
"""(key, what is wrong, remedy)"""


def _codes(codes: tuple[str, ...]) -> tuple[str, ...]:
    for code in codes:
        first, last = code_range(code)
        if first > last:
            raise ValueError(f"{code!r} ends before it begins: write the lower code first")
    if len(codes) > MAX_CODES:
        raise ValueError(f"{len(codes)} codes are more than the {MAX_CODES} that a match can hold: write ranges, such "
                         'as "550-559" or "5xx", or two matches')
    return codes


def code_range(code: str) -> tuple[int, int]:
    """First and last reply code of `421`, `45x`, `5xx` or `550-559`. Raises ValueError for anything else."""
    if re.fullmatch(r"[0-9]{3}|[0-9]{2}x|[0-9]xx", code):
        return int(code.replace("x", "0")), int(code.replace("x", "9"))
    if re.fullmatch(r"[0-9]{3}-[0-9]{3}", code):
        return int(code[:3]), int(code[4:])
    raise ValueError(f'{code!r} is no reply code: write "421", "45x", "5xx" or "550-559"')


def _domains(domains: tuple[str, ...]) -> tuple[str, ...]:
    for domain in domains:
        if not re.fullmatch(r"\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[A-Za-z0-9:.]+\]", domain):
            raise ValueError(f'{domain!r} is no domain: write "example.com", ".example.com" for all below it, or an '
                             'address such as "[192.0.2.1]"')
    return tuple(dict.fromkeys(domain.lower() for domain in domains))


class Match(Section):
    """One match of a policy. Of those that match one thing, all that log are told; the first other one decides."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,30}$")]
    """Appears in events; unique in a policy. The name of an inherited match changes that one, key by key."""
    match: str | None = None
    """What is looked at."""
    gt: Annotated[StrictInt, Field(ge=0, le=2**63 - 1)] | None = None
    """Matches above this."""
    lt: Annotated[StrictInt, Field(ge=1, le=2**63 - 1)] | None = None
    """Matches below this."""
    names: Annotated[Words, OneOrMore] = ()
    """Matches these words only."""
    except_names: Annotated[Words, OneOrMore] = ()
    """Matches all but these words."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """A regular expression; it is searched for, so write ^ and $ where the whole text is meant."""
    ignore_case: StrictBool = False
    """The regular expression takes letters in either case."""
    domains: Annotated[tuple[str, ...], AfterValidator(_domains), OneOrMore] = ()
    """The domains that are inside; `.example.com` means all below example.com."""
    codes: Annotated[tuple[str, ...], AfterValidator(_codes), OneOrMore] = ()
    """Reply codes: 421, 45x, 5xx, 550-559."""
    negate: Annotated[StrictBool, Field(alias="not")] = False
    """Acts on what does not match."""
    action: Action | None = None
    """What is done. none: an inherited match is switched off."""
    log: StrictBool = True
    """Tell it, too, where the action is another one."""
    reply: Reply = ""
    """What a refused client reads; empty: a reply that fits what is looked at."""
    rate: Annotated[StrictInt, Field(ge=1, le=2**32 - 1)] | None = None
    """Matches a second, all sessions together; what goes beyond is rejected."""
    dry_run: StrictBool = False
    """Tell what would be done, and change nothing."""

    @property
    def acts(self) -> bool:
        """Does it do more than tell?"""
        return self.action not in ("log", "allow", "none", None) and not self.dry_run

    @property
    def closes(self) -> bool:
        """May it end a session?"""
        return self.acts and self.action in ("drop-connection", "reset", "reject", "rate-limit")


def spelled(field: str) -> str:
    """The TOML spelling of a field of Match."""
    return Match.model_fields[field].alias or field


def criterion_keys(criterion: Criterion) -> list[str]:
    """The fields that belong to this kind of match."""
    if criterion.name == "mail-relay":
        return ["domains"]
    return [field for field, takes in CRITERION_KEYS.items() if takes & criterion.takes and field != "domains"]


def actions(criterion: Criterion) -> list[Action]:
    """What can be done where this kind matches, `none` left out."""
    refused: set[Action] = {"none"}
    if not criterion.takes & Takes.MASK:
        refused.add("mask")
    if not criterion.takes & Takes.OCTET:
        refused.add("replace")
    if criterion.name != "ehlo-reply-parameter":
        refused.add("remove")
    if not criterion.reply:
        refused |= {"reject", "rate-limit"}
    if criterion.name in TOLD_AFTERWARDS:
        refused |= {"drop-connection", "reset", "reject", "rate-limit"}
    return [action for action in ACTIONS if action not in refused]


@cache
def compile_pattern(pattern: str, ignore_case: bool, lines: bool) -> Automaton:
    """As compile_regex(), each pattern once. Raises RegexError."""
    return compile_regex(pattern, ignore_case=ignore_case, lines=lines)


def automaton(match: Match) -> Automaton | None:
    """What the engine runs: of `regex`, or of the recipients inside `domains`; None where there is neither. Raises
    RegexError."""
    if match.domains:
        return compile_pattern(_inside(match.domains), True, False)
    if match.regex is None:
        return None
    return compile_pattern(match.regex, match.ignore_case, match.match in ("header regex", "body regex"))


def _inside(domains: tuple[str, ...]) -> str:
    """A pattern of the addresses inside: without a domain, or with one of these behind the last `@`.

    A source route (`@a,@b:user@domain`, RFC 5321, appendix C) ends in the domain that counts, too; `user%far@near` is
    the server's to refuse."""
    listed = "|".join(("[^@]*" if domain.startswith(".") else "") + re.escape(domain) for domain in domains)
    return rf"^[^@]*$|@({listed})\.?$"


def faults(match: Match) -> Iterator[Fault]:
    """What is wrong with a match once all that it inherits is filled in."""
    if match.action == "none":
        return
    if match.match is None:
        yield "match", "it is not said what is looked at", 'write match = "..."; docs/inspection.md lists all'
    elif match.match not in CRITERIA:
        yield "match", f"{match.match!r} is nothing that can be matched", nearest(match.match, CRITERIA)
    else:
        criterion = CRITERIA[match.match]
        yield from _wrong_keys(match, criterion)
        yield from _missing_keys(match, criterion)
        yield from _wrong_words(match, criterion)
        yield from _wrong_action(match, criterion)
        yield from _wrong_regex(match)
    if match.action is None:
        yield "action", "it is not said what is done", "write action = " + _listed(ACTIONS)
    yield from _wrong_details(match)


def _listed(words: tuple[str, ...] | list[str] | list[Action] | tuple[Action, ...]) -> str:
    quoted = [f'"{word}"' for word in words]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def _wrong_keys(match: Match, criterion: Criterion) -> Iterator[Fault]:
    allowed = criterion_keys(criterion)
    for field in CRITERION_KEYS:
        if field in match.model_fields_set and field not in allowed:
            others = [spelled(key) for key in allowed]
            yield (spelled(field), f"a match of {criterion.name} has no such key",
                   f"take it out; it has {', '.join(others)}" if others else "take it out")


def _missing_keys(match: Match, criterion: Criterion) -> Iterator[Fault]:
    takes = criterion.takes
    if takes & Takes.ABOVE and match.gt is None:
        yield "gt", f"{criterion.name} is compared with nothing", "write gt = NUMBER"
    if takes & Takes.BELOW and match.lt is None:
        yield "lt", f"{criterion.name} is compared with nothing", "write lt = NUMBER"
    if takes & Takes.CODES and not match.codes:
        yield "codes", "no reply code is named", 'write codes = ["421", "55x"]'
    if criterion.needs_words and not match.names and not match.except_names:
        yield "names", f"a match of {criterion.name} without names says nothing", "write names or except-names"
    if criterion.name == "mail-relay" and not match.domains:
        yield "domains", "no domain is inside", 'write domains = ["example.com"]'
    elif takes & Takes.REGEX and criterion.name != "mail-relay" and match.regex is None:
        yield "regex", "there is no regular expression", "write regex = '...'"


def _wrong_words(match: Match, criterion: Criterion) -> Iterator[Fault]:
    if match.names and match.except_names:
        yield "except-names", "names and except-names contradict each other", "keep one of them"
    if OTHERS in match.except_names and criterion.name == "ehlo-reply-parameter":
        yield "except-names", '"others" cannot be excepted', "write what is to match to names instead"
    if not criterion.words:
        return
    for field in ("names", "except_names"):
        for word in getattr(match, field):
            if word not in criterion.words and word != OTHERS:
                yield spelled(field), f"{criterion.name} knows no {word!r}", nearest(word, criterion.words)


def _wrong_action(match: Match, criterion: Criterion) -> Iterator[Fault]:
    possible = actions(criterion)
    if match.action is not None and match.action not in possible:
        yield ("action", f'"{match.action}" cannot be done for {criterion.name}', f"write {_listed(possible)}")


def _wrong_regex(match: Match) -> Iterator[Fault]:
    try:
        automaton(match)
    except RegexError as error:
        key = "domains" if match.domains else "regex"
        yield key, str(error), "correct it; docs/inspection.md says what a regular expression may hold"


def _wrong_details(match: Match) -> Iterator[Fault]:
    if match.action == "rate-limit" and match.rate is None:
        yield "rate", "it is not said how many may pass", "write rate = MATCHES A SECOND"
    if match.action not in (None, "rate-limit") and match.rate is not None:
        yield "rate", f'the action "{match.action}" has no rate', 'take it out, or write action = "rate-limit"'
    if match.action not in (None, *REFUSING) and match.reply:
        yield "reply", f'behind the action "{match.action}" no reply is sent', 'take it out, or write action = "reject"'
    if match.action == "log" and not match.log:
        yield "log", "a match that only tells and does not tell does nothing", 'take it out, or write action = "none"'


def canonical(word: str) -> str:
    """The keyword that a word of `ehlo-reply-parameter` means: ASA spells some in its own way."""
    return ASA_SPELLING.get(word, word)
