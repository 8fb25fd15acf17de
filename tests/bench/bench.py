"""Takes the rounds: each system in turn, again and again, so that what the machine does meanwhile hits all of them."""
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nfqguard.lab.topology import Lab

from .loads import Delivered, Load
from .report import UNITS, Failure, Report, Sample
from .systems import RunError, System

SETTLE = 1.5
"""Seconds around a run: start and stop of the system and of the servers."""


@dataclass(frozen=True)
class Extent:
    """How much is measured: rounds, and how many seconds a run is meant to take."""

    rounds: int
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where and what a run is."""

    lab: Lab
    folder: Path
    load: Load
    system: System

    def __str__(self) -> str:
        return f"{self.load.name}, {self.system.name}"


@dataclass(frozen=True)
class Step:
    """A run, or the two of a warm-up: what is told of it before, and what takes it and tells what came out."""

    title: str
    take: Callable[[], str]


@dataclass
class Benchmark:
    """One benchmark, to be run once."""

    loads: Sequence[Load]
    systems: Sequence[System]
    extent: Extent
    report: Report
    console: Console
    prefix: str = "nfqguard-bench"

    def run(self) -> None:
        """Measure everything into the report. Failures of a run are part of it; a lab that cannot be made raises."""
        with tempfile.TemporaryDirectory(prefix="nfqguard-bench-") as name:
            folder = Path(name)
            for load in self.loads:
                load.prepare(folder, self.console.print)
            self.console.print(f"about {self._estimate():.0f} s: {len(self.loads)} loads, {len(self.systems)} systems, "
                               f"a warm-up and {self.extent.rounds} rounds of about {self.extent.seconds:g} s each")
            with Lab(prefix=self.prefix) as lab, self._progress() as progress:
                total = self._runs() * (self.extent.rounds + 1)
                task = progress.add_task("", total=total)
                for step in self._steps(lab, folder):
                    progress.update(task, description=step.title)
                    progress.console.print(f"{step.title}: {step.take()}")
                    progress.advance(task)

    def _measured(self, load: Load) -> list[System]:
        return [system for system in self.systems if system.name not in load.without]

    def _runs(self) -> int:
        return sum(len(self._measured(load)) for load in self.loads)

    def _estimate(self) -> float:
        return self._runs() * (self.extent.rounds * (self.extent.seconds + SETTLE) + 2 * SETTLE) + 3

    def _progress(self) -> Progress:
        return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                        TimeRemainingColumn(), console=self.console, transient=True)

    def _steps(self, lab: Lab, folder: Path) -> Iterator[Step]:
        for load in self.loads:
            messages: dict[str, int] = {}
            for system in self._measured(load):
                place = Place(lab, folder, load, system)
                yield Step(f"{place}, warm-up", partial(self._try, self._warm_up, place, messages))
            for number in range(1, self.extent.rounds + 1):
                for system in self._measured(load):
                    place = Place(lab, folder, load, system)
                    yield Step(f"{place}, round {number} of {self.extent.rounds}",
                               partial(self._try, self._round, place, messages))

    def _try(self, take: Callable[[Place, dict[str, int]], str], place: Place, messages: dict[str, int]) -> str:
        """A system that failed is left out of the later rounds of this load."""
        try:
            return take(place, messages)
        except RunError as error:
            messages.pop(place.system.name, None)
            self.report.failures.append(Failure(place.load.name, place.system.name, str(error)))
            return f"no figure: {error}"

    def _warm_up(self, place: Place, messages: dict[str, int]) -> str:
        """Two runs that are not counted. The first shows that what arrives is what was sent, the second how fast."""
        first = place.system.first[place.load.name]
        with place.system.in_path(place.lab, place.folder) as observer:
            place.load.run(place.lab, place.system, max(1, first // 10), verify=True)
            delivered = place.load.run(place.lab, place.system, first)
            observer.check(delivered.octets, delivered.messages)
        count = max(1, round(delivered.messages / delivered.seconds * self.extent.seconds))
        messages[place.system.name] = count
        return f"a run will have {count} messages"

    def _round(self, place: Place, messages: dict[str, int]) -> str:
        count = messages.get(place.system.name)
        if count is None:
            return "left out, for it failed before"
        with place.system.in_path(place.lab, place.folder) as observer:
            before = observer.cpu_seconds()
            delivered = place.load.run(place.lab, place.system, count)
            lost = observer.check(delivered.octets, delivered.messages)
            after = observer.cpu_seconds()
        self._record(place, delivered, None if before is None or after is None else after - before)
        scale, unit = UNITS[place.load.metric]
        rate = f"{place.load.rate(delivered) / scale:,.5g} {unit} in {delivered.seconds:.2f} s"
        return f"{rate}; the queue lost {lost} packets" if lost else rate

    def _record(self, place: Place, delivered: Delivered, cpu_seconds: float | None) -> None:
        load, name = place.load, place.system.name
        self.report.samples.append(Sample(load.name, name, load.metric, load.rate(delivered)))
        if cpu_seconds is not None:
            self.report.samples.append(Sample(load.name, name, "cpu_seconds", load.cpu(cpu_seconds, delivered)))
