"""`nfqguard events`: the record of what was done, readable."""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from nfqguard.policy.model import Events
from nfqguard.report.readable import readable
from nfqguard.report.tail import Tail

DEFAULT_FILE = Path(Events().file)
POLL = 0.25
LAST = 10
"""Lines shown before following, as tail does."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path), default=DEFAULT_FILE)
@click.option("-f", "--follow", "following", is_flag=True,
              help="Show the last ten and go on as more come, across rotation.")
@click.option("--json", "as_json", is_flag=True, help="Pass the EVE JSON lines through as they are.")
def events(file: Path, following: bool, as_json: bool) -> None:
    """Print the events in FILE, an EVE JSON file of nfqguard's; `-` is standard input."""
    if following and str(file) == "-":
        raise click.UsageError("standard input cannot be followed: give a file, or leave --follow out")
    try:
        unreadable = _print(_followed(file) if following else _lines(file), as_json)
    except BrokenPipeError:
        raise   # the reader of our output has gone: click ends quietly
    except OSError as error:
        print(f"{file}: cannot be read ({error.strerror}): give an EVE JSON file, as [events] file = ... names it",
              file=sys.stderr)
        raise SystemExit(1) from None
    if unreadable:
        print(f"{file}: {unreadable} lines are no EVE records and were left out", file=sys.stderr)


def _lines(file: Path) -> Iterator[bytes]:
    if str(file) == "-":
        yield from (line.rstrip(b"\n") for line in sys.stdin.buffer)
        return
    with file.open("rb") as opened:
        for line in opened:
            yield line.rstrip(b"\n")


def _followed(file: Path) -> Iterator[bytes]:
    """Until the operator interrupts."""
    tail = Tail(file)
    yield from tail.last(LAST)
    with suppress(KeyboardInterrupt):
        while True:
            yield from tail.read()
            time.sleep(POLL)
    tail.close()


def _print(lines: Iterable[bytes], as_json: bool) -> int:
    """Print records, one a line. Returns how many lines were none."""
    console = Console(highlight=False, soft_wrap=True)
    unreadable = 0
    for line in lines:
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            unreadable += 1
        elif as_json:
            click.echo(line)
        else:
            console.print(Text.assemble(*readable(record)))
    return unreadable
