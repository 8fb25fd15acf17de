"""Patterns become automata that say what Python's re says of the same octets, however the text is cut; what an
automaton cannot say is refused by name; and no pattern takes long to compile."""
from __future__ import annotations

import re
import subprocess
import time
from array import array
from typing import Any

import pytest
from cffi import FFI
from hypothesis import given, settings
from hypothesis import strategies as st
from sanitized import ENGINE

from nfqguard.policy.regex import STATES, Automaton, RegexError, compile_regex

ALPHABET = "abAB1_ .-@\r\n"
TEXT = st.lists(st.sampled_from([*ALPHABET.encode(), 0, 0x80, 0xC3, 0xFF]), max_size=12).map(bytes)
LITERAL = st.sampled_from([re.escape(character) for character in ALPHABET])
CATEGORY = st.sampled_from([r"\d", r"\D", r"\w", r"\W", r"\s", r"\S"])
MEMBER = st.one_of(LITERAL, CATEGORY, st.sampled_from(["a-b", "A-Z", "0-9", r"\x00-\x1f"]))
CLASS = st.builds(lambda negated, members: f"[{negated}{''.join(members)}]", st.sampled_from(["", "^"]),
                  st.lists(MEMBER, min_size=1, max_size=3))
ATOM = st.one_of(LITERAL, LITERAL, CATEGORY, CLASS, st.sampled_from([".", "^", "$", r"\A", r"\Z", "(?:)"]))
QUANTIFIER = st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1,}", "{0,2}?"])
GROUP = st.sampled_from(["(?:{})", "({})", "(?i:{})", "(?-i:{})"])


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.builds(lambda left, right: f"(?:{left}|{right})", inner, inner),
        st.builds(lambda body, quantifier: f"(?:{body}){quantifier}", inner, QUANTIFIER),
        st.builds(lambda form, body: form.format(body), GROUP, inner),
    )


PATTERN = st.recursive(ATOM, grown, max_leaves=8)


def expected(pattern: str, lines: bool) -> str:
    """The pattern with what differs from Python written out, token by token. In one text `.` is any octet and `$` the
    very end; with lines `$` knows CRLF, and no negated class, nor `.`, holds CR or LF."""
    tokens = re.findall(r"\\x..-\\x..|\\.|\[\^?(?:\\x..-\\x..|\\.|[^\]\\])+\]|\(\?[-i]*:|.", pattern, re.DOTALL)
    return "".join(expected_token(token, lines) for token in tokens)


def expected_token(token: str, lines: bool) -> str:
    if not lines:
        return {".": r"[\s\S]", "$": r"\Z"}.get(token, token)
    if token.startswith("[^"):
        return rf"(?:(?![\r\n]){token})"
    if token.startswith("["):
        return "(?:" + "|".join(
            f"(?![\r\n])[{member}]" if member in (r"\D", r"\W", r"\S") else f"[{member}]"
            for member in re.findall(r"\\x..-\\x..|\w-\w|\\.|.", token[1:-1], re.DOTALL)) + ")"
    return {".": r"[^\r\n]", "$": r"(?=\r?\n|\Z)", "^": r"(?:\A|(?<=\n))", r"\D": r"[^\d\r\n]", r"\W": r"[^\w\r\n]",
            r"\S": r"[^\s\r\n]"}.get(token, token)


def check_alike(pattern: str, text: bytes, lines: bool, ignore_case: bool) -> None:
    """Every prefix of the text is a text of its own, and none may unsay what a shorter one has said for good."""
    automaton = compile_regex(pattern, lines=lines, ignore_case=ignore_case)
    oracle = re.compile(expected(pattern, lines).encode(), re.IGNORECASE if ignore_case else 0)
    state, matched = 0, False
    for end in range(len(text) + 1):
        if end:
            state = automaton.step(state, text[end - 1:end])
        assert automaton.matches_at_end(state) == bool(oracle.search(text[:end])), text[:end]
        assert automaton.matched(state) >= matched
        matched = automaton.matched(state)
        assert not matched or oracle.search(text)


@settings(max_examples=1500, deadline=None)
@given(PATTERN, TEXT, st.booleans(), st.booleans())
def test_as_python_reads_it(pattern: str, text: bytes, lines: bool, ignore_case: bool) -> None:
    check_alike(pattern, text, lines, ignore_case)


@settings(max_examples=500, deadline=None)
@given(PATTERN, TEXT, TEXT, st.booleans())
def test_it_has_matched_as_soon_as_nothing_can_unsay_it(pattern: str, before: bytes, after: bytes, lines: bool) -> None:
    automaton = compile_regex(pattern, lines=lines)
    state = automaton.step(0, before)
    if automaton.matched(state):
        assert automaton.step(state, after) == state
    else:                               # some text follows that does not match
        assert any(not automaton.matches_at_end(other) for other in reachable(automaton, state))


def reachable(automaton: Automaton, state: int) -> set[int]:
    seen, waiting = {state}, [state]
    while waiting:
        at = waiting.pop() * automaton.classes
        fresh = set(automaton.next[at:at + automaton.classes]) - seen
        seen |= fresh
        waiting += fresh
    return seen


@settings(max_examples=500, deadline=None)
@given(PATTERN, st.booleans(), st.booleans())
def test_the_tables_are_in_order(pattern: str, lines: bool, ignore_case: bool) -> None:
    automaton = compile_regex(pattern, lines=lines, ignore_case=ignore_case)
    assert 1 <= automaton.states <= STATES and 1 <= automaton.classes <= 256
    assert len(automaton.class_of) == 256 and set(automaton.class_of) == set(range(automaton.classes))
    assert automaton.next.typecode == "H" and automaton.next.itemsize == 2
    assert len(automaton.next) == automaton.states * automaton.classes
    assert len(automaton.accepts) == automaton.states
    assert reachable(automaton, 0) == set(range(automaton.states))
    assert automaton.accepts.count(3) <= 1 and set(automaton.accepts) <= {0, 2, 3}


# ---- the same tables in the engine

STRUCTURES = [("engine.h", "nq_regex_spec"), ("nq.h", "nq_regex")]
BORDER = """
bool regex_init(struct nq_regex *regex, const struct nq_regex_spec *spec, char *error);
void regex_end(struct nq_regex *regex);
uint16_t regex_step(const struct nq_regex *regex, uint16_t state, const uint8_t *from, const uint8_t *to);
bool regex_matched(const struct nq_regex *regex, uint16_t state);
bool regex_matches_at_end(const struct nq_regex *regex, uint16_t state);
"""


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> tuple[FFI, Any]:
    """csrc/regex.c as a library of its own."""
    made = tmp_path_factory.mktemp("regex") / "regex.so"
    command = ["gcc", "-std=gnu11", "-O1", "-shared", "-fPIC", f"-I{ENGINE}", ENGINE / "regex.c", "-o", made]
    subprocess.run(command, check=True)
    ffi = FFI()
    for header, name in STRUCTURES:
        found = re.search(rf"^struct {name} \{{.*?^\}};", (ENGINE / header).read_text(), re.DOTALL | re.MULTILINE)
        assert found
        ffi.cdef(found[0])
    ffi.cdef(BORDER)
    return ffi, ffi.dlopen(str(made))


@settings(max_examples=300, deadline=None)
@given(PATTERN, TEXT, st.booleans(), st.integers(0, 12))
def test_the_engine_runs_it_alike(native: tuple[FFI, Any], pattern: str, text: bytes, lines: bool, cut: int) -> None:
    ffi, lib = native
    automaton = compile_regex(pattern, lines=lines)
    kept = [ffi.from_buffer("uint8_t[]", automaton.class_of), ffi.from_buffer("uint16_t[]", automaton.next),
            ffi.from_buffer("uint8_t[]", automaton.accepts)]
    spec = ffi.new("struct nq_regex_spec *", [automaton.states, automaton.classes, *kept])
    regex, error = ffi.new("struct nq_regex *"), ffi.new("char[]", 160)
    assert lib.regex_init(regex, spec, error), ffi.string(error)
    state = 0
    for piece in (text[:cut], text[cut:]):
        octets = ffi.new("uint8_t[]", piece or b"\0")
        state = lib.regex_step(regex, state, octets, octets + len(piece))
    assert state == automaton.step(0, text)
    assert lib.regex_matched(regex, state) == automaton.matched(state)
    assert lib.regex_matches_at_end(regex, state) == automaton.matches_at_end(state)
    lib.regex_end(regex)


# ---- rows

WHOLE = [
    ("spam", "no Spam here", False), ("(?i)spam", "no sPaM here", True), ("spam", "spa", False),
    ("^spam", "x spam", False),
    ("^spam$", "spam", True), ("^spam$", "spam\n", False), ("^.$", "\r", True), ("^[^a]$", "\n", True),
    (r"@example\.com$", "joe@example.com", True), (r"@example\.com$", "joe@example.com.evil.example", False),
    (r"@example\.com$", "joe@examplexcom", False), ("^$", "", True), ("^$", "x", False), ("", "", True),
    ("^postmaster(?:@|$)", "postmaster", True), ("^postmaster(?:@|$)", "postmasters", False),
    ("é{2}", "éé", True), ("é{2}", "é\u00c9", False), ("[é]x", "éx", True),
    ("é|ß", "ß", True), ("(?i)É", "é", True),
    ("(?i)straße", "STRAßE", True), ("^.$", "é", False), ("^..$", "é", True), (r"^[^\x00-\x7f]{2}$", "é", True),
    (r"\xe9", "é", True), ("(?P<name>a)(?#remark)b", "ab", True), ("(?x) a  b # remark", "ab", True),
    ("a(?i:b)c", "aBc", True), ("a(?i:b)c", "aBC", False), ("(?i)a(?-i:b)", "Ab", True), ("(?i)a(?-i:b)", "AB", False),
]

LINES = [
    ("^B", "A\r\nB", True), ("^B", "A\rB", False), (r"\AB", "A\r\nB", False), ("A$", "A\r\nB", True),
    ("A$", "A\nB", True),
    ("A$", "A\rB", False), ("A$", "A\r", False), ("A$", "A", True), (r"A\Z", "A\r\n", False), (r"A\Z", "A", True),
    ("A.*B", "A\r\nB", False), ("A.B", "A\rB", False), ("A[^x]B", "A\nB", False), (r"A\WB", "A\nB", False),
    (r"A\s+B", "A\r\n B", True), (r"A[\s\S]*B", "A\r\n\r\nB", True), ("^$", "A\r\n\r\nB", True),
    ("^$", "A\r\nB", False),
    ("^$", "A\r\n", True), ("A$\r\n^B", "A\r\nB", True), ("A$\n", "A\r\nB", False), ("A$\r", "A\r\nB", True),
    ("A$\rx", "A\rx", False), ("^Subject:.*spam", "From: x\r\nSubject: buy spam\r\n", True),
    ("^Subject:.*spam", "Subject: x\r\nTo: spam\r\n", False),
    ("^X:.*(?:\r\n[ \t].*)*end", "X: a\r\n b\r\n\tend", True), ("^X:.*(?:\r\n[ \t].*)*end", "X: a\r\nY: end", False),
]


@pytest.mark.parametrize(("pattern", "text", "found"), WHOLE)
def test_one_text(pattern: str, text: str, found: bool) -> None:
    assert compile_regex(pattern).search(text.encode()) == found


@pytest.mark.parametrize(("pattern", "text", "found"), LINES)
def test_lines(pattern: str, text: str, found: bool) -> None:
    assert compile_regex(pattern, lines=True).search(text.encode()) == found


def test_an_automaton_is_the_smallest() -> None:
    assert compile_regex("a").next == array("H", [0, 1, 1, 1])
    assert compile_regex("a*").states == compile_regex("$").states == compile_regex("x|$", lines=True).states == 1
    assert compile_regex("(?:a|b|ab|ba|aa)").states == 2
    assert compile_regex("(((a*)*)*)*b").states == 2
    assert compile_regex("(?i)cat|dog").classes == 7


# ---- what is refused

REFUSED = [
    (r"(a)\1", r"a back-reference (\1 or (?P=name)) is not supported: write out what it refers to"),
    ("(?P<n>a)(?P=n)", "a back-reference"),
    ("(a)?(?(1)b|c)", "a conditional group (?(1)...) is not supported: write the cases as an alternation with |"),
    ("a(?=b)", "look-around, (?=...) or (?<=...) is not supported: say it without, or split the pattern"),
    ("(?<=b)a", "look-around, (?=...)"), ("a(?!b)", "look-around, (?!...)"), ("(?<!b)a", "look-around, (?!...)"),
    ("a(?!)", "look-around, (?!...)"),
    ("a*+", "a possessive repetition (*+, ++, ?+ or {m,n}+) is not supported: take the last + away"),
    ("a{1,2}+", "a possessive repetition"), ("(?>a)", "an atomic group (?>...) is not supported: write (?:...)"),
    (r"\bword", r"a word boundary \b is not supported: name the octets around the word, as in (?:^|\W)word(?:\W|$)"),
    (r"\Bword", r"\B, no word boundary is not supported"),
    ("(?m)^a", "the flag (?m) is not supported: leave it out"),
    ("(?s).", "the flag (?s) is not supported: leave it out, and write [\\s\\S] for every octet"),
    ("(?s:.)", "the flag (?s) is not supported"),
    ("[^é]", r"the negated class holds 'é', which is more than one octet: write [^\x00-\x7f] for any octet above 127"),
    ("[a-é]", "the range 'a' to 'é' of a class goes beyond ASCII: write"),
    ("[^à-é]", "the range 'à' to 'é' of a class goes beyond ASCII: write"),
    ("(a", "it does not parse, missing ), unterminated subpattern (at character 1): correct the pattern"),
    ("*", "it does not parse, nothing to repeat (at character 1)"),
    ("[b-a]", "it does not parse, bad character range b-a"),
    (r"\p{L}", r"it does not parse, bad escape \p"), ("\ud800", "it holds half a surrogate pair"),
    ("a{99999999999}", "it repeats too often or nests too deeply: simplify the pattern"),
    ("(" * 3000 + ")" * 3000, "it repeats too often or nests too deeply"),
]


@pytest.mark.parametrize(("pattern", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_is_refused_is_named(pattern: str, message: str) -> None:
    for lines in (False, True):
        with pytest.raises(RegexError) as caught:
            compile_regex(pattern, lines=lines)
        assert str(caught.value).startswith(message)
        assert caught.value.text and caught.value.remedy


# ---- size

def names(count: int, length: int) -> str:
    """Different names that begin differently: the letters of a number in base 26, the lowest digit first."""
    return "|".join("".join(chr(97 + (number * 7919 + 31 * place * place) // 26 ** (place % 3) % 26)
                            for place in range(length)) for number in range(count))


LARGE = [
    ("a.{11}b", "it is too large: it needs more than 4096 states"),
    ("a.{40}b", "it is too large: it has more than 20000 states on the way to the fewest"),
    ("(?:a{1000}){1000}", "it is too large: repetitions written out, it has more than 20000 places"),
    ("(?:){4294967290}", "it is too large: repetitions written out"), ("(?:(?:){65000}){65000}", "it is too large"),
    ("((((((a?){9}){9}){9}){9}){9}){9}", "it is too large"),
    ("a{5000}", "it is too large: too much work to compile it"),
    ("^" + "x" * 5000, "it is too large: it needs more than 4096 states"),
    ("|".join(f"{first}.*{second}" for first, second in zip("abcdefghijklm", "nopqrstuvwxyz", strict=True)),
     "it is too large"),
    (f"(?:{names(1000, 12)})$", "it is too large"), (names(1000, 14), "it is too large"),
]


@pytest.mark.parametrize(("pattern", "message"), LARGE, ids=[pattern[:30] for pattern, _ in LARGE])
@pytest.mark.parametrize("lines", [False, True])
def test_what_is_too_large_is_refused_soon(pattern: str, message: str, lines: bool) -> None:
    began = time.process_time()
    with pytest.raises(RegexError) as caught:
        compile_regex(pattern, ignore_case=True, lines=lines)
    assert time.process_time() - began < 10     # about 2 on an idle machine
    assert str(caught.value).startswith(message)


FITS = [
    ("a.{10}b", 2049), ("a{1000}", 1001), ("^.{0,3000}$", 3002), ("^" + "x" * 4094, 4096), (r"^\w{1000,2000}$", 2002),
    ("(?:a?){300}a{300}", 301),
]


@pytest.mark.parametrize(("pattern", "states"), FITS, ids=[pattern[:30] for pattern, _ in FITS])
def test_what_fits_is_made(pattern: str, states: int) -> None:
    assert compile_regex(pattern).states == states


def test_hundreds_of_names_fit() -> None:
    listed = names(250, 14)
    automaton = compile_regex(f"@(?:{listed})$")
    assert all(automaton.search(f"joe@{name}".encode()) for name in listed.split("|"))
    assert not any(automaton.search(f"joe@x{name}".encode()) for name in listed.split("|"))
