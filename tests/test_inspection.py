"""What hostile clients and servers have tried: chunks that are counted otherwise than the server counts them, messages
and transactions that end elsewhere than they seem to, and rules that only try."""
from __future__ import annotations

import pytest
from wire import CLIENT, SERVER, End, Wire, play, preset_spec

from nfqguard.engine import Policy
from nfqguard.policy.compile import RuleSpec
from nfqguard.policy.regex import compile_regex
from nfqguard.report.event import EventType

C, S = CLIENT, SERVER
EHLO = b"250-mx.example\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 STARTTLS\r\n"
START = [(S, b"220 mx.example ESMTP\r\n"), (C, b"EHLO c\r\n"), (S, EHLO)]
OPEN = [*START, (C, b"MAIL FROM:<a@b.c>\r\nRCPT TO:<d@e.f>\r\n"), (S, b"250 ok\r\n250 ok\r\n")]
STEPS = pytest.mark.parametrize("step", [0, 1, 3])


def ruled(*rules: RuleSpec, base: str = "ios-esmtp", **changes: object) -> Policy:
    return Policy(preset_spec(base, rules=rules, **changes))


def names(wire: Wire) -> list[str]:
    return [event.rule.name for event in wire.events if event.rule]


# ---- BDAT ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [6, 7, 8])
def test_a_chunk_whose_number_has_left_is_not_masked_but_ends(left):
    """sscanf() reads 100 out of "100X", and the server would count octets where commands are heard."""
    wire = play([*OPEN, (C, b"BDAT 100X\r\nNOOP\r\n")], "modern", {5: (left,)})
    assert wire.at_server.endswith(b"BDAT 100X"[:left]) and wire.ends[S].reset


@STEPS
@pytest.mark.parametrize("size", [b"2147483648", b"4294967306", b"18446744073709551626"])
def test_a_chunk_that_32_bits_do_not_hold_is_none(size, step):
    """4294967306 is 10 to a server that reads an unsigned int, and what stands behind would be commands."""
    wire = play([*OPEN, (C, b"BDAT " + size + b"\r\n0123456789EXPN root\r\nEXPN a\r\n")], "modern", step=step)
    assert b"EXPN" not in wire.at_server and (wire.ends[S].reset or size not in wire.at_server)


@STEPS
@pytest.mark.parametrize("line", [b"NOOP x\nBDAT 11\r\n", b"BDAT 11\n", b"BDAT 11 LAST\n"])
def test_no_chunk_where_lines_may_end_elsewhere(line, step):
    """A server that wants CRLF sees no BDAT here, and would read the chunk as commands."""
    wire = play([*OPEN, (C, line + b"EXPN root\r\nEXPN a\r\n")], "modern", step=step)
    assert b"EXPN" not in wire.at_server


@STEPS
def test_a_server_that_has_replied_to_a_bare_lf_may_be_sent_chunks(step):
    dialogue = [*START, (C, b"MAIL FROM:<a@b>\n"), (S, b"250 ok\r\n"), (C, b"RCPT TO:<a@b>\n"), (S, b"250 ok\r\n"),
                (C, b"BDAT 8 LAST\r\nEXPN a\r\n"), (S, b"250 ok\r\n")]
    assert play(dialogue, "modern", step=step).at_server.endswith(b"BDAT 8 LAST\r\nEXPN a\r\n")


MESSAGE = b"Subject: SECRET\r\n\r\nx\r\n"
CHUNK = b"BDAT %d LAST\r\n" % len(MESSAGE) + MESSAGE
SECRET = RuleSpec("secret", "header regex", "log", regex=compile_regex("SECRET", ignore_case=False, lines=True))
AGAIN = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"


@pytest.mark.parametrize("step", [0, 7, 11])
@pytest.mark.parametrize("before", [
    [*START, (C, b"BDAT 2\r\n\r\n"), (S, b"503 no\r\n"), (C, AGAIN), (S, b"250 ok\r\n" * 2), (C, CHUNK)],
    [*START, (C, b"BDAT 2\r\n\r\n" + AGAIN + CHUNK), (S, b"503 no\r\n"), (S, b"250 ok\r\n"), (S, b"250 ok\r\n")],
    [*OPEN, (C, b"BDAT 2\r\n\r\n"), (S, b"250 ok\r\n"), (C, b"RSET\r\n" + AGAIN + CHUNK), (S, b"250 ok\r\n"),
     (S, b"250 ok\r\n" * 2)],
    [*OPEN, (C, b"BDAT 2\r\n\r\n"), (S, b"250 ok\r\n"), (C, b"EHLO d\r\n" + AGAIN + CHUNK), (S, EHLO)],
], ids=["refused", "refused-later", "rset", "ehlo"])
def test_a_message_does_not_hide_behind_one_that_was_given_up(before, step):
    """The octets of the first one end a header: what comes behind them would be read as a body."""
    wire = play(before, ruled(SECRET, base="modern"), step=step)
    assert names(wire) == ["secret"] and wire.at_server.endswith(CHUNK)


def test_a_reply_to_rset_in_the_middle_of_a_chunk_begins_no_message():
    wire = play([*START, (C, b"RSET\r\n" + AGAIN + b"BDAT 9\r\nSubje"), (S, b"250 ok\r\n" * 3), (C, b"ct: "),
                 (S, b"250 ok\r\n"), (C, b"BDAT 10 LAST\r\nSECRET\r\n\r\n"), (S, b"250 ok\r\n")],
                ruled(SECRET, base="modern"))
    assert names(wire) == ["secret"] and wire.counter("messages") == 1


# ---- recipients ----------------------------------------------------------------------------------------------------


def few(action: str) -> RuleSpec:
    return RuleSpec("few", "cmd RCPT count", action, bound=2)  # type: ignore[arg-type]


@STEPS
def test_each_recipient_beyond_the_bound_is_masked(step):
    dialogue = [*START, (C, b"MAIL FROM:<a@b>\r\n"), (S, b"250 ok\r\n"),
                *[(C, b"RCPT TO:<a@b>\r\n"), (S, b"250 ok\r\n")] * 5]
    assert play(dialogue, ruled(few("mask")), step=step).at_server.count(b"RCPT TO") == 2


@STEPS
def test_a_mail_within_a_transaction_begins_no_count_anew(step):
    group = b"MAIL FROM:<a@b>\r\n" + b"RCPT TO:<a@b>\r\n" * 2
    wire = play([*START, (C, group * 4)], ruled(few("reset")), step=step)
    assert wire.at_server.count(b"RCPT TO:<a@b>\r\n") <= 2 and wire.ends[S].reset
    honest = play([*START, (C, group), (S, b"250 ok\r\n" * 3), (C, b"RSET\r\n" + group)], ruled(few("reset")),
                  step=step)
    assert honest.at_server.count(b"RCPT") == 4 and not honest.ends[S].reset


@STEPS
def test_a_count_is_told_once_of_each_transaction(step):
    group = b"MAIL FROM:<a@b>\r\n" + b"RCPT TO:<a@b>\r\n" * 4
    wire = play([*START, (C, group), (S, b"250 ok\r\n" * 5), (C, b"RSET\r\n" + group), (S, b"250 ok\r\n" * 6)],
                ruled(few("log")), step=step)
    assert names(wire) == ["few", "few"]


# ---- rules that only try, rules that allow -------------------------------------------------------------------------


@STEPS
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("action", ["mask", "reset", "drop-connection", "reject", "rate-limit", "allow"])
@pytest.mark.parametrize("words", [("EXPN",), ("QUIT",)])
def test_a_dry_run_of_a_rule_changes_nothing(action, words, whole, step):
    """A rule that ended the flow in a dry run was asked of the same octet for ever."""
    rule = RuleSpec("try", "cmd verb", action, dry_run=True, rate=1, words=words, except_words=words == ("QUIT",),
                    reply="500 no")
    dialogue = [*START, (C, b"EXPN a\r\nTURN\r\nNOOP\r\n"), (S, b"500 no\r\n" * 3)]
    bare, tried = (play(dialogue, ruled(*rules, dry_run=whole), step=step) for rules in ((), (rule,)))
    assert tried.at_client == bare.at_client and len(tried.at_server) == len(bare.at_server)
    assert tried.at_server == bare.at_server or step  # a verb that a rule names is known at another letter
    assert whole or (b"EXPN" not in tried.at_server and b"TURN" not in tried.at_server)
    assert any(event.dry_run and event.rule and event.rule.name == "try" for event in tried.events) or action == "allow"


@STEPS
@pytest.mark.parametrize("line", [b"NO\0OP x\r\n", b"\0\r\n", b"MAIL FROM:<a\0b\0>\0\r\n", b"MAIL\0 FROM:<a>\r\n",
                                  b"NO\rOP\r\n", b"\rX\0\r\n", b"BDAT \0\r\n", b"EHLO \0\r\n"])
@pytest.mark.parametrize("base", ["modern", "ios-smtp", "asa"])
def test_a_dry_run_lets_what_no_command_may_hold_pass(base, line, step):
    """It was asked of the same octet for ever."""
    dialogue = [*START, (C, line), (S, b"500 no\r\n"), (C, b"NOOP\r\n"), (S, b"250 ok\r\n")]
    wire = play(dialogue, Policy(preset_spec(base, dry_run=True)), step=step)
    assert wire.at_server.endswith(line + b"NOOP\r\n") and not wire.ends[S].reset


@pytest.mark.parametrize("action", ["mask", "remove", "reset", "drop-connection"])
def test_a_dry_run_on_a_keyword_changes_nothing(action):
    rule = RuleSpec("try", "ehlo-reply-parameter", action, dry_run=True, words=("OTHERS",))
    for step in (0, 1):
        bare, tried = (play(START, ruled(*rules, base="asa"), step=step) for rules in ((), (rule,)))
        assert tried.at_client == bare.at_client


@STEPS
@pytest.mark.parametrize("rule", [
    RuleSpec("them", "cmd verb", "allow", log=False, words=("BDAT", "STARTTLS")),
    RuleSpec("all", "cmd verb", "allow", log=False, words=("EXPN",), except_words=True),
    RuleSpec("not", "cmd verb", "allow", log=False, words=("EXPN",), negate=True)], ids=lambda rule: rule.name)
def test_a_verb_that_a_rule_allows_is_known_for_what_it_is(rule, step):
    policy = ruled(rule)
    chunk = play([*OPEN, (C, b"BDAT 8\r\nEXPN a\r\nEXPN b\r\n")], policy, step=step).at_server
    assert b"BDAT 8\r\nEXPN a\r\n" in chunk and b"EXPN b" not in chunk
    hello = b"\x16\x03\x01\0\x10\x01\r\n\0X"
    dialogue = [*START, (C, b"STARTTLS\r\n"), (S, b"220 go\r\n"), (C, hello)]
    assert play(dialogue, policy, step=step).at_server.endswith(hello)


# ---- replies, secrets ----------------------------------------------------------------------------------------------


def test_a_client_that_was_turned_away_and_says_quit_is_no_early_talker():
    wire = play([(S, b"421 busy\r\n"), (C, b"QUIT\r\n"), (S, b"221 bye\r\n")], "modern")
    assert not names(wire) and wire.at_server == b"QUIT\r\n"


@STEPS
def test_a_masked_line_of_an_auth_exchange_is_told_without_its_octets(step):
    rule = RuleSpec("long", "cmd line length", "mask", bound=20, words=("AUTH",))
    wire = play([*START, (C, b"AUTH LOGIN\r\n"), (S, b"334 x\r\n"), (C, b"A" * 30 + b"\r\n"), (S, b"500 x\r\n")],
                ruled(rule), step=step)
    told = [event for event in wire.events if event.type is EventType.MASK_COMMAND]
    assert [(event.length, event.text, event.after) for event in told] == [(30, b"", b"")]


# ---- what is told, and what is not -----------------------------------------------------------------------------------


@STEPS
@pytest.mark.parametrize("preset", ["ios-smtp", "ios-esmtp", "asa", "modern"])
def test_no_secret_of_a_refused_login_is_told(preset, step):
    """A client may go on with AUTH though the server, or the mask, has refused it."""
    secrets = [b"c2VjcmV0", b"cGFzcw", b"TlRMTVNTUAAB"]
    said = [(C, b"AUTH LOGIN\r\n"), (C, secrets[0] + b"\r\n"), (C, secrets[1] + b"\r\n"),
            (C, b"X-EXPS NTLM " + secrets[2] + b"\r\n")]
    wire = play([(S, b"220 mx ESMTP\r\n"), *(turn for line in said for turn in (line, (S, b"500 no\r\n")))], preset,
                step=step)
    told = b" ".join(event.text + b" " + event.after for event in wire.events)
    assert not [secret for secret in secrets if secret in told]
    assert [event.text for event in wire.events].count(b"[redacted]") == 2


@STEPS
@pytest.mark.parametrize("changes", [{"dry_run": True}, {"mask_verbs": False}])
def test_a_blank_before_a_verb_that_passes_hides_nothing(changes, step):
    wire = play([*START, (C, b"  MAIL FROM:<a@b>\r\n"), (S, b"250 ok\r\n"), (C, b"\tRCPT TO:<a@b>\r\n"),
                 (S, b"250 ok\r\n"), (C, b" \tDATA\r\n"), (S, b"354 go\r\n"), (C, b"a\nb\r\n.\r\n"),
                 (S, b"250 ok\r\n")], Policy(preset_spec("modern", **changes)), step=step)
    assert wire.counter("messages") == 1
    assert "bare-newline" in names(wire)


@STEPS
def test_a_dry_run_tells_the_octets_before_and_after_and_changes_none(step):
    policy = Policy(preset_spec("modern", dry_run=True))
    said = [*OPEN, (C, b"DATA\r\n"), (S, b"354 go\r\n"), (C, b"a\nb\r\n.\r\nEXPN x\r\n"), (S, b"250 ok\r\n500 no\r\n")]
    wire = play(said, policy, step=step)
    assert wire.at_server == b"".join(octets for side, octets in said if side == C)
    assert wire.at_client == b"".join(octets for side, octets in said if side == S)
    newline = next(event for event in wire.events if event.rule and event.rule.name == "bare-newline")
    assert (newline.text, newline.after, newline.dry_run) == (b"\n", b" ", True)
    mask = next(event for event in wire.events if event.type is EventType.MASK_COMMAND)
    assert (mask.text, mask.after, mask.dry_run) == (b"EXPN x", b"XXXXXX", True)


def test_a_reply_that_nothing_asked_for_counts_as_a_reply():
    wire = play([*START, (S, b"250 unasked\r\n")], "ios-esmtp")
    assert [event.type for event in wire.events] == [EventType.TRANSITION]
    assert (wire.counter("commands"), wire.counter("replies")) == (1, 6)


def test_an_end_tells_its_own_measure_and_not_that_of_an_earlier_one():
    """A mask that comes too late ends the session; one engine, and another session before it that a bound had ended."""
    long = RuleSpec(name="long", match="cmd line length", action="reset", bound=20)
    late = RuleSpec(name="late", match="auth mechanism", action="mask", words=("PLAIN",))
    wire = play([*START, (C, b"NOOP 1234567890123456789\r\n")], ruled(long, late))
    assert wire.ends[C].reset
    wire.ends = tuple(End(end.address, end.port + side, 5000) for side, end in zip((1, 0), wire.ends, strict=True))
    wire.open()
    for side, octets in [*START, (C, b"AUTH PLAIN"), (C, b"\r\n")]:
        wire.say(side, octets)
    ends = [event.rule for event in wire.events if event.type is EventType.RESET]
    assert [(rule.name, rule.value) for rule in ends if rule] == [("long", 21), ("late", 0)]
