"""The configuration: presets as the documents describe them, inheritance, every mistake with its place and remedy."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from nfqguard.policy.compile import compile_policy
from nfqguard.policy.load import ConfigError, Configuration, default_policy, load, load_preset, preset_names
from nfqguard.policy.model import Deployment, Engine, Exceptions, Policy
from nfqguard.policy.problem import Problem

ROOT = Path(__file__).resolve().parent.parent
SMTP = {"DATA", "HELO", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "SAML", "SEND", "SOML", "VRFY"}
ESMTP = SMTP | {"AUTH", "EHLO", "ETRN"}
ASA_KEYWORDS = {"8BITMIME", "AUTH", "BINARYMIME", "DSN", "ENHANCEDSTATUSCODES", "ETRN", "PIPELINING", "SIZE", "VRFY",
                "CHECKPOINT", "HELP"}
MODERN_KEYWORDS = ASA_KEYWORDS | {"STARTTLS", "CHUNKING", "SMTPUTF8", "REQUIRETLS", "LIMITS", "DELIVERBY",
                                  "FUTURERELEASE", "MT-PRIORITY"}


@pytest.fixture
def write(tmp_path):
    """Write the main file (and drop-ins by name) and return its path."""
    def _write(text: str, **dropins: str) -> Path:
        path = tmp_path / "nfqguard.toml"
        path.write_text(text)
        (tmp_path / "conf.d").mkdir(exist_ok=True)
        for name, content in dropins.items():
            (tmp_path / "conf.d" / f"{name}.toml").write_text(content)
        return path
    return _write


def problems(path: Path) -> list[str]:
    """Every mistake, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return [str(problem).replace(f"{path.parent}/", "") for problem in caught.value.problems]


def warned(configuration: Configuration) -> list[str]:
    return [str(warning).rpartition("/")[2] for warning in configuration.warnings]


# ---- presets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "verbs", "keywords", "banner", "max_data", "timeout"), [
    ("ios-smtp", SMTP, set(), "pass", 20_000_000, 3600),
    ("ios-esmtp", ESMTP, set(), "pass", 20_000_000, 3600),
    ("asa", ESMTP, ASA_KEYWORDS, "asa", 0, 0),
    ("mailguard", {"DATA", "HELO", "MAIL", "NOOP", "QUIT", "RCPT", "RSET"}, set(), "asa", 0, 0),
    ("modern", ESMTP | {"BDAT", "STARTTLS"}, MODERN_KEYWORDS, "modern", 0, 0),
])
def test_presets_are_what_the_documents_say(name, verbs, keywords, banner, max_data, timeout):
    configuration = load_preset(name)
    spec = compile_policy(configuration.policy, configuration.policy_in_force)
    assert spec.name == name
    assert len(spec.verbs) == len(verbs) and set(spec.verbs) == verbs
    assert len(spec.keywords) == len(keywords) and set(spec.keywords) == keywords
    assert spec.mask_verbs is True
    assert spec.mask_keywords is bool(keywords)
    assert (spec.banner, spec.max_data, spec.timeout) == (banner, max_data, timeout)
    assert (spec.alert, spec.audit_trail, spec.dry_run) == (True, False, False)
    answer = "reset" if name == "modern" else "drop"
    assert spec.exceptions == {**dict.fromkeys(("midstream", "gap", "memory", "unparsable"), answer),
                               "truncated": "drop"}


def rows(name: str) -> list[tuple[object, ...]]:
    """(match, threshold, words, are they exceptions, action, reply) of each rule of a preset, in order."""
    spec = compile_policy(name, load_preset(name).policy_in_force)
    return [(rule.match, rule.bound, " ".join(rule.words), rule.except_words, rule.action, rule.reply) for rule in
            spec.rules]


def row(match: str, action: str = "log", bound: int = 0, words: str = "", excepted: bool = False,
        reply: str = "") -> tuple[object, ...]:
    return (match, bound, words, excepted, action, reply)


ANOMALIES = [row("cmd verb length", bound=4), row("wrong termination"), row("pipelined command"),
             row("truncated command"), row("unexpected reply")]


def test_the_matches_of_asa_are_its_default_map_in_its_order():
    assert rows("asa") == [
        row("cmd line length", "drop-connection", 512), row("cmd RCPT count", "drop-connection", 100),
        row("body line length", "log", 998), row("header line length", "drop-connection", 998),
        row("sender-address length", "drop-connection", 320), row("mime filename length", "drop-connection", 255),
        *ANOMALIES, row("special-character", "reset"), row("size exceeded"), row("smuggling"), row("bare newline")]


def test_the_matches_of_the_older_presets():
    assert rows("mailguard") == [*ANOMALIES, row("special-character", "replace")]
    assert rows("ios-smtp") == []
    assert rows("ios-esmtp") == [row("parameter syntax", words="AUTH BODY ENVID NOTIFY ORCPT RET SIZE")]


def test_the_matches_of_modern():
    too_long = "500 5.5.2 Line too long"
    assert sorted(rows("modern")) == sorted([
        row("cmd line length", "reject", 2048, "AUTH", True, too_long),
        row("cmd line length", "reject", 12288, "AUTH", False, too_long),
        row("cmd line length", "log", 512, "AUTH", True),
        row("wrong termination", "replace"), row("truncated command"),
        row("pipelined command", words="AUTH DATA EHLO EXPN HELO NOOP QUIT STARTTLS TURN VRFY"),
        row("early talker"), row("unexpected reply"), row("silent server"),
        row("cmd RCPT count", "reject", 1000, reply="452 4.5.3 Too many recipients"), row("cmd RCPT count", bound=100),
        row("sender-address length", "reject", 320, reply="553 5.1.7 Sender address too long"),
        row("special-character", "reject", reply="553 5.1.3 Character not allowed in an address"),
        row("starttls injection", "reset"), row("starttls stripped"), row("tls started"), row("auth in clear"),
        row("smuggling", "replace"), row("bare newline", "replace"),
        row("header line length", bound=998), row("body line length", bound=998),
        row("mime filename length", bound=255), row("size exceeded"),
    ])


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_an_ordinary_policy_file(name, tmp_path):
    copy = tmp_path / "copy.toml"
    copy.write_bytes((ROOT / "nfqguard/policy/presets" / f"{name}.toml").read_bytes())
    assert load(copy).policy_in_force == load_preset(name).policy_in_force
    assert load(copy).policy == name


def test_a_preset_that_is_not_there():
    with pytest.raises(ConfigError, match=r"^preset ios-esmpt: there is no such preset: did you mean 'ios-esmtp' or"):
        load_preset("ios-esmpt")
    with pytest.raises(ConfigError, match=r"there is no such preset: known are asa, ios-esmtp, ios-smtp, mailguard, m"):
        load_preset("zzz")


# ---- defaults ----------------------------------------------------------------------------------------------------


def test_an_empty_file_is_a_configuration(write):
    configuration = load(write(""))
    assert configuration.policy == default_policy()
    assert configuration.deployment == Deployment()
    assert configuration.events.file == "/var/log/nfqguard/eve.json"
    assert list(configuration.policies) == [default_policy()]


def test_everything_is_closed_by_default():
    assert {answer for _, answer in Exceptions()} == {"drop"}
    assert (Deployment().on_absent, Deployment().on_overload, Engine().binding) == ("drop", "drop", "strict")
    assert Policy().mask_verbs is True


def test_engine_defaults_are_those_of_the_header():
    header = (ROOT / "csrc/nq.h").read_text()
    for name, value in Engine():
        if name != "binding":
            define = re.search(rf"#define NQ_{name.upper()}\s+\(?(\d+)u?(?: << (\d+)\))?", header)
            assert define, name
            assert value == int(define[1]) << int(define[2] or 0), name


# ---- inheritance -------------------------------------------------------------------------------------------------


def test_what_is_written_wins_and_exceptions_are_merged(write):
    configuration = load(write("""
        policy = "mail"
        [policies.base]
        extends = "asa"
        max-data = 5
        exceptions.gap = "reset"
        [policies.mail]
        extends = "base"
        verbs = ["helo", "EHLO", "quit", "QUIT"]
        mask-banner = "none"
        exceptions.memory = "reset"
    """))
    mail = configuration.policies["mail"]
    assert configuration.policy_in_force is mail
    assert mail.verbs == ("HELO", "EHLO", "QUIT")
    assert mail.max_data == 5
    assert mail.mask_banner == "none"
    assert set(mail.ehlo_keywords) == ASA_KEYWORDS
    assert dict(mail.exceptions) == {"midstream": "drop", "gap": "reset", "memory": "reset", "unparsable": "drop",
                                     "truncated": "drop"}
    spec = compile_policy("mail", mail)
    assert (spec.banner, spec.mask_keywords, spec.exceptions["gap"]) == ("pass", True, "reset")


def test_of_several_the_later_wins(write):
    text = 'policy = "mail"\n[policies.mail]\nextends = ["asa", "ios-esmtp"]\n'
    mail = load(write(text)).policy_in_force
    assert (mail.mask_ehlo, mail.mask_banner, mail.max_data) == (False, "none", 20_000_000)


def test_a_preset_can_be_changed_under_its_own_name(write):
    configuration = load(write('policy = "asa"\n[policies.asa]\nextends = "asa"\nmask-banner = "none"\n'))
    assert configuration.policy_in_force.mask_banner == "none"
    assert configuration.policy_in_force.mask_ehlo is True


def test_dropins_are_merged_in_order(write):
    configuration = load(write(
        'policy = "mail"\n[policies.mail]\nextends = "asa"\nmax-data = 1\n[deployment]\nports = [25, 587]\n',
        b='[policies.mail]\nmax-data = 3\n', a='[policies.mail]\nmax-data = 2\nmask-banner = "none"\n'))
    assert (configuration.policy_in_force.max_data, configuration.policy_in_force.mask_banner) == (3, "none")
    assert configuration.deployment.ports == (25, 587)
    assert [Path(file).name for file in configuration.files] == ["nfqguard.toml", "a.toml", "b.toml"]


# ---- SMTP or ESMTP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [
    'inspect = ["smtp", "esmtp"]\nverbs = ["HELO"]',
    'extends = ["ios-smtp", "ios-esmtp"]',
    'extends = "ios-esmtp"\ninspect = "smtp"',
    'extends = "asa"\ninspect = "smtp"',
])
def test_smtp_and_esmtp_at_once_is_an_error(write, written):
    (problem,) = problems(write(f'policy = "mail"\n[policies.mail]\n{written}\n'))
    assert problem.startswith("nfqguard.toml: policies.mail: SMTP and ESMTP inspection cannot be asked for at once: "
                              "policy 'mail' asks for esmtp by ")
    assert problem.endswith(": keep one of them")


def test_smtp_with_ehlo_is_the_same_error(write):
    (problem,) = problems(write('policy = "mail"\n[policies.mail]\ninspect = "smtp"\nverbs = ["HELO", "EHLO"]\n'))
    assert problem == ("nfqguard.toml: policies.mail.verbs: SMTP and ESMTP inspection cannot be asked for at once: "
                       "inspect "
                       "is smtp, but EHLO, which opens ESMTP, is among the verbs: write inspect = \"esmtp\" or take "
                       "EHLO "
                       "out")


# ---- mistakes ----------------------------------------------------------------------------------------------------


MISTAKES = [
    ("nonsense = 1", "nonsense: there is no such key: known are classes, deployment, engine, events, "
     "network, policies, policy"),
    ("polcy = 'asa'", "polcy: there is no such key: did you mean 'policy' or 'policies'?"),
    ("policy = 'ass'", "policy: there is no policy or preset 'ass': did you mean 'asa'?"),
    ("policy = 3", "policy: 3 is not what is needed: give a text in quotes"),
    ("engine = 3", "engine: 3 is not what is needed: give a table"),
    ("[policies.x]\nextends = 'asa'\nmask_banner = 'none'",
     "policies.x.mask_banner: there is no such key: did you mean 'mask-banner' or 'mask-verbs' or 'mask-ehlo'?"),
    ("[policies.x]\nextends = 'ios-smpt'",
     "policies.x.extends: there is no policy or preset 'ios-smpt': did you mean 'ios-smtp' or 'ios-esmtp'?"),
    ("[policies.x]\nextends = 'x'",
     "policies.x.extends: policy 'x' extends itself: take its own name out of extends"),
    ("[policies.x]\nextends = 'y'\n[policies.y]\nextends = 'x'",
     "policies.x.extends: policies extend each other in a circle: x -> y -> x: let one of them extend nothing, or a "
     "preset"),
    ("[policies.x]\nmax-data = 1",
     "policies.x: policy 'x' neither inspects nor extends anything: write inspect = \"smtp\" or \"esmtp\", or extends "
     "= "
     "\"ios-esmtp\""),
    ("[policies.x]\ninspect = 'esmtp'",
     "policies.x.verbs: no verb is allowed, so every command would become X: name the verbs, or write mask-verbs = "
     "false"),
    ("[policies.'a b']\nextends = 'asa'",
     "policies.a b: this cannot be a policy's name: use 1 to 31 letters, digits, and _ . - (not first)"),
    ("[policies.x]\nextends = 'asa'\nverbs = ['A B']",
     "policies.x.verbs: 'A B': a word has 1 to 31 letters, digits and hyphens, and begins with no hyphen"),
    ("[policies.x]\nextends = 'asa'\nmask-verbs = 1",
     "policies.x.mask-verbs: 1 is not what is needed: give true or false"),
    ("[policies.x]\nextends = 'asa'\nmask-banner = 'pix'",
     "policies.x.mask-banner: 'pix' is not known: give 'none', 'asa', 'modern' or 'text'"),
    ("[policies.x]\nextends = 'asa'\nmax-data = -1", "policies.x.max-data: -1 is too small: give at least 0"),
    ("[policies.x]\nextends = 'asa'\n[policies.x.exceptions]\ngap = 'ignore'",
     "policies.x.exceptions.gap: 'ignore' is not known: give 'drop', 'reset' or 'pass'"),
    ("[policies.x]\nextends = 'asa'\n[policies.x.exceptions]\nhole = 'drop'",
     "policies.x.exceptions.hole: there is no such key: known are gap, memory, midstream, truncated, unparsable"),
    ("[deployment]\nports = [25, 70000]", "deployment.ports[1]: 70000 is too large: give at most 65535"),
    ("[deployment]\nports = 25", "deployment.ports: 25 is not what is needed: give a list in brackets"),
    ("[deployment]\nexempt = ['10.1.2.3/8']",
     "deployment.exempt[0]: '10.1.2.3/8' is not what is needed: give a network such as 192.0.2.0/24 or 2001:db8::/32, "
     "without host bits"),
    ("[deployment]\nconnmark-mask = 5",
     "deployment: connmark-mask 0x5 has a hole between its bits: give one run of adjacent bits, such as 0xf000000"),
    ("[deployment]\nconnmark-mask = 0x300\nqueue-count = 4",
     "deployment: connmark-mask 0x300 counts to 3, too small for queue-count 4: give it more bits or use fewer queues"),
    ("[deployment]\nqueue-first = 65530\nqueue-count = 8",
     "deployment: queue-first 65530 and queue-count 8 pass the last queue, 65535: lower one of them"),
    ("[deployment]\nchain = '9'", "deployment.chain: '9' does not fit: it has to match ^[A-Za-z][A-Za-z0-9_-]{0,23}$"),
    ("[engine]\nevents = 1000", "engine: events 1000 is no power of two: write 512 or 1024"),
    ("[engine]\nheld = 10", "engine: held-per-flow 256 is above held 10: raise held"),
    ("[engine]\nflows = 'many'", "engine.flows: 'many' is not what is needed: give a whole number"),
    ("[events]\nfile = ''", "events.file: the text is empty: give a value or leave the key out"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_each_mistake_has_a_place_and_a_remedy(write, text, expected):
    assert problems(write(text)) == [f"nfqguard.toml: {expected}"]


def test_all_mistakes_at_once_each_with_its_own_file(write):
    found = problems(write("policy = 'nobody'\n[deployment]\nports = [0]\n[policies.x]\nextends = 'nothing'\n",
                           a="[engine]\nflows = 1\n", b="[policies.x]\nverbs = ['?']\n", c="x = [1,\n"))
    assert found == [
        "conf.d/c.toml:2:1: this is no valid TOML (Invalid value): correct the syntax here",
        "conf.d/b.toml: policies.x.verbs: '?': a word has 1 to 31 letters, digits and hyphens, and begins with no "
        "hyphen",
        "nfqguard.toml: deployment.ports[0]: 0 is too small: give at least 1",
        "conf.d/a.toml: engine.flows: 1 is too small: give at least 16",
        "nfqguard.toml: policies.x.extends: there is no policy or preset 'nothing': known are asa, ios-esmtp, "
        "ios-smtp, mailguard, modern",
        "nfqguard.toml: policy: there is no policy or preset 'nobody': known are asa, ios-esmtp, ios-smtp, "
        "mailguard, modern, x",
    ]


def test_syntax_errors_have_line_and_column(write):
    assert problems(write("policy = 'asa'\nports == 3\n")) == [
        "nfqguard.toml:2:8: this is no valid TOML (Invalid value): correct the syntax here"]


def test_a_file_that_is_not_text(write):
    path = write("")
    path.write_bytes(b"# fine\npolicy = '\xff'\n")
    assert problems(path) == ["nfqguard.toml:2: this is not UTF-8 text: save the file as UTF-8"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.toml")
    assert str(caught.value) == (f"{tmp_path}/none.toml: cannot be read (No such file or directory): give a file that "
                                 f"can "
                                 "be read")
    assert caught.value.warnings == ()


def test_too_many_words(write):
    words = ", ".join(f"'{number:05d}'" for number in range(2000))
    (problem,) = problems(write(f"[policies.x]\nextends = 'asa'\nverbs = [{words}]\n"))
    assert re.search(r"policies.x.verbs: the words have \d+ different prefixes, more than the 900 that the engine can "
                     r"tell apart: name fewer words$", problem)


# ---- warnings ----------------------------------------------------------------------------------------------------


def test_warnings(write):
    configuration = load(write("""
        [policies.mail]
        extends = "ios-esmtp"
        mask-banner = "asa"
        [policies.mail.exceptions]
        midstream = "pass"
        gap = "reset"
        [deployment]
        ports = [25, 465]
        on-absent = "accept"
        on-overload = "accept"
    """))
    offers = [
        "BDAT becomes X, but the server may offer CHUNKING in its EHLO reply, so mail that is sent with BDAT will "
        "fail: mask "
        "CHUNKING (mask-ehlo = true, and not among ehlo-keywords) or turn it off in the server",
        "STARTTLS becomes X, but the server may offer STARTTLS in its EHLO reply, so mail of clients that insist on "
        "TLS "
        "will fail, and all other mail stays in clear: mask STARTTLS (mask-ehlo = true, and not among ehlo-keywords) "
        "or "
        "turn it off in the server",
    ]
    assert warned(configuration) == [
        "nfqguard.toml: policy: policies are defined, but none is chosen, so the preset 'modern' is in force: write "
        'policy = "mail"',
        "nfqguard.toml: policies.mail.mask-banner: Postfix takes such a greeting for a PIX: its clients fall back to "
        "HELO, "
        "without TLS, and may pause before the final dot (smtp_pix_workarounds): write mask-banner = \"modern\" or "
        "\"none\" unless that is wanted",
        *(f"nfqguard.toml: policies.mail.verbs: {offer}" for offer in offers),
        "nfqguard.toml: policies.mail.exceptions.midstream: what cannot be judged passes uninspected, and so does "
        "the rest of its flow: write drop or reset to close this",
        f"preset modern: policies.modern.verbs: {TLS}",
        "nfqguard.toml: deployment.ports: on port 465 TLS begins with the first octet: nothing there can be "
        "inspected, and "
        "masking breaks it: take 465 out of ports",
        "nfqguard.toml: deployment.on-absent: while no process is bound to the queue, mail passes uninspected: write "
        'on-absent = "drop" to close this',
        "nfqguard.toml: deployment.on-overload: while the queue is full, mail passes uninspected: write "
        'on-overload = "drop" to close this',
    ]


def test_what_is_masked_or_allowed_is_not_warned_of(write):
    assert warned(load(write(ASA_QUIET))) == []
    assert warned(load_preset("ios-smtp")) == []


ASA_QUIET = """
policy = "m"
[policies.m]
extends = "asa"
mask-banner = "none"
[[policies.m.matches]]
name = "many-recipients"
action = "reject"
[[policies.m.matches]]
name = "long-header-line"
action = "log"
"""
"""ASA's map without what `check` warns of."""

TLS = ("STARTTLS passes: nothing behind it is inspected, for it is encrypted: let clients have TLS, or take STARTTLS "
       "out of verbs and ehlo-keywords, which keeps mail in clear")


@pytest.mark.parametrize(("policy", "expected"), [
    ('extends = "ios-esmtp"\nmask-verbs = false', [f"verbs: {TLS}"]),
    ('extends = "modern"', [f"verbs: {TLS}"]),
    ('extends = "modern"\ndry-run = true', [
        "dry-run: nothing is changed and nothing is stopped: events say what would have been: write dry-run = false "
        "once they say what you want", f"verbs: {TLS}"]),
    ('extends = "modern"\nehlo-keywords = ["STARTTLS"]', [
        "ehlo-keywords: BDAT is among the verbs, but no client reads that the server offers CHUNKING, so none uses it: "
        "add CHUNKING to ehlo-keywords, or take BDAT out of verbs", f"verbs: {TLS}"]),
    ('extends = "modern"\nverbs = ["EHLO", "BDAT", "DATA"]', [
        "verbs: STARTTLS becomes X, but the server may offer STARTTLS in its EHLO reply, so mail of clients that "
        "insist on TLS will fail, and all other mail stays in clear: mask STARTTLS (mask-ehlo = true, and not among "
        "ehlo-keywords) or turn it off in the server"]),
    ('inspect = "smtp"\nverbs = ["HELO", "STARTTLS"]', []),
])
def test_words_that_do_not_go_together_are_warned_of(write, policy, expected):
    found = warned(load(write(f'policy = "m"\n[policies.m]\n{policy}\n')))
    assert found == [f"nfqguard.toml: policies.m.{line}" for line in expected]


def test_warnings_come_with_mistakes(write):
    with pytest.raises(ConfigError) as caught:
        load(write("nonsense = 1\n[deployment]\nports = [465]\n"))
    assert any("on port 465" in str(warning) for warning in caught.value.warnings)


def test_a_problem_reads_well_without_key_and_remedy():
    assert str(Problem("f", "", "text")) == "f: text"
    assert str(Problem("f", "a.b", "text", "remedy")) == "f: a.b: text: remedy"
