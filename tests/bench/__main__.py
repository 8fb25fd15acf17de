"""`python -m tests.bench`: one command, one report.

Exit status: 0 measured; 1 some run gave no figure; 2 wrong arguments; 3 void, for the accept-all loop was too slow.
"""
from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from nfqguard.lab.roots import RootError
from nfqguard.lab.topology import LabError

from .bench import Benchmark, Extent
from .loads import LOADS
from .machine import describe, line
from .programs import BUILD, ProgramError
from .report import Report
from .systems import SYSTEMS

EXIT_INCOMPLETE = 1
EXIT_VOID = 3
LOG_COLUMNS = 110
BUSY = 0.4
"""Load per core from which on a machine is not idle."""
FULL = Extent(rounds=5, seconds=2.0)
QUICK = Extent(rounds=1, seconds=0.5)


@click.command()
@click.option("--rounds", type=click.IntRange(1, 1000), help="Runs of each system; 5, or 1 with --quick.")
@click.option("--scenario", "scenarios", type=click.Choice(list(LOADS)), multiple=True, help="Only this; repeatable.")
@click.option("--system", "systems", type=click.Choice(list(SYSTEMS)), multiple=True, help="Only this; repeatable.")
@click.option("--quick", is_flag=True, help="Short runs, to see that all works; its figures mean little.")
@click.option("--output", type=click.Path(path_type=Path), default=BUILD / "report.json", help="The report as JSON.")
@click.option("--prefix", default="nfqguard-bench", show_default=True, help="Of the namespaces' names.")
def main(rounds: int | None, scenarios: tuple[str, ...], systems: tuple[str, ...], quick: bool, output: Path,
         prefix: str) -> None:
    """Measure mail through a gateway with nothing, an accept-all loop, nfqguard, and a scapy script in its path."""
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else LOG_COLUMNS)
    extent = QUICK if quick else FULL
    loads = [load for name, load in LOADS.items() if not scenarios or name in scenarios]
    machine = describe()
    report = Report(machine, {load.name: load.cpu_unit for load in loads})
    console.print(line(machine))
    if float(machine["load"]) > BUSY * int(machine["cores"]):
        console.print(f"this machine is busy (load {machine['load']}): the figures will be low, and far apart")
    signal.signal(signal.SIGTERM, _terminated)
    benchmark = Benchmark(loads, [system for name, system in SYSTEMS.items() if not systems or name in systems],
                          Extent(rounds or extent.rounds, extent.seconds), report, console, prefix)
    try:
        benchmark.run()
    except (LabError, RootError, ProgramError) as error:
        console.print(f"cannot measure: {error}")
        sys.exit(EXIT_INCOMPLETE)
    report.write(output)
    sys.exit(_conclude(report, console, output))


def _terminated(number: int, frame: object) -> NoReturn:
    """Ends by an exception, so that namespaces and processes go."""
    sys.exit(128 + number)


def _conclude(report: Report, console: Console, output: Path) -> int:
    """Print the report and what is to be thought of it; returns the exit status."""
    console.print(report.table())
    for failure in report.failures:
        console.print(f"no figure: {failure.scenario}, {failure.system}: {failure.reason}")
    console.print(f"the same as JSON: {output}")
    if reasons := report.void():
        console.print(f"VOID: {'; '.join(reasons)}. No ratio above means anything: run it again on an idle machine.")
        return EXIT_VOID
    return EXIT_INCOMPLETE if report.failures else 0


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
