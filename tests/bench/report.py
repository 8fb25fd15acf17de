"""The report: medians of the samples, ratios to the accept-all loop, a table for people and JSON for programs."""
from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

BASE = "accept-all"
LIMIT = "no-queue"
LEAST = 0.65
"""Of no-queue, for accept-all: below it the machine was busy with something else, and no ratio means anything."""

GATED = frozenset({"bulk"})
"""Scenarios that decide whether a run means anything. Small mail does not: each of its packets costs a wake-up, and
the loop was measured at 0.57 to 0.75 of no queue there, with nothing wrong."""

UNITS = {
    "bits_per_second": (1e9, "Gbit/s"),
    "messages_per_second": (1, "messages/s"),
    "cpu_seconds": (1, "s"),
}


@dataclass(frozen=True)
class Sample:
    """One figure of one run."""

    scenario: str
    system: str
    metric: str
    value: float


@dataclass(frozen=True)
class Failure:
    """A run that gave no figure, and why."""

    scenario: str
    system: str
    reason: str


@dataclass(frozen=True)
class Result:
    """A row of the report. ratio_to_accept_all is None where the accept-all loop has no such figure."""

    scenario: str
    system: str
    metric: str
    median: float
    min: float
    max: float
    runs: int
    ratio_to_accept_all: float | None


@dataclass
class Report:
    """What a benchmark found.

    machine   as machine.describe() tells it
    samples   in the order of measurement
    failures  runs without a figure; a report with any is incomplete
    cpu_units what cpu_seconds are told for, by scenario
    """

    machine: dict[str, str | int | float]
    cpu_units: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def results(self) -> list[Result]:
        """One row for each scenario, metric and system, in order of first appearance."""
        values = self._values()
        return [_result(key, found, values.get((key[0], BASE, key[2]))) for key, found in values.items()]

    def void(self) -> list[str]:
        """Why the whole run means nothing; empty when it does mean something."""
        rates = {(row.scenario, row.metric, row.system): row.median for row in self.results()
                 if row.metric != "cpu_seconds"}
        reasons = []
        for (scenario, metric, system), limit in rates.items():
            base = rates.get((scenario, metric, BASE))
            if scenario in GATED and system == LIMIT and base is not None and base < LEAST * limit:
                reasons.append(f"{scenario}: accept-all reached {base / limit:.2f} of no queue, less than {LEAST}")
        return reasons

    def as_dict(self) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "machine": self.machine,
            "results": [asdict(row) for row in self.results()],
            "cpu_seconds_per": self.cpu_units,
            "failures": [asdict(failure) for failure in self.failures],
            "void": self.void(),
        }

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n")

    def table(self) -> Table:
        """The report for people."""
        table = Table(title="Mail through the gateway, by what stands in its path")
        table.add_column("scenario")
        table.add_column("system", no_wrap=True)
        for name in ("median", "min", "max"):
            table.add_column(name, justify="right")
        table.add_column("unit", no_wrap=True)
        table.add_column("of accept-all", justify="right")
        previous = None
        for row in self._ordered():
            if previous is not None and (row.scenario, row.metric) != previous:
                table.add_section()
            previous = (row.scenario, row.metric)
            table.add_row(*self._cells(row))
        return table

    def _ordered(self) -> Iterable[Result]:
        rows = self.results()
        groups = dict.fromkeys((row.scenario, row.metric) for row in rows)
        return (row for group in groups for row in rows if (row.scenario, row.metric) == group)

    def _cells(self, row: Result) -> list[str]:
        scale, unit = UNITS[row.metric]
        if row.metric == "cpu_seconds":
            unit = f"CPU s/{self.cpu_units[row.scenario]}"
        ratio = "-" if row.ratio_to_accept_all is None else f"{row.ratio_to_accept_all:.3f}"
        figures = [_number(value / scale) for value in (row.median, row.min, row.max)]
        return [row.scenario, row.system, *figures, unit, ratio]

    def _values(self) -> dict[tuple[str, str, str], list[float]]:
        values: dict[tuple[str, str, str], list[float]] = {}
        for sample in self.samples:
            values.setdefault((sample.scenario, sample.system, sample.metric), []).append(sample.value)
        return values


def _result(key: tuple[str, str, str], values: list[float], base: list[float] | None) -> Result:
    middle = median(values)
    ratio = middle / median(base) if base and median(base) > 0 else None
    return Result(*key, middle, min(values), max(values), len(values), ratio)


def _number(value: float) -> str:
    """Three digits that count, and no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
