"""What a text of the configuration may hold: words of SMTP, and lines that are sent as they are."""
from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

MAX_PREFIXES = 900
"""Of all verbs, keywords or mechanisms of one policy; with the words that the engine knows it stays below NQ_NODES in
csrc/nq.h."""

MAX_WORDS = 200
"""Of the same; with the words that the engine knows it stays below 255, the numbers that an octet has for them."""


def _upper_words(words: tuple[str, ...]) -> tuple[str, ...]:
    """Upper case, each word once, in the order written."""
    bad = [word for word in words if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,30}", word)]
    if bad:
        listed = ", ".join(repr(word) for word in bad)
        raise ValueError(f"{listed}: a word has 1 to 31 letters, digits and hyphens, and begins with no hyphen")
    kept = tuple(dict.fromkeys(word.upper() for word in words))
    excess = too_many(kept)
    if excess:
        raise ValueError(excess)
    return kept


def too_many(words: tuple[str, ...]) -> str:
    """Why the engine cannot hold these words at once, with its remedy; empty where it can."""
    prefixes = {word[:end] for word in words for end in range(1, len(word) + 1)}
    if len(prefixes) > MAX_PREFIXES:
        return (f"the words have {len(prefixes)} different prefixes, more than the {MAX_PREFIXES} that the engine can "
                "tell apart: name fewer words")
    if len(words) > MAX_WORDS:
        return f"{len(words)} words are more than the {MAX_WORDS} that the engine can tell apart: name fewer words"
    return ""


def _one_or_more(value: object) -> object:
    """A single text stands for a list of one."""
    return (value,) if isinstance(value, str) else value


OneOrMore = BeforeValidator(_one_or_more)
Words = Annotated[tuple[str, ...], AfterValidator(_upper_words)]
ONE_LINE = r"^[\x20-\x7e]*$"
OneLine = Annotated[str, Field(max_length=253, pattern=ONE_LINE)]


def _failing_reply(text: str) -> str:
    if text and not re.match(r"[45][0-9]{2} ", text):
        raise ValueError("this is no reply that refuses: begin with a code of 400 to 599, such as \"554 5.7.1 "
                         "Refused by policy\"")
    return text


Reply = Annotated[OneLine, AfterValidator(_failing_reply)]
"""A reply that refuses, with its code (RFC 5321, 4.2.1) and, at best, an enhanced code (RFC 3463); empty: none."""
