"""Every story of tests/stories: whole, in every two-way cut, octet by octet, each segment twice, as a capture; and with
its rule switched off, when its expectation must not hold.

What may differ between cuts is said here, in agrees() and in VOLATILE, and nowhere else.
"""
from __future__ import annotations

import json
import tempfile
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from player import Cut, Outcome, Player
from story import Line, Story, StoryError, Turn, line_octets, octets, read_stories
from story_capture import capture
from wire import CLIENT, SERVER

from nfqguard.cli import main
from nfqguard.engine import Classes, Policy
from nfqguard.policy.compile import compile_classes, compile_policy
from nfqguard.policy.load import Configuration, load
from nfqguard.report.eve import event_record
from nfqguard.report.event import Event, EventType

ALL = {story.name: story for story in read_stories()}
SETTINGS = ("synwait", "finwait", "idle", "tombstone")
DOCUMENT = ("engine", "deployment", "classes", "network")
PROBES = [Turn("say", CLIENT, [Line(CLIENT, "NOOP", b"NOOP\r\n", -1)]),
          Turn("say", SERVER, [Line(SERVER, "250 still here", b"250 still here\r\n", -1)])]
"""Said when a session was dropped: nothing may come of it."""


# ---- policies

def toml(table: dict[str, Any]) -> str:
    """A table as TOML: inline throughout, which is less beautiful than short."""
    def value(item: Any) -> str:
        if isinstance(item, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {value(each)}" for key, each in item.items()) + "}"
        if isinstance(item, list):
            return "[" + ", ".join(map(value, item)) + "]"
        return json.dumps(item, ensure_ascii=False)
    return "".join(f"{json.dumps(key)} = {value(item)}\n" for key, item in table.items())


def merged(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return table | {key: merged(table.get(key, {}), item) if isinstance(item, dict) else item
                    for key, item in changes.items()}


def switched_off(story: Story) -> dict[str, Any]:
    """The story's configuration without the rule that it is told for."""
    document, name = story.policy, story.policy["policy"]
    policy = document["policies"][name]
    if "=" in story.rule:
        changes = tomllib.loads(story.rule)
        if next(iter(changes)) in DOCUMENT:
            return merged(document, changes)
        policy = merged(policy, changes)
    else:
        own = policy.get("matches", [])
        named = {story.rule} & {match["name"] for match in own} or named_in(story, document)
        changed = [match | {"action": "none"} if match["name"] in named else match for match in own]
        more = sorted(named - {match["name"] for match in own})
        policy = policy | {"matches": [*changed, *({"name": name, "action": "none"} for name in more)]}
    return document | {"policies": {**document["policies"], name: policy}}


def named_in(story: Story, document: dict[str, Any]) -> set[str]:
    """The names of the inherited rules that the story means: one of this name, else all of this kind of match."""
    with tempfile.TemporaryDirectory() as folder:
        rules = configuration(document, Path(folder)).policy_in_force.matches
    return {rule.name for rule in rules if rule.name == story.rule} or {
        rule.name for rule in rules if rule.match == story.rule}


def configuration(document: dict[str, Any], folder: Path) -> Configuration:
    path = folder / "nfqguard.toml"
    path.write_text(toml(document))
    return load(path)


def player(story: Story, loaded: Configuration) -> Player:
    """The story's player under a configuration."""
    policies = {name: Policy(compile_policy(name, policy)) for name, policy in loaded.policies_in_use.items()}
    otherwise = policies[loaded.policy]
    specs = compile_classes(loaded.classes, loaded.network)
    more = PROBES if story.end == "drop-connection" else []
    settings = {name: getattr(loaded.engine, name) for name in SETTINGS}
    return Player(story, otherwise, Classes(specs, policies, otherwise, {}) if specs else None, more, **settings)


# ---- what must come of it

def expected(story: Story, side: int) -> bytes:
    """What the other end must read of what `side` says, where each turn is one packet."""
    read = b"".join(line.expected for line in story.lines if line.side == side and not story.ends_before(line.turn))
    return read + (story.reply if side == SERVER else b"")


def agrees(line: Line, got: bytes) -> bool:
    """May this be read of a line that came in pieces? It is as expected; or, where the line is edited, its first octets
    had left before it was known that they must not, and the rest is as expected. Where single octets become blanks, the
    one behind may have become one in their place."""
    want = line.expected
    if got == want:
        return True
    if not len(got) == len(line.first) == len(want):
        return False
    if got == line.first:   # the blank that was to become CR had left before its LF came
        return all(want[at] == ord("\r") for at in range(len(want)) if want[at] != got[at])
    edited = [at for at in range(len(got)) if line.first[at] != want[at]]
    if any(want[at] not in b" \r" for at in edited):
        return any(got == line.first[:at] + want[at:] for at in range(len(got)))
    near = {at + more for at in edited for more in (0, 1, 2)}
    return all(octet in (line.first[at], want[at]) or (at in near and octet == ord(" "))
               for at, octet in enumerate(got))


def masked_instead(line: Line, got: bytes) -> bool:
    """Is this a line of a reply that could not be taken out?"""
    length = len(line.said) - 2
    return any(got == line.said[:at] + b"X" * (length - at) + line.said[-2:] for at in range(4, length))


def takes(line: Line, rest: bytes) -> int:
    """How many octets of `rest` are this line; -1 where none can be."""
    if line.read == b"":
        return len(line.said) if masked_instead(line, rest[:len(line.said)]) else 0
    length = len(line.expected)
    separator = line.said[:3] + line.expected[3:4] + line.said[4:]
    known = agrees(line, rest[:length]) or (line.side == SERVER and line.expected == separator and
                                            rest.startswith(line.said))
    return length if known else -1


def assert_read(story: Story, side: int, got: bytes) -> None:
    """The lines of one end as the other has read them, in whatever pieces they came."""
    assert side == CLIENT or got.endswith(story.reply)
    got, at = got.removesuffix(story.reply) if side == SERVER else got, 0
    for line in story.lines:
        if line.side != side:
            continue
        rest = got[at:at + max(len(line.expected), len(line.said))]
        taken = takes(line, rest)
        if story.ends_before(line.turn) and (taken < 0 or not rest):
            assert not rest or line.turn == story.ends_at.turn, f"{line.text!r} was read, but the session had ended"
            assert line.said.startswith(rest), f"{line.text!r} was read as {rest!r}"
            return
        assert taken >= 0, f"{line.text!r} was read as {rest[:80]!r}"
        assert line is not story.ends_at, f"{line.text!r} must not be read to its end"
        at += taken
    assert got[at:] == b"", f"nobody has said {got[at:]!r}"


def assert_end(story: Story, outcome: Outcome) -> None:
    client, server = CLIENT, SERVER
    said_fin = {turn.side for index, turn in enumerate(story.turns)
                if turn.what == "fin" and not story.ends_before(index)}
    if story.end == "reset":
        assert outcome.reset == (True, True), "both ends must have been reset"
    elif story.end == "reject":
        assert outcome.finished[client] and not outcome.reset[client], "the client must have read a reply and FIN"
        assert outcome.reset[server], "the server must have been reset"
    else:
        assert outcome.reset == (False, False), "nobody must have been reset"
        assert outcome.finished == tuple(1 - side in said_fin for side in (client, server)), "a FIN, or none"
    assert story.withheld is None or max(outcome.withheld) <= story.withheld, f"withheld: {outcome.withheld}"


VERBS = {b"ATRN", b"AUTH", b"BDAT", b"DATA", b"EHLO", b"ETRN", b"EXPN", b"HELO", b"HELP", b"LHLO", b"MAIL", b"NOOP",
         b"ONEX", b"QUIT", b"RCPT", b"RSET", b"SAML", b"SEND", b"SOML", b"STARTTLS", b"TURN", b"VERB", b"VRFY",
         b"XCLIENT", b"XFORWARD", b"X-LINK2STATE", b"GET", b"POST", b"CONNECT", b"PUT"}


def assert_no_forbidden_verb(story: Story, allowed: set[bytes], got: bytes) -> None:
    """However it was cut: of a command that is masked for its verb, no verb that anybody knows may be read."""
    said = b"".join(line.said for line in story.lines if line.side == CLIENT)
    if len(got) != len(said) or any(turn.what == "again" for turn in story.turns):
        return
    at = 0
    for line in story.lines:
        if line.side != CLIENT:
            continue
        verb = line.said.split()[0].upper() if line.said.split() else b""
        if line.read is not None and verb in VERBS - allowed:
            assert got[at:at + len(line.said)].split()[0].upper() not in VERBS, f"{line.text!r}: its verb went through"
        at += len(line.said)


# ---- events

VOLATILE = {"queue"}
CUT_VOLATILE = VOLATILE | {"after", "length"}
"""Of an event, what depends on the pieces: how much of the line had left."""
IN_DATA = {"header length", "header regex", "body length", "body regex"}
"""Matches of message data that are asked for each packet: their event tells about where, and how much had been seen."""
BEHIND = {"starttls injection"}
"""What shows it may lie behind it in the same packet."""
NEWLINES = {"wrong termination", "bare newline", "smuggling"}
"""A bare CR is known at the octet behind it; where it has left, that one becomes a blank."""
ANSWER = "answer"
REMOVAL = {"event_type", "match", "direction", "line", "offset", "text"}
"""Of an event that tells of a line of the EHLO reply, what is the same whether it was taken out or masked."""


def record(event: Event) -> dict[str, Any]:
    """An event as the operator reads it."""
    return record_of(replace(event, time=0, flow=0, started=0, packets=(0, 0), octets=(0, 0)))


@cache
def record_of(event: Event) -> dict[str, Any]:
    written = event_record(event)
    return {"event_type": written["event_type"]} | written["nfqguard"]


def told(outcome: Outcome, volatile: set[str] = VOLATILE) -> list[dict[str, Any]]:
    """The events but the flow's record and the packets dropped."""
    return [{key: value for key, value in record(event).items() if key not in volatile}
            for event in outcome.events if event.type not in (EventType.FLOW, EventType.DROP)]


def told_in_pieces(story: Story, outcome: Outcome) -> list[dict[str, Any]]:
    """What is told however the turns are cut."""
    removes = any(line.read == b"" for line in story.lines)

    def lasting(each: dict[str, Any]) -> dict[str, Any]:
        if removes and each.get("match") == "ehlo-reply-parameter":
            return {key: each[key] for key in each if key in REMOVAL}
        wandering: set[str] = set()
        if each.get("match") in IN_DATA | BEHIND or each.get("reason") == "max-data":
            wandering |= {"offset", "value", "text"}
        if each.get("match") in NEWLINES:
            wandering |= {"offset", "text"}
        return {key: each[key] for key in each if key not in wandering}

    return [lasting(each) for each in told(outcome, CUT_VOLATILE)]


def parted(records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The server's answers to what was masked apart: where a part of a known verb had left, its answer is not told."""
    return ([each for each in records if each.get("action") != ANSWER],
            [each for each in records if each.get("action") == ANSWER])


def assert_dropped(story: Story, outcome: Outcome) -> None:
    """Each dropped packet is told by itself, so that their number depends on the cuts; their reasons do not."""
    reasons = {event.reason for event in outcome.events if event.type is EventType.DROP}
    assert reasons == story.dropped, f"packets were dropped for {reasons}"


def brief(records: list[dict[str, Any]]) -> str:
    """Events in a few words, for the message of a failure."""
    keys = ("action", "match", "rule", "line", "offset", "reason", "value", "text")
    return "; ".join(" ".join(f"{key}={each[key]}" for key in keys if key in each) for each in records)


def assert_told(story: Story, records: list[dict[str, Any]]) -> None:
    """The server's answers to what was masked count only where the story names one."""
    if not any(want.get("action") == ANSWER for want in story.events):
        records = [each for each in records if each.get("action") != ANSWER]
    listed = [{key: json.dumps(value) if isinstance(value, bool) else str(value) for key, value in each.items()}
              for each in records]
    seen = [{key: each.get(key, "") for key in want} for want, each in zip(story.events, listed, strict=False)]
    assert seen == story.events and len(listed) == len(story.events), f"told: {brief(listed)}"


# ---- the plays

def assert_whole(story: Story, loaded: Configuration) -> Outcome:
    """Each turn is one packet."""
    outcome = player(story, loaded).play()
    for side in (CLIENT, SERVER):
        assert outcome.heard[1 - side] == expected(story, side)
    assert_end(story, outcome)
    assert_dropped(story, outcome)
    assert_told(story, told(outcome))
    records = [event.reason for event in outcome.events if event.type is EventType.FLOW]
    assert len(records) == (story.opening != "missed") and story.record in ("", *records), f"records: {records}"
    return outcome


def reset_instead(story: Story, outcome: Outcome) -> bool:
    """Only a line's end was left to edit: the story says that it may come to this."""
    return story.cut_may_reset and story.end != "reset" and all(outcome.reset)


def assert_cut(story: Story, whole: list[dict[str, Any]], outcome: Outcome, allowed: set[bytes],
               known: set[tuple[bytes, bytes]]) -> None:
    """`known`: what was read in earlier plays, and was right."""
    if reset_instead(story, outcome):
        return
    if outcome.heard not in known:
        for side in (CLIENT, SERVER):
            assert_read(story, side, outcome.heard[1 - side])
        assert_no_forbidden_verb(story, allowed, outcome.heard[SERVER])
        known.add(outcome.heard)
    assert_end(story, outcome)
    assert_dropped(story, outcome)
    pieces, answers = parted(told_in_pieces(story, outcome))
    whole, said = parted(whole)
    assert all(each in said for each in answers), f"told: {brief(answers)} instead of {brief(said)}"
    assert pieces == whole, f"told: {brief([each for each in pieces if each not in whole])} " \
        f"instead of {brief([each for each in whole if each not in pieces])}"


@pytest.fixture(params=ALL)
def story(request: pytest.FixtureRequest) -> Story:
    return ALL[request.param]


@pytest.fixture
def loaded(story: Story, tmp_path: Path) -> Configuration:
    return configuration(story.policy, tmp_path)


def test_whole_and_each_segment_twice(story: Story, loaded: Configuration) -> None:
    outcome = assert_whole(story, loaded)
    twice = player(story, loaded).play(Cut(twice=True))
    assert (twice.heard, twice.reset, twice.finished) == (outcome.heard, outcome.reset, outcome.finished)
    assert told(twice) == told(outcome)


def test_every_cut(story: Story, loaded: Configuration) -> None:
    playing = player(story, loaded)
    whole = told_in_pieces(story, playing.play())
    allowed = {verb.encode() for verb in loaded.policy_in_force.verbs}
    known: set[tuple[bytes, bytes]] = set()
    for cut in (*playing.two_way(), Cut(step=1), Cut(step=1, twice=True)):
        try:
            assert_cut(story, whole, playing.play(cut), allowed, known)
        except AssertionError as error:
            pytest.fail(f"{cut}: {error}", pytrace=False)


def test_without_its_rule_it_does_not_hold(story: Story, tmp_path: Path) -> None:
    loaded = configuration(switched_off(story), tmp_path)
    with pytest.raises(AssertionError):
        assert_whole(story, loaded)


# ---- as a capture

def test_replayed(story: Story, loaded: Configuration, tmp_path: Path) -> None:
    pcap, events = tmp_path / "story.pcap", tmp_path / "eve.json"
    pcap.write_bytes(capture(story))
    arguments = ["replay", str(pcap), "-c", str(tmp_path / "nfqguard.toml"), "--events", str(events)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    written = [json.loads(line) for line in events.read_text().splitlines()]
    records = [each["nfqguard"] for each in written if each["event_type"] == "smtp"]
    if story.ends_at is not None:   # the ends of a capture talk on
        records = records[:len(story.events)]
    assert_told(story, records)


# ---- the format itself

def test_how_octets_are_written() -> None:
    assert octets(r"a\r\n\0\x7f\\") == b"a\r\n\0\x7f\\" and octets(r"{ab*3}\{c*2\}") == b"ababab{c*2}"
    assert octets(r"{u\#,*3}") == b"u1,u2,u3," and octets("ü") == b"\xc3\xbc"
    assert line_octets("a") == b"a\r\n" and line_octets("a\\") == b"a" and line_octets("a\\\\") == b"a\\\r\n"
    with pytest.raises(StoryError):
        octets(r"\q")


@cache
def mask() -> Line:
    return Line(CLIENT, "", b"EXPN a\r\n", 0, b"XXXXXX\r\n")


@pytest.mark.parametrize(("got", "may"), [
    (b"XXXXXX\r\n", True), (b"EXXXXX\r\n", True), (b"EXPN X\r\n", True), (b"EXPN a\r\n", False),
    (b"XXXXXXX\r\n", False), (b"XXPN a\r\n", False), (b"XXXXXX\r ", False)])
def test_what_may_be_read_of_a_masked_line(got: bytes, may: bool) -> None:
    assert agrees(mask(), got) == may


def test_a_removed_line_may_be_masked() -> None:
    line = Line(SERVER, "", b"250-STARTTLS\r\n", 0, b"")
    assert takes(line, b"250 SIZE\r\n") == 0 and takes(line, b"250-XXXXXXXX\r\n") == 14
