"""A pattern's syntax, and the nondeterministic automaton that says the same (Thompson's construction).

Python's own parser reads the pattern, so what an operator knows of `re` holds here; what a deterministic automaton
cannot say is refused by name. A look-ahead hides in `$`: it holds before LF, before CRLF and at the end. A thread that
passes it takes on one of these as an obligation (regex_dfa.py), so that no octet is read twice.
"""
from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

NODES = 20_000
"""Nodes of the nondeterministic automaton; what asks for more repeats too much to fit in the end."""

ACCEPT = 0
"""The node that says: has matched."""

Token = tuple[Any, Any]


class RegexError(ValueError):
    """A pattern that cannot be used. `text` says what is wrong with it, `remedy` what to do."""

    def __init__(self, text: str, remedy: str) -> None:
        self.text = text
        self.remedy = remedy
        super().__init__(f"{text}: {remedy}")


class Assertion(Enum):
    """What must hold where a thread passes without reading."""

    NONE = "always"
    TEXT_START = "the text begins here"
    LINE_START = "the text begins here, or LF came before"
    TEXT_END = "the text ends here"
    LINE_END = "the text ends here, or LF or CRLF follows"


def octets(members: bytes) -> int:
    """A set of octets: bit n stands for octet n."""
    return sum(1 << octet for octet in set(members))


ALL = (1 << 256) - 1
LINE_BREAKS = octets(b"\r\n")
UPPER, LOWER = octets(bytes(range(65, 91))), octets(bytes(range(97, 123)))
DIGITS = octets(b"0123456789")
WORD = UPPER | LOWER | DIGITS | octets(b"_")
SPACE = octets(b" \t\n\r\f\v")
CATEGORIES = {
    op.CATEGORY_DIGIT: DIGITS, op.CATEGORY_NOT_DIGIT: ALL ^ DIGITS,
    op.CATEGORY_WORD: WORD, op.CATEGORY_NOT_WORD: ALL ^ WORD,
    op.CATEGORY_SPACE: SPACE, op.CATEGORY_NOT_SPACE: ALL ^ SPACE,
}
NEGATIVE = {op.CATEGORY_NOT_DIGIT, op.CATEGORY_NOT_WORD, op.CATEGORY_NOT_SPACE}

PLAIN = "say it without, or split the pattern into several matches"
NOT_FOLLOWED = ("look-around, (?!...) or (?<!...)", PLAIN)
REFUSED = {
    op.GROUPREF: ("a back-reference (\\1 or (?P=name))", "write out what it refers to"),
    op.GROUPREF_EXISTS: ("a conditional group (?(1)...)", "write the cases as an alternation with |"),
    op.ASSERT: ("look-around, (?=...) or (?<=...)", PLAIN),
    op.ASSERT_NOT: NOT_FOLLOWED,
    op.FAILURE: NOT_FOLLOWED,       # what (?!) is to later parsers
    op.POSSESSIVE_REPEAT: ("a possessive repetition (*+, ++, ?+ or {m,n}+)",
                           "take the last + away: nothing backtracks here, and being possessive changes what matches"),
    op.ATOMIC_GROUP: ("an atomic group (?>...)",
                      "write (?:...): nothing backtracks here, and being atomic changes what matches"),
}
BOUNDARIES = {
    op.AT_BOUNDARY: ("a word boundary \\b", "name the octets around the word, as in (?:^|\\W)word(?:\\W|$)"),
    op.AT_NON_BOUNDARY: ("\\B, no word boundary", "name the octets around the word, as in \\wword\\w"),
}
FLAGS = {
    re.MULTILINE: ("the flag (?m)", "leave it out: whether ^ and $ know lines depends on what the match looks at"),
    re.DOTALL: ("the flag (?s)", "leave it out, and write [\\s\\S] for every octet"),
    re.LOCALE: ("the flag (?L)", "leave it out: letters are those of ASCII"),
}
ANY_8BIT = r"write [^\x00-\x7f] for any octet above 127, or an alternation such as (?:ä|ö)"


def unsupported(what: tuple[str, str]) -> RegexError:
    return RegexError(f"{what[0]} is not supported", what[1])


def parse(pattern: str) -> tuple[Sequence[Token], int]:
    """The pattern's tokens and its global flags. Raises RegexError with the parser's own words."""
    try:
        pattern.encode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of sets within sets, which Python may have one day
            tokens = _parser.parse(pattern)
    except re.error as error:
        place = "" if error.pos is None else f" (at character {error.pos + 1})"
        raise RegexError(f"it does not parse, {error.msg}{place}", "correct the pattern") from None
    except UnicodeEncodeError:
        raise RegexError("it holds half a surrogate pair", "write the character itself") from None
    except (OverflowError, RecursionError):
        raise RegexError("it repeats too often or nests too deeply", "simplify the pattern") from None
    return tokens, tokens.state.flags


def with_both_cases(members: int) -> int:
    return members | (members & UPPER) << 32 | (members & LOWER) >> 32


class Nfa:
    """The automaton of one pattern; searching, not matching: node `start` reads any octet and stays.

    reads   by node: the octets that lead on, as a set; 0: none
    leads   by node: where they lead
    passes  by node: where a thread may go without reading, and what must hold

    Raises RegexError where the pattern holds what is not supported or is too large.
    """

    def __init__(self, pattern: str, ignore_case: bool, lines: bool) -> None:
        self.reads: list[int] = []
        self.leads: list[int] = []
        self.passes: list[list[tuple[int, Assertion]]] = []
        self.lines = lines
        tokens, flags = parse(pattern)
        self._ignore_case = self._flagged(ignore_case, flags, 0)
        self._read(self._node(), ALL, ACCEPT)
        self.start = self._node()
        self._read(self.start, ALL, self.start)
        try:
            end = self._sequence(self._behind(self.start), tokens)
        except RecursionError:
            raise RegexError("it nests too deeply", "simplify the pattern") from None
        self._pass(end, ACCEPT)

    # ---- nodes

    def _node(self) -> int:
        if len(self.reads) == NODES:
            raise RegexError(f"it is too large: repetitions written out, it has more than {NODES} places",
                             "make {m,n} smaller, or split the pattern into several matches")
        self.reads.append(0)
        self.leads.append(0)
        self.passes.append([])
        return len(self.reads) - 1

    def _read(self, node: int, members: int, target: int) -> int:
        self.reads[node] = members
        self.leads[node] = target
        return target

    def _pass(self, node: int, target: int, assertion: Assertion = Assertion.NONE) -> int:
        self.passes[node].append((target, assertion))
        return target

    def _behind(self, node: int) -> int:
        return self._pass(node, self._node())

    # ---- tokens: each method builds behind `node` and returns the node where it goes on

    def _sequence(self, node: int, tokens: Sequence[Token]) -> int:
        for code, argument in tokens:
            if code in REFUSED:
                raise unsupported(REFUSED[code])
            node = self._builders[code](self, node, argument)
        return node

    def _set(self, node: int, members: int) -> int:
        at = self._behind(node) if self.reads[node] else node
        return self._read(at, members, self._node())

    def _any(self, node: int, _: None) -> int:
        return self._set(node, ALL ^ LINE_BREAKS if self.lines else ALL)

    def _literal(self, node: int, code: int) -> int:
        if code < 128:
            return self._set(node, self._folded(1 << code))
        spellings = {chr(code)}
        if self._ignore_case:
            spellings |= {other for other in (chr(code).lower(), chr(code).upper()) if len(other) == 1}
        out = self._node()
        for spelling in sorted(spellings):
            at = node
            for octet in spelling.encode():
                at = self._set(at, 1 << octet)
            self._pass(at, out)
        return out

    def _not_literal(self, node: int, code: int) -> int:
        return self._in(node, [(op.NEGATE, None), (op.LITERAL, code)])

    def _in(self, node: int, items: Sequence[Token]) -> int:
        """A class. Its characters beyond ASCII become alternatives to it: the parser makes ä|ö a class, too."""
        negated = items[0][0] is op.NEGATE
        beyond = [argument for code, argument in items if code is op.LITERAL and argument > 127]
        if negated and beyond:
            raise RegexError(f"the negated class holds {chr(beyond[0])!r}, which is more than one octet", ANY_8BIT)
        out = self._node()
        self._pass(self._set(node, self._members(items, negated)), out)
        for code in beyond:
            self._pass(self._literal(node, code), out)
        return out

    def _members(self, items: Sequence[Token], negated: bool) -> int:
        members = 0
        for code, argument in items:
            if code is op.LITERAL and argument < 128:
                members |= 1 << argument
            elif code is op.RANGE:
                members |= self._range(*argument)
            elif code is op.CATEGORY:
                lost = LINE_BREAKS if self.lines and argument in NEGATIVE and not negated else 0
                members |= CATEGORIES[argument] & ~lost
        members = self._folded(members)
        if not negated:
            return members
        return ALL & ~(members | (LINE_BREAKS if self.lines else 0))

    @staticmethod
    def _range(first: int, last: int) -> int:
        if last > 127:
            raise RegexError(f"the range {chr(first)!r} to {chr(last)!r} of a class goes beyond ASCII", ANY_8BIT)
        return octets(bytes(range(first, last + 1)))

    def _folded(self, members: int) -> int:
        return with_both_cases(members) if self._ignore_case else members

    def _branch(self, node: int, argument: tuple[None, Sequence[Sequence[Token]]]) -> int:
        out = self._node()
        for branch in argument[1]:
            self._pass(self._sequence(self._behind(node), branch), out)
        return out

    def _group(self, node: int, argument: tuple[Any, int, int, Sequence[Token]]) -> int:
        _, added, removed, tokens = argument
        outside = self._ignore_case
        self._ignore_case = self._flagged(outside, added, removed)
        node = self._sequence(node, tokens)
        self._ignore_case = outside
        return node

    @staticmethod
    def _flagged(ignore_case: bool, added: int, removed: int) -> bool:
        for flag, what in FLAGS.items():
            if added & flag:
                raise unsupported(what)
        return bool((ignore_case or added & re.IGNORECASE) and not removed & re.IGNORECASE)

    def _repeat(self, node: int, argument: tuple[int, int, Sequence[Token]]) -> int:
        """Greedy or not: which of several matches is found makes no difference here."""
        least, most, tokens = argument
        for _ in range(least):
            node = self._sequence(self._behind(node), tokens)
        if most is op.MAXREPEAT:
            loop = self._behind(node)
            self._pass(self._sequence(self._behind(loop), tokens), loop)
            return self._behind(loop)
        out = self._behind(node)
        for _ in range(most - least):
            node = self._sequence(self._behind(node), tokens)
            self._pass(node, out)
        return out

    def _at(self, node: int, place: Any) -> int:
        if place in BOUNDARIES:
            raise unsupported(BOUNDARIES[place])
        if place is op.AT_BEGINNING:
            assertion = Assertion.LINE_START if self.lines else Assertion.TEXT_START
        elif place is op.AT_END:
            assertion = Assertion.LINE_END if self.lines else Assertion.TEXT_END
        else:
            assertion = Assertion.TEXT_START if place is op.AT_BEGINNING_STRING else Assertion.TEXT_END
        return self._pass(node, self._node(), assertion)

    _builders: dict[Any, Callable[[Nfa, int, Any], int]] = {  # noqa: RUF012
        op.ANY: _any, op.AT: _at, op.BRANCH: _branch, op.IN: _in, op.LITERAL: _literal, op.NOT_LITERAL: _not_literal,
        op.SUBPATTERN: _group, op.MAX_REPEAT: _repeat, op.MIN_REPEAT: _repeat,
    }
