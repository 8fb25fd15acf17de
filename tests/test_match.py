"""Matches of a policy: what each kind takes, every mistake with its key path and remedy, inheritance, and the rules
that the engine is given."""
from __future__ import annotations

import re
from pathlib import Path

import pytest
from wire import CLIENT, SERVER, Wire

from nfqguard import engine
from nfqguard.policy.caution import LINE_MAX
from nfqguard.policy.compile import PolicySpec, RuleSpec, compile_policy
from nfqguard.policy.criterion import ASA_KEYWORDS, CRITERIA, PARAMETERS, Takes
from nfqguard.policy.load import ConfigError, load, load_preset, preset_names
from nfqguard.policy.match import (
    ACTIONS,
    MAX_CODES,
    MAX_MATCHES,
    MAX_REGEXES,
    Match,
    actions,
    automaton,
    criterion_keys,
    faults,
)
from nfqguard.policy.regex_dfa import MATCHED, MATCHES_AT_END
from nfqguard.policy.text import MAX_PREFIXES, MAX_WORDS

ROOT = Path(__file__).resolve().parent.parent
BASE = 'policy = "p"\n[policies.p]\nextends = "ios-smtp"\n'
VALUES = {"gt": "9", "lt": "4", "names": '["SIZE"]', "except_names": '["SIZE"]', "regex": "'a'", "ignore_case": "true",
          "domains": '["example.com"]', "codes": '["550"]'}


def match(text: str) -> str:
    """A match, its keys on one line, divided by `;`."""
    return "[[policies.p.matches]]\n" + "\n".join(part.strip() for part in text.split(";")) + "\n"


@pytest.fixture
def policy(tmp_path):
    """Load a policy `p` with these matches; text without `=` before its first match is more of the policy."""
    def _policy(*matches: str, base: str = BASE):
        path = tmp_path / "c.toml"
        path.write_text(base + "".join(match(text) for text in matches))
        return load(path).policy_in_force
    return _policy


def problems(policy, *matches: str, base: str = BASE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        policy(*matches, base=base)
    return [str(problem).partition("c.toml: ")[2] for problem in caught.value.problems]


def rules(policy) -> tuple[RuleSpec, ...]:
    spec = compile_policy("p", policy)
    engine.Policy(spec)     # and the engine takes them
    return spec.rules


# ---- the tables of the engine ------------------------------------------------------------------------------------


def test_the_kinds_are_those_of_the_engine_with_their_flags():
    assert tuple(CRITERIA) == engine.MATCH_NAMES
    lines = re.findall(r'^MATCH\(\w+, "([^"]+)", ([^)]*)\)', (ROOT / "csrc/matches.def").read_text(), re.MULTILINE)
    assert len(lines) == len(CRITERIA)
    for name, flags in lines:
        takes = [Takes[flag.strip().removeprefix("MATCH_")] for flag in flags.split("|") if flag.strip() != "0"]
        assert set(CRITERIA[name].takes) == set(takes), name


def test_words_and_limits_are_those_of_the_engine():
    written = (ROOT / "csrc/smtp_parameters.def").read_text()
    assert tuple(re.findall(r'^PARAMETER\([^,]+, "([^"]+)"', written, re.MULTILINE)) == PARAMETERS
    header = (ROOT / "csrc/nq.h").read_text()
    for name, value in (("NQ_RULES", MAX_MATCHES), ("NQ_REGEXES", MAX_REGEXES), ("NQ_CODE_PAIRS", MAX_CODES)):
        assert re.search(rf"\b{name} = {value}\b", header), name
    assert re.search(rf"#define NQ_COMMAND_LINE_MAX\s+{LINE_MAX}\b", header)


@pytest.mark.parametrize("name", preset_names())
def test_the_engine_takes_every_preset(name):
    engine.Policy(compile_policy(name, load_preset(name).policy_in_force))


def names_for(kind: str) -> str:
    return (CRITERIA[kind].words or ("SIZE",))[0]


def example(kind: str, action: str) -> str:
    """A match of this kind with every key that it must have."""
    keys = [f'match = "{kind}"', 'name = "x"', f'action = "{action}"', "rate = 5" if action == "rate-limit" else ""]
    for key in criterion_keys(CRITERIA[kind]):
        if key == "names":
            keys.append(f'names = ["{names_for(kind)}"]')
        elif key in ("gt", "lt", "regex", "domains", "codes"):
            keys.append(f"{key} = {VALUES[key]}")
    return ";".join(filter(None, keys))


@pytest.mark.parametrize("kind", CRITERIA)
def test_every_action_of_every_kind_is_taken_by_the_engine_or_refused_here(policy, kind):
    possible = actions(CRITERIA[kind])
    for action in ACTIONS[:-1]:
        if action in possible:
            (rule,) = rules(policy(example(kind, action)))
            assert (rule.match, rule.action) == (kind, action)
            assert bool(rule.reply) is (action in ("reject", "rate-limit"))
        else:
            (problem,) = problems(policy, example(kind, action))
            wrong = f'policies.p.matches[0].action: "{action}" cannot be done for {kind}: write "log"'
            assert problem.startswith(wrong)


@pytest.mark.parametrize("criterion", [one for one in CRITERIA.values() if one.reply], ids=lambda one: one.name)
def test_the_reply_of_each_kind_has_a_code_and_an_enhanced_code_of_its_class(criterion):
    assert re.fullmatch(r"([45])\d\d \1\.\d{1,3}\.\d{1,3} [A-Z][\x20-\x7e]{1,150}", criterion.reply)


@pytest.mark.parametrize("kind", CRITERIA)
def test_a_key_that_belongs_to_another_kind_is_a_mistake(policy, kind):
    for key, value in VALUES.items():
        if key not in criterion_keys(CRITERIA[kind]):
            spelled = key.replace("_", "-")
            found = problems(policy, f"{example(kind, 'log')};{spelled} = {value}")
            assert f"policies.p.matches[0].{spelled}: a match of {kind} has no such key: take it out" in found[0]


# ---- mistakes ----------------------------------------------------------------------------------------------------

LINE = 'name = "x"; match = "cmd line length"; action = "log"; gt = 1'

MISTAKES = [
    ('name = "x"; match = "cmd line lenght"; action = "log"',
     "match: 'cmd line lenght' is nothing that can be matched: did you mean 'cmd line length' or 'body line length' or "
     "'cmd verb length'?"),
    ('name = "x"; match = "cmd line length"; action = "log"',
     "gt: cmd line length is compared with nothing: write gt = NUMBER"),
    ('name = "x"; match = "cmd verb length"; action = "log"',
     "lt: cmd verb length is compared with nothing: write lt = NUMBER"),
    ('name = "x"; match = "cmd verb"; action = "log"',
     "names: a match of cmd verb without names says nothing: write names or except-names"),
    ('name = "x"; match = "reply code"; action = "log"',
     'codes: no reply code is named: write codes = ["421", "55x"]'),
    ('name = "x"; match = "body regex"; action = "log"', "regex: there is no regular expression: write regex = '...'"),
    ('name = "x"; match = "mail-relay"; action = "log"',
     'domains: no domain is inside: write domains = ["example.com"]'),
    ('name = "x"; match = "cmd line length"; gt = 1',
     'action: it is not said what is done: write action = "log", "allow", "mask", "replace", "remove", '
     '"drop-connection", '
     '"reset", "reject", "rate-limit" or "none"'),
    ('name = "x"; action = "log"',
     'name: no match \'x\' is inherited: write match = "..." to say what is looked at, or the name of an inherited '
     'one: '
     "the policy inherits none"),
    ('name = "x"; action = "none"', "name: no match 'x' is inherited: the policy inherits none"),
    ('name = "a b"; match = "early talker"; action = "log"',
     "name: 'a b' cannot be a name: use 1 to 31 letters, digits and - (not first)"),
    (f"{LINE}; colour = 3", "colour: there is no such key: known are action, codes, domains, dry-run, except-names, "
     "gt, ignore-case, log, lt, match, name, names, not, rate, regex, reply"),
    (f"{LINE}; Not = true", "Not: there is no such key: did you mean 'not'?"),
    (f"{LINE}; negate = true", "negate: there is no such key: did you mean"),
    ('name = "x"; match = "cmd line length"; action = "lgo"; gt = 1',
     "action: 'lgo' is not known: give 'log', 'allow', 'mask', 'replace', 'remove', 'drop-connection', 'reset', "
     "'reject', 'rate-limit' or 'none'"),
    ('name = "x"; match = "cmd line length"; action = "log"; gt = -1', "gt: -1 is too small: give at least 0"),
    ('name = "x"; match = "cmd line length"; action = "log"; gt = "512"',
     "gt: '512' is not what is needed: give a whole number"),
    (f'{LINE}; names = ["A"]; except-names = ["B"]',
     "except-names: names and except-names contradict each other: keep one of them"),
    ('name = "x"; match = "mime encoding"; names = ["BASE46"]; action = "log"',
     "names: mime encoding knows no 'BASE46': did you mean 'BASE64'?"),
    ('name = "x"; match = "parameter"; except-names = ["NOTFIY"]; action = "log"',
     "except-names: parameter knows no 'NOTFIY': did you mean 'NOTIFY'?"),
    ('name = "x"; match = "ehlo-reply-parameter"; except-names = ["others"]; action = "log"',
     'except-names: "others" cannot be excepted: write what is to match to names instead'),
    ('name = "x"; match = "body regex"; regex = "a("; action = "log"', "regex: "),
    ('name = "x"; match = "sender-address regex"; regex = "(a)\\\\1"; action = "log"', "regex: "),
    ('name = "x"; match = "reply code"; codes = ["55"]; action = "log"',
     'codes: \'55\' is no reply code: write "421", "45x", "5xx" or "550-559"'),
    ('name = "x"; match = "reply code"; codes = ["559-550"]; action = "log"',
     "codes: '559-550' ends before it begins: write the lower code first"),
    (f'name = "x"; match = "reply code"; codes = {[str(code) for code in range(500, 509)]}; action = "log"',
     "codes: 9 codes are more than the 8 that a match can hold: write ranges"),
    ('name = "x"; match = "mail-relay"; domains = ["a b"]; action = "log"', "domains: 'a b' is no domain: write"),
    (f"{LINE}; reply = '554 5.7.1 no'",
     'reply: behind the action "log" no reply is sent: take it out, or write action = "reject"'),
    ('name = "x"; match = "early talker"; action = "reject"; reply = "250 fine"',
     "reply: this is no reply that refuses: begin with a code of 400 to 599, such as"),
    ('name = "x"; match = "early talker"; action = "reject"; reply = "554 \\n"',
     "reply: '554 \\n' does not fit: give one line of printable ASCII"),
    (f'name = "x"; match = "early talker"; action = "reject"; reply = "554 {"n" * 250}"',
     "reply: the text is too long: give at most 253 characters"),
    ('name = "x"; match = "early talker"; action = "rate-limit"',
     "rate: it is not said how many may pass: write rate = MATCHES A SECOND"),
    (f"{LINE}; rate = 5", 'rate: the action "log" has no rate: take it out, or write action = "rate-limit"'),
    (f"{LINE}; log = false", "log: a match that only tells and does not tell does nothing: take it out, or write"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_each_mistake_of_a_match_has_its_key_path_and_remedy(policy, text, expected):
    (problem,) = problems(policy, 'name = "fine"; match = "early talker"; action = "log"', text)
    assert problem.startswith(f"policies.p.matches[1].{expected}")


def test_all_mistakes_of_all_matches_at_once_beside_others(policy):
    found = problems(policy, 'name = "a"; match = "cmd verb"; action = "replace"; gt = 4',
                     'name = "a"; match = "early talker"; action = "log"', 'name = "b"; rtae = 1',
                     'match = "early talker"',
                     base=BASE + "timeout = -1\nverbs = ['?']\n")
    assert [problem.split(": ")[0] for problem in found] == [
        "policies.p.verbs", "policies.p.timeout", "policies.p.matches[2].rtae", "policies.p.matches[3]",
        "policies.p.matches[0].gt", "policies.p.matches[0].names", "policies.p.matches[0].action",
        "policies.p.matches[1].name"]
    assert "policies.p.matches[3]: the key name is missing: write it" in found
    assert "policies.p.matches[1].name: there is a match 'a' already: give each a name of its own" in found


def test_more_than_a_policy_can_hold(policy):
    many = [f'name = "m{number}"; match = "early talker"; action = "log"' for number in range(MAX_MATCHES + 1)]
    assert problems(policy, *many) == [
        "policies.p.matches: 65 matches, with those inherited, are more than the 64 that a policy can have: take some "
        'out, or switch inherited ones off with action = "none"']
    tried = [f'name = "m{number}"; match = "{kind}"; action = "log"' for number, kind in enumerate(
        [*["recipient-address regex"] * 5, *["mail-relay"] * 4, *["body regex"] * 8])]
    tried = [text + (';domains = "a.example"' if "relay" in text else ";regex = 'a'") for text in tried]
    assert problems(policy, *tried) == [
        "policies.p.matches: 9 matches with a regular expression for recipient-address regex are more than the 8 that "
        "a policy can have: join some with |"]
    words = [f"A{number}" for number in range(MAX_WORDS)]
    assert problems(policy, f'name = "x"; match = "cmd verb"; names = {words}; action = "log"') == [
        f"policies.p.verbs: with those of the matches, {MAX_WORDS + 12} words are more than the {MAX_WORDS} that the "
        "engine can tell apart: name fewer words"]


def test_what_just_fits_is_taken_by_the_engine(policy):
    words = [f"Q{number:03}" for number in range(MAX_WORDS)]
    long = [f"Q{letter}{'A' * (MAX_PREFIXES // 30 - 2)}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123"]
    for listed in (words, long):
        for kind in ("cmd verb", "ehlo-reply-parameter", "auth mechanism"):
            verbs = listed if kind == "cmd verb" else ["HELO"]
            base = f'policy = "p"\n[policies.p]\ninspect = "esmtp"\nverbs = {verbs}\n'
            assert rules(policy(f'name = "x"; match = "{kind}"; names = {listed}; action = "log"', base=base))
    texts = [f'name = "m{number}"; match = "header regex"; regex = "x{number}"; action = "log"' for number in range(8)]
    assert len(rules(policy(*texts))) == 8


# ---- inheritance -------------------------------------------------------------------------------------------------

FAMILY = """
policy = "p"
[policies.base]
extends = "ios-smtp"
[[policies.base.matches]]
name = "long"
match = "cmd line length"
gt = 512
names = ["MAIL"]
action = "reject"
reply = "500 5.5.2 Too long"
[[policies.base.matches]]
name = "early"
match = "early talker"
action = "rate-limit"
rate = 7
[policies.p]
extends = "base"
"""


def test_a_match_with_an_inherited_name_changes_it_where_it_stands(policy):
    found = rules(policy('name = "new"; match = "tls required"; action = "log"', 'name = "long"; gt = 600',
                         'name = "newer"; match = "auth in clear"; action = "mask"', base=FAMILY))
    assert [rule.name for rule in found] == ["new", "newer", "long", "early"]
    assert found[2] == RuleSpec("long", "cmd line length", "reject", bound=600, words=("MAIL",),
                                reply="500 5.5.2 Too long")
    assert (found[3].rate, found[3].reply) == (7, "554 5.5.0 Command sent before the greeting")


def test_what_an_inherited_match_said_of_its_former_action_or_kind_does_not_outlive_it(policy):
    long, early = rules(policy('name = "long"; action = "log"; except-names = "RCPT"',
                               'name = "early"; action = "reject"', base=FAMILY))
    assert long == RuleSpec("long", "cmd line length", "log", bound=512, words=("RCPT",), except_words=True)
    assert (early.action, early.rate) == ("reject", 0)
    long, _ = rules(policy('name = "long"; match = "declared size"; gt = 9; action = "mask"', base=FAMILY))
    assert long == RuleSpec("long", "declared size", "mask", bound=9)


def test_an_inherited_match_is_switched_off_and_on_again(policy):
    off = 'name = "long"; action = "none"'
    assert [rule.name for rule in rules(policy(off, base=FAMILY))] == ["early"]
    base = FAMILY.replace("policies.p]", "policies.q]") + match(off).replace(".p.", ".q.")
    base += '[policies.p]\nextends = "q"\n'
    again, _ = rules(policy('name = "long"; action = "reject"', base=base))
    assert (again.reply, again.bound) == ("500 5.5.2 Too long", 512)


def test_what_is_wrong_is_reported_once_and_where_it_was_written(policy):
    base = FAMILY.replace("gt = 512\n", "")
    assert problems(policy, base=base) == [
        "policies.base.matches[0].gt: cmd line length is compared with nothing: write gt = NUMBER"]
    assert problems(policy, 'name = "lnog"; action = "none"', base=FAMILY) == [
        "policies.p.matches[0].name: no match 'lnog' is inherited: did you mean 'long'?"]
    assert problems(policy, 'name = "long"; rate = 3', base=FAMILY) == [
        'policies.p.matches[0].rate: the action "reject" has no rate: take it out, or write action = "rate-limit"']


def test_of_several_the_later_changes_the_earlier(policy):
    base = FAMILY.replace('extends = "base"', 'extends = ["base", "other"]') + match(
        'name = "early"; action = "reset"; match = "early talker"').replace(".p.", ".other.") + match(
        'name = "more"; action = "reset"; match = "smuggling"').replace(".p.", ".other.") + (
        '[policies.other]\ninspect = "smtp"\nverbs = ["HELO"]\n')
    assert [(rule.name, rule.action) for rule in rules(policy(base=base))] == [
        ("more", "reset"), ("long", "reject"), ("early", "reset")]


def test_a_preset_is_changed_by_a_line(policy):
    base = 'policy = "p"\n[policies.p]\nextends = "modern"\n'
    before = {rule.name: rule for rule in rules(policy(base=base))}
    after = {rule.name: rule for rule in rules(policy('name = "auth-in-clear"; action = "mask"', base=base))}
    assert {name for name in before if before[name] != after[name]} == {"auth-in-clear"}
    assert after["auth-in-clear"].action == "mask"


# ---- what the engine is given ------------------------------------------------------------------------------------


def test_every_key_reaches_the_engine(policy):
    found = rules(policy(
        'name = "a"; match = "reply code"; codes = ["421", "45x", "5xx", "550-559"]; not = true; action = "reset"; '
        "log = false",
        'name = "b"; match = "cmd verb"; except-names = ["helo"]; action = "rate-limit"; rate = 3; dry-run = true',
        'name = "c"; match = "header regex"; regex = "^X-A: b$"; ignore-case = true; action = "allow"'))
    assert found[0] == RuleSpec("a", "reply code", "reset", negate=True, log=False,
                                codes=((421, 421), (450, 459), (500, 599), (550, 559)))
    assert found[1] == RuleSpec("b", "cmd verb", "rate-limit", dry_run=True, rate=3, words=("HELO",), except_words=True,
                                reply="502 5.5.1 This command is not allowed here")
    assert found[2].regex is not None
    text = b"A: 1\r\nx-a: B\r\nC: 3\r\n"
    assert found[2].regex.accepts[found[2].regex.step(0, text)] & MATCHED
    assert not found[2].regex.accepts[found[2].regex.step(0, text.replace(b"B", b"BC"))] & MATCHED


def test_keys_of_the_policy_reach_the_engine(policy):
    spec = compile_policy("p", policy(base=BASE + "timeout = 9\nalert = false\naudit-trail = true\ndry-run = true\n"
                                                  'offload-tls = false\nmask-banner = "modern"\n'))
    assert (spec.timeout, spec.alert, spec.audit_trail, spec.dry_run, spec.offload, spec.banner) == (
        9, False, True, True, False, "modern")
    engine.Policy(spec)


@pytest.mark.parametrize(("keywords", "names", "words", "excepted"), [
    ('["SIZE", "DSN"]', '["others"]', ("SIZE", "DSN"), True),
    ('["SIZE", "DSN"]', '["others", "dsn"]', ("SIZE",), True),
    ('["ENHANCEDSTATUSCODES", "DSN"]', '["others", "ecode"]', ("DSN",), True),
    ("[]", '["others"]', ASA_KEYWORDS, True),
    ('["SIZE"]', '["ecode", "8bitmime"]', ("ENHANCEDSTATUSCODES", "8BITMIME"), False),
])
def test_asas_names_of_keywords(policy, keywords, names, words, excepted):
    base = f'policy = "p"\n[policies.p]\ninspect = "esmtp"\nverbs = ["EHLO"]\nehlo-keywords = {keywords}\n'
    (rule,) = rules(policy(f'name = "x"; match = "ehlo-reply-parameter"; names = {names}; action = "mask"', base=base))
    assert (rule.words, rule.except_words) == (words, excepted)


@pytest.mark.parametrize(("address", "inside"), [
    (b"user@example.com", True), (b"User@EXAMPLE.com", True), (b"user@example.com.", True), (b"postmaster", True),
    (b"@relay.example,@b.example:user@example.com", True), (b"u@a.b.example.net", True), (b"u@[192.0.2.1]", True),
    (b"user@example.org", False), (b"user@xexample.com", False), (b"user@example.com.evil.org", False),
    (b'"a@example.com"@evil.org', False), (b"u@example.net", False), (b"u@192.0.2.1", False), (b"", True),
    (b"u@examplexcom", False),
])
def test_domains_of_mail_relay(address, inside):
    relay = Match(name="x", match="mail-relay", domains=("example.com", ".example.net", "[192.0.2.1]"), action="reject")
    assert list(faults(relay)) == []
    tried = automaton(relay)
    assert tried is not None
    assert bool(tried.accepts[tried.step(0, address)] & (MATCHED | MATCHES_AT_END)) is inside


@pytest.mark.parametrize(("key", "negate"), [("", True), ("; not = true", False)])
def test_mail_relay_is_about_what_is_outside(policy, key, negate):
    """The automaton is of the addresses inside, and the engine asks whether it matches."""
    (rule,) = rules(policy(f'name = "x"; match = "mail-relay"; domains = ["example.com"]; action = "reject"{key}'))
    assert rule.negate is negate


def test_an_engine_is_not_given_what_it_does_not_know():
    spec = compile_policy("p", load_preset("ios-smtp").policy_in_force)
    bad: PolicySpec = PolicySpec(**{**vars(spec), "rules": (RuleSpec("x", "no such", "log"),)})
    with pytest.raises(ValueError, match="rule x: there is no match 'no such'"):
        engine.Policy(bad)


# ---- warnings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [
    ('match = "body regex"; regex = "a*"; action = "reject"',
     "the regular expression matches everything, the empty text, too: look for a part that may be left out"),
    ('match = "body regex"; regex = "a*"; action = "reject"; not = true', "so this match, with not, never does"),
    ('match = "body regex"; regex = "a+"; action = "reject"', None),
    ('match = "cmd line length"; gt = 16384; action = "log"',
     "the engine lets no command line of more than 16384 octets pass, so this never matches"),
    ('match = "cmd line length"; gt = 16383; action = "log"', None),
    ('match = "early talker"; action = "reset"; dry-run = true', "nothing is done where this matches: it is told only"),
    ('match = "header line length"; gt = 998; action = "drop-connection"', "honest mail has such lines"),
    ('match = "header line length"; gt = 998; action = "reset"', "honest mail has such lines"),
    ('match = "header line length"; gt = 998; action = "reject"', None),
    ('match = "header line length"; gt = 100000; action = "reset"', None),
    ('match = "cmd RCPT count"; gt = 100; action = "reset"', "mailing lists send to as many recipients"),
    ('match = "tls required"; action = "reject"', "mail needs TLS here, but STARTTLS does not pass, so no mail does"),
    ('match = "tls required"; action = "log"', None),
])
def test_warnings_of_matches(tmp_path, text, expected):
    path = tmp_path / "c.toml"
    base = 'policy = "p"\n[policies.p]\nextends = "ios-esmtp"\nmask-ehlo = true\n'
    path.write_text(base + match(f'name = "x"; {text}'))
    found = [str(warning).partition("c.toml: ")[2] for warning in load(path).warnings]
    if expected is None:
        assert found == []
    else:
        (warning,) = found
        assert warning.startswith("policies.p.matches.x: ") and expected in warning


def test_tls_may_be_required_where_it_passes(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('policy = "p"\n[policies.p]\nextends = "modern"\n' + match(
        'name = "x"; match = "tls required"; action = "reject"'))
    assert [warning.key for warning in load(path).warnings] == ["policies.p.verbs"]


# ---- from the file to the octets ---------------------------------------------------------------------------------

OPENING = [(SERVER, b"220 mail.example ready\r\n"), (CLIENT, b"EHLO client.example\r\n"),
           (SERVER, b"250-mail.example\r\n250-SIZE\r\n250-XYZZY\r\n250 STARTTLS\r\n")]
SENDER = [(CLIENT, b"MAIL FROM:<a@b.example> SIZE=5\r\n"), (SERVER, b"250 fine\r\n")]

ACTS = [
    ('match = "mail-relay"; domains = ["example.com"]', b"RCPT TO:<u@example.com>", b"RCPT TO:<u@example.org>"),
    ('match = "mail-relay"; domains = ["example.com"]; not = true', b"RCPT TO:<u@b.org>", b"RCPT TO:<u@example.com>"),
    ('match = "mail-relay"; domains = [".example.com"]', b"RCPT TO:<postmaster>", b"RCPT TO:<u@example.com>"),
    ('match = "recipient-address regex"; regex = "^X"; ignore-case = true', b"RCPT TO:<ax@b>", b"RCPT TO:<x@b>"),
    ('match = "recipient-address length"; gt = 5', b"RCPT TO:<abc@d>", b"RCPT TO:<abcd@e>"),
    ('match = "cmd verb"; names = "noop"', b"HELP", b"NOOP"),
    ('match = "cmd verb"; except-names = ["noop", "mail", "ehlo"]', b"NOOP", b"HELP"),
    ('match = "cmd line length"; gt = 40', b"NOOP " + b"a" * 33, b"NOOP " + b"a" * 34),    # CRLF counts
    ('match = "cmd line length"; gt = 7; names = "HELP"', b"NOOP ab", b"HELP ab"),
    ('match = "parameter"; names = "others"', b"RCPT TO:<a@b> NOTIFY=NEVER", b"RCPT TO:<a@b> FOO=1"),
    ('match = "parameter syntax"; names = "NOTIFY"', b"RCPT TO:<a@b> NOTIFY=NEVER", b"RCPT TO:<a@b> NOTIFY=SOON"),
]


def spoken(policy, text: str, *lines: bytes) -> Wire:
    loaded = policy(f'name = "x"; {text}', base=BASE.replace("smtp", "esmtp"))
    wire = Wire(engine.Policy(compile_policy("p", loaded))).open()
    for side, octets in [*OPENING, *SENDER]:
        wire.say(side, octets)
    for line in lines:
        wire.say(CLIENT, line + b"\r\n")
        wire.say(SERVER, b"250 fine\r\n")
    return wire


@pytest.mark.parametrize(("text", "passes", "hit"), ACTS)
def test_a_match_of_a_file_acts_on_what_it_says_and_on_nothing_else(policy, text, passes, hit):
    wire = spoken(policy, f'{text}; action = "mask"', passes, hit)
    assert wire.at_server == b"EHLO client.example\r\n" + SENDER[0][1] + passes + b"\r\n" + b"X" * len(hit) + b"\r\n"


@pytest.mark.parametrize(("text", "keywords"), [
    ('names = ["xyzzy"]; action = "mask"', [b"SIZE", b"XXXXX", b"STARTTLS"]),
    ('names = ["others"]; action = "mask"', [b"SIZE", b"XXXXX", b"XXXXXXXX"]),
    ('names = ["others", "size"]; action = "remove"', []),
    ('except-names = ["size"]; action = "remove"', [b"SIZE"]),
])
def test_asas_others_on_the_wire(policy, text, keywords):
    wire = spoken(policy, f'match = "ehlo-reply-parameter"; {text}')
    reply = wire.at_client.split(b"\r\n")[2:-2]
    assert [line[4:] for line in reply] == keywords


def test_a_refusal_says_its_own_reply(policy):
    text = 'match = "cmd verb"; names = "HELP"; action = "reject"; reply = "550 5.7.1 Ask a human"'
    wire = spoken(policy, text, b"HELP")
    assert wire.at_client.endswith(b"\r\n550 5.7.1 Ask a human\r\n") and b"HELP" not in wire.at_server
