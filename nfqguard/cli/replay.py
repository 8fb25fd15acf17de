"""`nfqguard replay`: a capture through the same engine, without a network."""
from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import click

from nfqguard.capture import Capture, CaptureError, CaptureWriter, Record
from nfqguard.engine import EngineError, Event
from nfqguard.policy.load import ConfigError, Configuration, default_policy, load, load_preset
from nfqguard.replay import Replay, Summary, classes_not_seen
from nfqguard.report.output import STDOUT, Output

EXIT_UNUSABLE = 2


@click.command()
@click.argument("capture", metavar="IN.pcap", type=click.Path(path_type=Path))
@click.option("-c", "--config", metavar="FILE", type=click.Path(path_type=Path), help="The configuration file.")
@click.option("--preset", metavar="NAME", help="A shipped preset instead; without either, the default one.")
@click.option("-w", "--write", "write", metavar="OUT.pcap", type=click.Path(path_type=Path),
              help="Write every packet that would leave.")
@click.option("--events", metavar="FILE", help="Write EVE JSON lines; - is standard output.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def replay(capture: Path, config: Path | None, preset: str | None, write: Path | None, events: str | None,
           as_json: bool) -> None:
    """Run the capture IN.pcap (pcap or pcapng) through the engine, with the capture's clock.

    Exit status: 0, or 2 for input that cannot be used.
    """
    if config is not None and preset is not None:
        raise click.UsageError("--config and --preset exclude each other: give one of them")
    try:
        configuration = _configuration(config, preset)
        for name in classes_not_seen(configuration):
            print(f"warning: a capture knows no interfaces, so no connection belongs to the class '{name}'",
                  file=sys.stderr)
        summary, damage = _replay(capture, configuration, write, events)
    except (CaptureError, ConfigError, EngineError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or events}: cannot be written ({error.strerror})")
    if damage:
        print(f"warning: {damage}", file=sys.stderr)
    text = json.dumps({**summary.as_data(), "damage": damage}) if as_json else _sentences(summary)
    print(text, file=sys.stderr if events == STDOUT else sys.stdout)


def _configuration(config: Path | None, preset: str | None) -> Configuration:
    return load(config) if config is not None else load_preset(preset or default_policy())


def _replay(path: Path, configuration: Configuration, write: Path | None, events: str | None,
            ) -> tuple[Summary, str | None]:
    """Returns what was done, and what was wrong with the end of the capture."""
    with ExitStack() as stack:
        capture = Capture(path)
        stack.callback(capture.close)
        writer = CaptureWriter(write, capture.link_type, capture.nano) if write is not None else None
        if writer is not None:
            stack.callback(writer.abandon)
        output = stack.enter_context(_fresh(events)) if events is not None else None

        def leave(record: Record) -> None:
            if writer is not None:
                writer.write(record)

        def tell(event: Event) -> None:
            if output is not None:
                output.write(event)

        summary = Replay(configuration, capture.link_type, leave, tell).run(capture)
        if writer is not None:
            writer.finish()
        return summary, capture.damage


def _fresh(file: str) -> Output:
    """An output for this replay alone: what an earlier one wrote is not continued. Raises OSError."""
    if file != STDOUT and Path(file).is_file():
        Path(file).unlink()
    return Output(file, instance=0)


def _sentences(summary: Summary) -> str:
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(summary.events.items())) or "none"
    return (f"packets: in {summary.packets_in}, out {summary.packets_out}, edited {summary.edited}, "
            f"dropped {summary.dropped}, injected {summary.injected}\n"
            f"inspected: {summary.diverted} packets, {summary.flows} flows\n"
            f"events: {told}")


def _fail(reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    raise SystemExit(EXIT_UNUSABLE)
