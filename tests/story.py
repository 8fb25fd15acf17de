"""A story: a dialogue on the wire, a policy, and what must come of it. tests/stories/README.md explains the four files.

Reading a folder gives a Story; what it says is in plain values, and nothing here knows the engine.
"""
from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STORIES = Path(__file__).resolve().parent / "stories"
SIDES = {"C": 0, "S": 1}
ENDS = {"open", "closed", "reset", "reject", "drop-connection"}
HERE_IT_ENDS = "(the session ends here)"
REMOVED = ("(removed)", "(not read)")
MASKED = "(masked)"

_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NAMED = {"r": b"\r", "n": b"\n", "0": b"\0", "t": b"\t", "\\": b"\\", "{": b"{", "}": b"}"}
_REPEATED = re.compile(r"(?<!\\)\{(.+?)(?<!\\)\*(\d+)\}")
_SPOKEN = re.compile(r"([CS])([:~=-])(?: (.*))?$")
_HOW = {":": "say", "~": "truncated", "-": "lost", "=": "again"}
_OPENING = {"(midstream)": "missed", "(SYN only)": "SYN only"}
_CLOSED = re.compile(r"([CS])! (FIN|RST)$")
_PAUSE = re.compile(r"\.\.\. (\d+) s$")


class StoryError(ValueError):
    """A file of a story does not say what it must; the message has its place."""


def octets(text: str) -> bytes:
    """A line as it is written -> its octets. Raises StoryError for an escape that does not exist."""
    repeated = _REPEATED.sub(
        lambda found: "".join(found[1].replace("\\#", str(number)) for number in range(1, int(found[2]) + 1)), text)
    result, at = b"", 0
    for found in _ESCAPE.finditer(repeated):
        result += repeated[at:found.start()].encode()
        if found[1] is None and found[2] not in _NAMED:
            raise StoryError(f"there is no escape \\{found[2]} (in {text!r})")
        result += bytes.fromhex(found[1]) if found[1] else _NAMED[found[2]]
        at = found.end()
    return result + repeated[at:].encode()


def line_octets(text: str) -> bytes:
    """As octets(), with CRLF behind it unless the line ends in a single backslash."""
    unfinished = re.search(r"(?<!\\)(?:\\\\)*\\$", text)
    return octets(text[:-1]) if unfinished else octets(text) + b"\r\n"


@dataclass
class Line:
    """A line that was said.

    side      0 the client, 1 the server
    text      as it is written in dialogue.txt
    said      its octets
    read      what the other end reads instead; b"" where it was taken out, None where it is as it was said
    added     octets that nobody said, read behind this line
    lost      what was said in its place before, and lost
    turn      its packet's place in the dialogue
    """

    side: int
    text: str
    said: bytes
    turn: int
    read: bytes | None = None
    added: bytes = b""
    lost: bytes = b""

    @property
    def first(self) -> bytes:
        """What was said first in this place of the stream."""
        return self.lost or self.said

    @property
    def expected(self) -> bytes:
        """What the other end reads of it."""
        return (self.first if self.read is None else self.read) + self.added


@dataclass
class Turn:
    """What one end does at once: says lines in one packet, closes, or lets time pass."""

    what: str
    side: int = 0
    lines: list[Line] = field(default_factory=list)
    seconds: int = 0

    @property
    def octets(self) -> bytes:
        """All that is said in it."""
        return b"".join(line.said for line in self.lines)


@dataclass
class Story:
    """A folder of tests/stories."""

    name: str
    title: str
    covers: tuple[str, ...]
    rule: str
    turns: list[Turn]
    policy: dict[str, Any]
    events: list[dict[str, str]]
    end: str = "open"
    reply: bytes = b""
    ends_at: Line | None = None
    opening: str = "seen"
    record: str = ""
    dropped: set[str] = field(default_factory=set)
    cut_may_reset: bool = False
    withheld: int | None = None

    @property
    def lines(self) -> list[Line]:
        """All lines of both ends, but those that were lost, in the order in which they were said."""
        return [line for turn in self.turns if turn.what not in ("lost", "truncated") for line in turn.lines]

    def ends_before(self, turn: int) -> bool:
        """Is this turn said when the session has ended?"""
        return self.ends_at is not None and turn >= self.ends_at.turn


def read_story(folder: Path) -> Story:
    """Raises StoryError, OSError, TOMLDecodeError."""
    title, covers, rule = _readme(folder / "README.md")
    turns, opening = _dialogue(folder / "dialogue.txt")
    policy = tomllib.loads((folder / "policy.toml").read_text())
    story = Story(folder.name, title, covers, rule, turns, policy, [], opening=opening)
    _Expectation(story, folder / "expect.txt").read()
    return story


def _readme(path: Path) -> tuple[str, tuple[str, ...], str]:
    text = path.read_text()
    title, covers, rule = (re.search(pattern, text, re.MULTILINE) for pattern in
                           (r"\A# (.+)$", r"^Covers: (.+)$", r"^Rule: (.+)$"))
    if title is None or covers is None or rule is None:
        raise StoryError(f"{path}: a title, a line 'Covers: ' and a line 'Rule: ' are needed")
    return title[1], tuple(covers[1].split(", ")), rule[1]


def _dialogue(path: Path) -> tuple[list[Turn], str]:
    turns: list[Turn] = []
    opening, fresh = "seen", True
    for number, text in enumerate(path.read_text().split("\n"), 1):
        if text.startswith("#"):
            continue
        if text in _OPENING:
            opening = _OPENING[text]
        elif found := _SPOKEN.match(text):
            what, side = _HOW[found[2]], SIDES[found[1]]
            if fresh or not turns or (turns[-1].what, turns[-1].side) != (what, side):
                turns.append(Turn(what, side))
            written = found[3] or ""
            turns[-1].lines.append(Line(side, written, line_octets(written), len(turns) - 1))
        elif found := _CLOSED.match(text):
            turns.append(Turn(found[2].lower(), SIDES[found[1]]))
        elif found := _PAUSE.match(text):
            turns.append(Turn("seconds", seconds=int(found[1])))
        elif text:
            raise StoryError(f"{path}:{number}: {text!r} is nothing that a dialogue may say")
        fresh = not text
    _say_again(turns)
    return turns, opening


def _say_again(turns: list[Turn]) -> None:
    """Each line that is said in the place of what was lost learns what that was."""
    lost = b""
    for turn in turns:
        if turn.what == "lost":
            lost = turn.octets
        elif turn.what == "again":
            for line in turn.lines:
                line.lost, lost = lost[:len(line.said)], lost[len(line.said):]


class _Expectation:
    """Reads expect.txt into a story. Lines are named in the order in which they were said, as in a diff."""

    def __init__(self, story: Story, path: Path) -> None:
        self.story, self.path = story, path
        self.line: Line | None = None
        self.passed = {0: 0, 1: 0}

    def read(self) -> None:
        for number, text in enumerate(self.path.read_text().split("\n"), 1):
            try:
                self._one(text)
            except StoryError as error:
                raise StoryError(f"{self.path}:{number}: {error}") from None
        if self.story.end in ("reset", "reject", "drop-connection") and self.story.ends_at is None:
            raise StoryError(f"{self.path}: at which line does the session end?")

    def _one(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if re.match(r"[CS]:( |$)", text):
            self._find(SIDES[text[0]], text[3:])
        elif text.startswith(" > ") or text == " >":
            self._reads(text[3:])
        elif text.startswith(" + "):
            self._current().added += line_octets(text[3:])
        elif word == "event":
            self.story.events.append(dict(_pair(item) for item in shlex.split(rest)))
        elif word == "end":
            kind, _, reply = rest.partition(" ")
            if kind not in ENDS:
                raise StoryError(f"no session ends as {kind!r}: {', '.join(sorted(ENDS))}")
            self.story.end, self.story.reply = kind, line_octets(reply) if reply else b""
        elif word == "dropped":
            self.story.dropped |= set(rest.split())
        elif word == "record":
            self.story.record = rest
        elif word == "withheld":
            self.story.withheld = int(rest)
        elif text == "cuts may reset":
            self.story.cut_may_reset = True
        elif text and not text.startswith("#"):
            raise StoryError(f"{text!r} is no expectation")

    def _find(self, side: int, text: str) -> None:
        lines = [line for line in self.story.lines if line.side == side]
        for index in range(self.passed[side], len(lines)):
            if lines[index].text == text:
                self.line, self.passed[side] = lines[index], index + 1
                return
        raise StoryError(f"{text!r} is not said, or not behind the line named before it")

    def _reads(self, text: str) -> None:
        line = self._current()
        if text == HERE_IT_ENDS:
            self.story.ends_at = line
        elif text == MASKED:
            code = 4 if line.side == SIDES["S"] else 0
            end = len(line.said) - (2 if line.said.endswith(b"\r\n") else 0)
            line.read = line.said[:code] + b"X" * (end - code) + line.said[end:]
        else:
            line.read = b"" if text in REMOVED else line_octets(text)

    def _current(self) -> Line:
        if self.line is None:
            raise StoryError("name the line first: 'C: ' or 'S: ' and what was said")
        return self.line


def _pair(item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals:
        raise StoryError(f"{item!r} is no key=value")
    return key, value


def read_stories() -> list[Story]:
    """Every story, by name."""
    return [read_story(path.parent) for path in sorted(STORIES.glob("*/README.md"))]
