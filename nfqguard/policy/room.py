"""What fits into the engine of one policy: its tables are of a fixed size (csrc/nq.h, csrc/policy.c)."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nfqguard.policy.match import MAX_MATCHES, MAX_REGEXES, automaton
from nfqguard.policy.model import Policy
from nfqguard.policy.text import too_many

WORDS_OF = {
    "cmd verb": "verbs", "cmd line length": "verbs", "pipelined command": "verbs",
    "ehlo-reply-parameter": "ehlo-keywords", "not offered": "ehlo-keywords",
    "auth mechanism": "matches",
}
"""Kind of match -> the key whose words share a table with its names."""

SUBJECT_OF = {"mail-relay": "recipient-address regex"}
"""Kind of match -> the kind whose regular expressions are tried on the same text; itself where it is not named."""


def excesses(policy: Policy) -> Iterator[tuple[str, str, str]]:
    """(key, what is too much, remedy)"""
    active = [match for match in policy.matches if match.action != "none"]
    if len(active) > MAX_MATCHES:
        yield ("matches", f"{len(active)} matches, with those inherited, are more than the {MAX_MATCHES} that a policy "
               "can have", 'take some out, or switch inherited ones off with action = "none"')
    subjects = Counter(SUBJECT_OF.get(match.match or "", match.match or "") for match in active if automaton(match))
    for subject, count in subjects.items():
        if count > MAX_REGEXES:
            yield ("matches", f"{count} matches with a regular expression for {subject} are more than the "
                   f"{MAX_REGEXES} that a policy can have", "join some with |")
    words = {"verbs": [*policy.verbs], "ehlo-keywords": [*policy.ehlo_keywords], "matches": []}
    for match in active:
        if match.match in WORDS_OF:
            words[WORDS_OF[match.match]] += [*match.names, *match.except_names]
    for key, listed in words.items():
        excess = too_many(tuple(dict.fromkeys(listed)))
        if excess:
            text, _, remedy = excess.partition(": ")
            yield key, f"with those of the matches, {text}", remedy
