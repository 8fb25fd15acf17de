"""`nfqguard check`: is this configuration usable, and what about it will surprise?"""
from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from nfqguard.deploy.requirement import unmet
from nfqguard.policy.load import DEFAULT_FILE, ConfigError, Configuration, load


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True,
              help="The configuration file; conf.d/*.toml beside it is read, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(config: Path, as_json: bool) -> None:
    """Test a configuration: print every error and every warning. Exit status 0 when it can be used, 1 when not."""
    outcome: Configuration | ConfigError
    try:
        outcome = load(config)
        outcome = replace(outcome, warnings=(*outcome.warnings, *unmet(outcome)))
    except ConfigError as error:
        outcome = error
    if as_json:
        click.echo(json.dumps(_as_data(outcome), indent=2))
    else:
        _print(config, outcome)
    raise SystemExit(1 if isinstance(outcome, ConfigError) else 0)


def _print(config: Path, outcome: Configuration | ConfigError) -> None:
    for problem in outcome.problems if isinstance(outcome, ConfigError) else ():
        click.echo(f"{click.style('error', fg='red', bold=True)}: {problem}")
    for problem in outcome.warnings:
        click.echo(f"{click.style('warning', fg='yellow')}: {problem}")
    if isinstance(outcome, ConfigError):
        click.echo(f"{config}: this configuration cannot be used")
    else:
        click.echo(f"{config}: this configuration can be used; policy in force: {outcome.policy}")


def _as_data(outcome: Configuration | ConfigError) -> dict[str, Any]:
    """usable, policy, files[], errors[], warnings[]; a problem has file, key, text, remedy."""
    return {
        "usable": not isinstance(outcome, ConfigError),
        "policy": None if isinstance(outcome, ConfigError) else outcome.policy,
        "files": [] if isinstance(outcome, ConfigError) else list(outcome.files),
        "errors": [asdict(problem) for problem in outcome.problems] if isinstance(outcome, ConfigError) else [],
        "warnings": [asdict(problem) for problem in outcome.warnings],
    }
