"""What the masks do to octets, in whatever pieces the octets come."""
from __future__ import annotations

import pytest
from wire import CLIENT, SERVER, Wire, play, preset_spec, told, two_way_cuts

from nfqguard.engine import Policy
from nfqguard.report.event import EventType

C, S = CLIENT, SERVER

FIFTEEN = [
    (S, b"220 mail.example.org ESMTP Postfix 2.0\r\n"),
    (C, b"EHLO client.example.net\r\n"),
    (S, b"250-mail.example.org\r\n250-PIPELINING\r\n250-SIZE 10240000\r\n250-VRFY\r\n250-STARTTLS\r\n"
        b"250-AUTH=LOGIN PLAIN\r\n250-CHUNKING\r\n250 DSN\r\n"),
    (C, b"EXPN staff\r\n"),
    (S, b"502 5.5.2 Error: command not recognized\r\n"),
    (C, b"VERB\r\n"),
    (S, b"502 no\r\n"),
    (C, b"noop\r\n"),
    (S, b"250 2.0.0 Ok\r\n"),
    (C, b"NOOPX now\r\n"),
    (S, b"500 what\r\n"),
    (C, b"VRFY postmaster\r\n"),
    (S, b"252 2.0.0 postmaster\r\n"),
    (C, b"XEXCH50 1 2\r\n"),
    (S, b"500 what\r\n"),
    (C, b"MAIL FROM:<a@example.net> SIZE=20\r\nRCPT TO:<b@example.org>\r\nONEX\r\nDATA\r\n"),
    (S, b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n502 no\r\n354 End data with <CR><LF>.<CR><LF>\r\n"),
    (C, b"Subject: hello\r\n\r\nEXPN is a word\r\n.. stuffed\r\n.\nnot the end\r\n.\r\n"),
    (S, b"250 2.0.0 Ok: queued\r\n"),
    (C, b"RSET\r\nHELP\r\nETRN example.org\r\nX\r\n"),
    (S, b"250 Ok\r\n214-help\r\n214 more\r\n458 no\r\n500 what\r\n"),
    (C, b"QUIT\r\n"),
    (S, b"221 2.0.0 Bye\r\n"),
]

MASKED_BY_IOS = {b"EXPN staff": 10, b"VERB": 4, b"NOOPX now": 9, b"XEXCH50 1 2": 11, b"ONEX": 4, b"X": 1}


def spoken(dialogue, side):
    return b"".join(octets for who, octets in dialogue if who == side)


def expected_at_server(dialogue, masked):
    lines = spoken(dialogue, C).split(b"\r\n")
    return b"\r\n".join(b"X" * len(line) if line in masked else line for line in lines)


def test_whole_packets():
    wire = play(FIFTEEN, "ios-esmtp")
    assert wire.at_server == expected_at_server(FIFTEEN, MASKED_BY_IOS)
    assert wire.at_client == spoken(FIFTEEN, S)
    masks = [event for event in wire.events if event.type is EventType.MASK_COMMAND]
    answers = [event for event in wire.events if event.type is EventType.ANSWER]
    assert len(masks) + len(answers) == len(wire.events)
    assert [event.text for event in masks] == list(MASKED_BY_IOS)
    assert [event.after for event in masks] == [b"X" * length for length in MASKED_BY_IOS.values()]
    assert [(event.line, event.code) for event in answers] == [(event.line, code) for event, code in zip(
        masks, (502, 502, 500, 500, 502, 500), strict=True)]
    assert wire.counter("commands-masked") == 6
    assert wire.counter("messages") == 1


def assert_lines_kept(wire, dialogue, masked, allowed):
    sent, got = spoken(dialogue, C).split(b"\n"), wire.at_server.split(b"\n")
    assert [len(line) for line in got] == [len(line) for line in sent]
    for before, after in zip(sent, got, strict=True):
        bare = before.rstrip(b"\r")
        if bare not in masked:
            assert after == before
            continue
        assert (after.endswith(b"\r") and after != before) or set(bare) == {ord("X")}
        assert set(after.rstrip(b"\r")[len(common_prefix(before, after)):]) <= {ord("X")}
        assert after.rstrip(b"\r").split(b" ")[0].upper() not in allowed


def common_prefix(one, two):
    length = next((at for at, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), len(one))
    return one[:length]


ESMTP_VERBS = {b"AUTH", b"DATA", b"EHLO", b"ETRN", b"HELO", b"HELP", b"MAIL", b"NOOP", b"QUIT", b"RCPT", b"RSET",
               b"SAML", b"SEND", b"SOML", b"VRFY"}


@pytest.mark.parametrize("family", [4, 6])
def test_every_two_way_cut(family):
    whole = told(play(FIFTEEN, "ios-esmtp", family=family))
    for cuts in two_way_cuts(FIFTEEN):
        wire = play(FIFTEEN, "ios-esmtp", cuts, family=family)
        assert told(wire) == whole, cuts
        assert wire.at_client == spoken(FIFTEEN, S), cuts
        assert_lines_kept(wire, FIFTEEN, MASKED_BY_IOS, ESMTP_VERBS)


@pytest.mark.parametrize("policy", ["ios-smtp", "ios-esmtp", "asa"])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 7])
def test_small_packets(policy, step):
    whole = play(FIFTEEN, policy)
    wire = play(FIFTEEN, policy, step=step)
    assert told(wire) == told(whole)
    assert wire.counter("commands-masked") == whole.counter("commands-masked")
    assert len(wire.at_server) == len(whole.at_server)
    assert [line[-1:] for line in wire.at_client.split(b"\n")] == [line[-1:] for line in whole.at_client.split(b"\n")]


def test_smtp_has_twelve_commands():
    for verb in b"DATA HELO HELP MAIL NOOP QUIT RCPT RSET SAML SEND SOML VRFY".split():
        assert play([(S, b"220 x\r\n"), (C, verb + b" a\r\n")], "ios-smtp").at_server == verb + b" a\r\n"
    for verb in (b"EHLO", b"AUTH", b"ETRN", b"STARTTLS", b"BDAT", b"EXPN", b"TURN", b"HELLO"):
        at_server = play([(S, b"220 x\r\n"), (C, verb + b" a\r\n")], "ios-smtp").at_server
        assert at_server == b"X" * (len(verb) + 2) + b"\r\n"


def test_asa_masks_banner_and_keywords():
    wire = play(FIFTEEN, "asa")
    lines = wire.at_client.split(b"\r\n")
    text = b"mail.example.org ESMTP Postfix 2.0"
    assert lines[0] == b"220 " + b"".join(bytes([o]) if o in b"20" else b"*" for o in text)
    assert lines[1:9] == [b"250-mail.example.org", b"250-PIPELINING", b"250-SIZE 10240000", b"250-VRFY",
                          b"250-XXXXXXXX", b"250-AUTH=LOGIN PLAIN", b"250-XXXXXXXX", b"250 DSN"]
    kinds = [event.type for event in wire.events]
    assert kinds.count(EventType.MASK_BANNER) == 1 and kinds.count(EventType.MASK_KEYWORD) == 2


def test_asa_banner_of_many_lines():
    banner = b"220-one 2\r\n220- two 0\r\n220 three\r\n"
    wire = play([(S, banner)], "asa")
    assert wire.at_client == b"220-****2\r\n220- ****0\r\n220 *****\r\n"
    for step in (1, 2, 3):
        assert play([(S, banner)], "asa", step=step).at_client == wire.at_client


@pytest.mark.parametrize("answer", [b"", b"500 what\r\n", b"250 ok\r\n"])
def test_an_empty_line_before_ehlo_hides_no_keyword(answer):
    """Some servers do not answer it."""
    dialogue = [(S, b"220 x\r\n"), (C, b"\r\n\r\nEHLO x\r\n"),
                (S, answer * 2 + b"250-x\r\n250-STARTTLS\r\n250 SIZE\r\n"), (C, b"NOOP\r\n"), (S, b"250 ok\r\n")]
    for step in (0, 1):
        wire = play(dialogue, "asa", step=step)
        assert b"STARTTLS" not in wire.at_client and wire.counter("unexpected-replies") == 0


def test_only_a_greeting_is_masked():
    wire = play([(S, b"554 no service for you\r\n")], "asa")
    assert wire.at_client == b"554 no service for you\r\n"


@pytest.mark.parametrize("line", [b" HELO x\r\n", b"\tEXPN x\r\n", b"MAIL\0 FROM:<a>\r\n", b"NOOP a\rEXPN b\r\n",
                                  b"\rEXPN b\r\n", b"RCPT\r\r\n", b"NOOP \xff\0\r\n", b"HELO:x\r\n", b"HEL\0\r\n"])
def test_lines_that_no_command_may_be(line):
    wire = play([(S, b"220 x\r\n"), (C, line)], "ios-esmtp")
    assert wire.at_server == b"X" * (len(line) - 2) + b"\r\n"
    assert len(wire.events) == 1
    for cuts in two_way_cuts([(C, line)]):
        cut = play([(S, b"220 x\r\n"), (C, line)], "ios-esmtp", {1: cuts[0]})
        if told(cut) != told(wire):
            assert [event.type for event in cut.events] == [EventType.RESET, EventType.FLOW]
            assert cut.ends[S].reset
            continue
        at = cuts[0][0]
        assert len(cut.at_server) == len(line)
        assert set(cut.at_server[at:].rstrip(b"\r\n")) <= {ord("X")}


def test_lf_alone_ends_a_command():
    wire = play([(S, b"220 x\r\n"), (C, b"NOOP\nEXPN a\nNOOP\n")], "ios-esmtp")
    assert wire.at_server == b"NOOP\nXXXXXX\nNOOP\n"


def test_blank_behind_a_forbidden_word_that_went_out_is_overwritten():
    wire = play([(S, b"220 x\r\n"), (C, b"HEL foo\r\n")], "ios-esmtp", {1: (3,)})
    assert wire.at_server == b"HELXXXX\r\n"


def test_only_the_line_end_left_to_edit_resets():
    wire = play([(S, b"220 x\r\n"), (C, b"HEL\r\n")], "ios-esmtp", {1: (3,)})
    assert wire.at_server == b"HEL"
    assert wire.ends[C].reset and wire.ends[S].reset
    event, record = wire.events
    assert (event.type, event.reason) == (EventType.RESET, "incomplete-verb")
    assert record.type is EventType.FLOW


def test_an_empty_line_passes():
    assert play([(S, b"220 x\r\n"), (C, b"\r\nNOOP\r\n")], "ios-esmtp").at_server == b"\r\nNOOP\r\n"


def test_hard_cap_of_a_command_line():
    wire = Wire().open()
    wire.say(S, b"220 x\r\n")
    wire.say(C, b"NOOP " + b"a" * 20000, range(1000, 20000, 1000))
    assert 0 < len(wire.at_server) <= 16384
    assert wire.ends[C].reset and wire.ends[S].reset
    assert wire.events[0].reason == "command-line-length"


@pytest.mark.parametrize("reply", [b"503 5.5.1 no recipients\r\n", b"451 later\r\n", b"250 what\r\n", b"220 x\r\n"])
def test_data_mode_begins_at_354_and_nowhere_else(reply):
    wire = play([(S, b"220 x\r\n"), (C, b"DATA\r\n"), (S, reply), (C, b"EXPN a\r\n")], "ios-esmtp")
    assert wire.at_server == b"DATA\r\nXXXXXX\r\n"


def test_nothing_behind_data_is_forwarded_before_the_reply():
    wire = Wire().open()
    wire.say(S, b"220 x\r\n")
    wire.say(C, b"DATA\r\n")
    wire.say(C, b"EXPN a\r\n.\r\n")
    assert wire.at_server == b"DATA\r\n"
    wire.say(S, b"354 go\r\n")
    assert wire.at_server == b"DATA\r\nEXPN a\r\n.\r\n"


def test_held_octets_are_commands_where_the_server_refused_data():
    wire = Wire().open()
    wire.say(S, b"220 x\r\n")
    wire.say(C, b"DATA\r\n")
    wire.say(C, b"EXPN a\r\n")
    wire.say(S, b"503 no\r\n")
    assert wire.at_server == b"DATA\r\nXXXXXX\r\n"


def test_a_retransmission_of_what_waits_changes_nothing():
    wire = Wire().open()
    wire.say(S, b"220 x\r\n")
    for _ in range(3):
        wire.send(wire.segment(C, b"DATA\r\nEXPN a\r\n.\r\n"))
        assert wire.at_server == b"DATA\r\n"
    wire.say(S, b"354 go\r\n")
    assert wire.at_server == b"DATA\r\nEXPN a\r\n.\r\n"


def test_auth_exchange_is_no_command():
    dialogue = [(S, b"220 x\r\n"), (C, b"AUTH LOGIN\r\n"), (S, b"334 VXNlcm5hbWU6\r\n"), (C, b"YWxpY2U=\r\n"),
                (S, b"334 UGFzc3dvcmQ6\r\n"), (C, b"c2VjcmV0\r\n"), (S, b"235 ok\r\n"), (C, b"EXPN a\r\n")]
    wire = play(dialogue, "ios-esmtp")
    assert wire.at_server == b"AUTH LOGIN\r\nYWxpY2U=\r\nc2VjcmV0\r\nXXXXXX\r\n"
    assert [event.text for event in wire.events] == [b"EXPN a"]
    for step in (1, 2, 3):
        assert play(dialogue, "ios-esmtp", step=step).at_server[:31] == wire.at_server[:31]


@pytest.mark.parametrize("octet", [b"\r", b"\0"])
def test_an_auth_exchange_holds_no_second_line(octet):
    """Some servers take a bare CR for a line's end: the verb behind it would pass unread."""
    dialogue = [(S, b"220 x\r\n"), (C, b"AUTH LOGIN\r\n"), (S, b"334 VXNlcm5hbWU6\r\n"),
                (C, b"c2VjcmV0" + octet + b"EXPN a\r\n")]
    for step in (0, 1, 9):
        wire = play(dialogue, "ios-esmtp", step=step)
        assert b"E" not in wire.at_server.removeprefix(b"AUTH LOGIN\r\n")
        assert wire.ends[C].reset and wire.ends[S].reset
        assert wire.events[0].reason == ("nul" if octet == b"\0" else "bare-cr") and not wire.events[0].text


def test_secrets_are_not_told():
    wire = play([(S, b"220 x\r\n"), (C, b"AUTH PLAIN AGFsaWNlAHNlY3JldA==\r\nAGFsaWNlAHNlY3JldA==\r\n")], "ios-smtp")
    assert [event.text for event in wire.events] == [b"AUTH PLAIN [redacted]", b"[redacted]"]
    short = play([(S, b"220 x\r\n"), (C, b"AUTH LOGIN\r\nc2VjcmV0MTI=\r\n")], "ios-smtp")
    assert [event.text for event in short.events] == [b"AUTH LOGIN", b"[redacted]"]


@pytest.mark.parametrize("code", [*range(200, 600, 7), 354, 334, 421, 100, 999])
def test_no_reply_code_harms_a_flow(code):
    dialogue = [(S, b"220 x\r\n"), (C, b"NOOP\r\n"), (S, b"%03d whatever\r\n" % code), (C, b"MAIL FROM:<a@b>\r\n")]
    wire = play(dialogue, "asa")
    assert wire.at_server == b"NOOP\r\nMAIL FROM:<a@b>\r\n"
    assert wire.at_client.endswith(b"%03d whatever\r\n" % code)


def test_reply_lines_without_a_code_survive():
    dialogue = [(S, b"220 x\r\n"), (C, b"HELP\r\n"), (S, b"214-one\r\nbare line\r\n?\r\n\r\n214 end\r\n"),
                (C, b"DATA\r\n"), (S, b"354 go\r\n"), (C, b"EXPN\r\n.\r\n")]
    wire = play(dialogue, "asa")
    assert b"214-one\r\nbare line\r\n?\r\n\r\n214 end\r\n" in wire.at_client
    assert wire.at_server == b"HELP\r\nDATA\r\nEXPN\r\n.\r\n"


def test_max_data_ends_the_session():
    policy = Policy(preset_spec("ios-esmtp", max_data=20))
    head = [(S, b"220 x\r\n"), (C, b"DATA\r\n"), (S, b"354 go\r\n")]
    for step in (0, 1, 4):
        assert play([*head, (C, b"0123456789abcdefgh\r\n.\r\n")], policy, step=step).at_server.endswith(b"h\r\n.\r\n")
        wire = play([*head, (C, b"0123456789abcdefghi\r\n.\r\n")], policy, step=step)
        assert wire.ends[C].reset and wire.ends[S].reset
        assert b".\r\n" not in wire.at_server
        assert wire.events[0].reason == "max-data" and wire.counter("messages") == 0


def test_keyword_cut_out_of_another_keyword():
    policy = Policy(preset_spec("asa", keywords=("SIZE", "STARTTLSX")))
    ehlo = [(S, b"220 x\r\n"), (C, b"EHLO x\r\n")]
    reply = b"250-x\r\n250-STARTTLS\r\n250 SIZE\r\n"
    assert play([*ehlo, (S, reply)], policy).at_client.endswith(b"250-x\r\n250-XXXXXXXX\r\n250 SIZE\r\n")
    wire = play([*ehlo, (S, reply)], policy, {2: (len(b"250-x\r\n250-STARTTLS"),)})
    assert wire.ends[C].reset and not wire.at_client.endswith(b"STARTTLS\r\n")


def test_starttls_when_a_policy_allows_it():
    policy = Policy(preset_spec("ios-esmtp", verbs=("EHLO", "STARTTLS", "NOOP")))
    head = [(S, b"220 x\r\n"), (C, b"STARTTLS\r\n")]
    wire = play([*head, (S, b"220 go\r\n"), (C, b"\x16\x03\x01 EXPN\r\n"), (S, b"\x16\x03")], policy)
    assert wire.at_server == b"STARTTLS\r\n\x16\x03\x01 EXPN\r\n"
    refused = play([*head, (S, b"454 no\r\n"), (C, b"EXPN\r\n")], policy)
    assert refused.at_server == b"STARTTLS\r\nXXXX\r\n"
    injected = Wire(policy).open()
    injected.say(S, b"220 x\r\n")
    injected.say(C, b"STARTTLS\r\n")
    injected.say(C, b"NOOP\r\n")
    injected.say(S, b"220 go\r\n")
    assert injected.at_server == b"STARTTLS\r\n" and injected.ends[S].reset
    answered = play([*head, (S, b"220 go\r\n250 injected\r\n")], policy)
    assert answered.ends[C].reset and b"injected" not in answered.at_client


@pytest.mark.parametrize("verbs", [(), ("HELO",)])
def test_where_every_verb_passes_tls_and_mail_do(verbs):
    policy = Policy(preset_spec("ios-esmtp", mask_verbs=False, verbs=verbs))
    tls = b"\x16\x03\x01\0\0 NOOP\rx"
    wire = play([(S, b"220 x\r\n"), (C, b"EXPN a\r\nSTARTTLS\r\n"), (S, b"500 what\r\n220 go\r\n"), (C, tls)], policy)
    assert wire.at_server == b"EXPN a\r\nSTARTTLS\r\n" + tls
    wire = play([(S, b"220 x\r\n"), (C, b"DATA\r\n"), (S, b"354 go\r\n"), (C, b"a\0\rb\r\n.\r\n")], policy)
    assert wire.at_server == b"DATA\r\na\0\rb\r\n.\r\n"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("reply", [b"354 go\r\n", b"503 no\r\n"])
@pytest.mark.parametrize("size", [10, 3000, 30000])
def test_the_rest_of_a_packet_goes_from_a_copy_once_the_server_has_replied(family, reply, size):
    """Nobody sends it again: what waited is judged in the mode that the reply opens, and leaves in our own packets."""
    rest = b"EXPN a\r\n" + b"noop\r\n" * (size // 6)
    wire = Wire(family=family).open()
    wire.say(S, b"220 x\r\n")
    wire.say(C, b"NOOP\r\nDATA\r\n" + rest)
    assert wire.at_server == b"NOOP\r\nDATA\r\n"
    wire.say(S, b"250 ok\r\n")
    assert wire.at_server == b"NOOP\r\nDATA\r\n"
    wire.say(S, reply)
    left = rest if reply.startswith(b"354") else rest.replace(b"EXPN a", b"XXXXXX")
    assert wire.at_server == b"NOOP\r\nDATA\r\n" + left
    assert wire.ends[C].segments[-1].ack == wire.ends[C].isn + 1 + wire.ends[C].sent
    assert all(len(s.payload) <= 1460 for s in wire.ends[S].segments[4:])
    wire.close()
    assert wire.ends[S].finished


def test_a_pipelined_message_in_one_packet():
    body = b"Subject: x\r\n\r\nEXPN in a body\r\n.\r\n"
    dialogue = [(S, b"220 x\r\n"), (C, b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + body + b"EXPN x\r\nQUIT\r\n"),
                (S, b"250 ok\r\n250 ok\r\n354 go\r\n"), (S, b"250 queued\r\n500 what\r\n221 bye\r\n")]
    for cuts in [{}, *two_way_cuts(dialogue)]:
        wire = play(dialogue, "ios-esmtp", cuts)
        at_server = wire.at_server.replace(b"EXXXXX\r\nQ", b"XXXXXX\r\nQ")
        assert at_server == b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n" + body + b"XXXXXX\r\nQUIT\r\n", cuts
