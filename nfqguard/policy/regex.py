r"""Regular expressions of a policy, compiled into deterministic automata over octets; csrc/regex.c runs them.

Why our own: what is matched is mail, as its sender wrote it. A library that backtracks can be made to spend seconds on
one line, wants the text in one piece, and keeps memory of its own for a match under way. An automaton reads each octet
once, takes them one by one as packets bring them, and its whole memory is the number of a state: two octets a stream.

The language is that of Python's `re` (its parser is used) as far as an automaton can speak it:

    literals, classes, ranges, negated classes, \d \w \s \D \W \S (ASCII), ., |, groups of every kind that only group,
    * + ? {m} {m,n} greedy or lazy (no difference here), ^ $ \A \Z, (?i) and (?i:...), (?x)

A pattern is text; a character beyond ASCII stands for its octets in UTF-8, while `.` and a negated class are one octet
each.
Refused, by name: back-references, look-around, conditional groups, possessive and atomic ones, \b and \B, ranges and
negated classes with characters beyond ASCII, and what needs more than STATES states.

A pattern is searched for: it matches where it matches anywhere, unless it begins with ^.

    one text    (an address) ^ and $ are the text's ends, and . is any octet
    lines=True  (header, body) ^ is the text's start or behind LF, $ is before CRLF or LF or at the text's end, and
                neither . nor a negated class is CR or LF; \A and \Z are the text's ends
"""
from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain

from nfqguard.policy.regex_dfa import MATCHED, MATCHES_AT_END, STATES, Subsets, merged_classes, minimised
from nfqguard.policy.regex_nfa import Nfa, RegexError

__all__ = ["STATES", "Automaton", "RegexError", "compile_regex"]


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton over octets; mirrors struct nq_regex_spec in csrc/engine.h. State 0 is the start.

    states    1 to STATES
    classes   1 to 256; octets of one class are never told apart
    class_of  256 octets: octet -> class
    next      unsigned 16-bit numbers, states x classes: the next state
    accepts   by state; bit 0: has matched, and stays so; bit 1: matches if the text ends here
    """

    states: int
    classes: int
    class_of: bytes
    next: array[int]
    accepts: bytes

    def step(self, state: int, text: bytes) -> int:
        """The state behind `text`, as regex_step() of the engine."""
        for octet in text:
            state = self.next[state * self.classes + self.class_of[octet]]
        return state

    def matched(self, state: int) -> bool:
        """Has it matched, whatever may follow?"""
        return bool(self.accepts[state] & MATCHED)

    def matches_at_end(self, state: int) -> bool:
        """Has it matched, or does it if the text ends here?"""
        return bool(self.accepts[state] & (MATCHED | MATCHES_AT_END))

    def search(self, text: bytes) -> bool:
        """Does the whole text match?"""
        return self.matches_at_end(self.step(0, text))


def compile_regex(pattern: str, *, ignore_case: bool = False, lines: bool = False) -> Automaton:
    """Compile a pattern. `ignore_case`: letters match in either case; `lines`: see above.

    Raises RegexError, whose `text` and `remedy` are for the operator. Ends soon for every pattern.
    """
    subsets = Subsets(Nfa(pattern, ignore_case, lines))
    rows, accepts = minimised(subsets.rows, subsets.accepts)
    rows, class_of = merged_classes(rows, subsets.class_of)
    return Automaton(len(rows), len(rows[0]), class_of, array("H", chain.from_iterable(rows)), bytes(accepts))
