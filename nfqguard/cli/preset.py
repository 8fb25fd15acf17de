"""`nfqguard preset`: the shipped policies."""
from __future__ import annotations

import sys

import click

from nfqguard.policy.load import ConfigError, load_preset, preset_names, preset_text


@click.group()
def preset() -> None:
    """Show the shipped policies."""


@preset.command("list")
def list_presets() -> None:
    """Name the presets, one a line."""
    for name in preset_names():
        click.echo(name)


@preset.command("show")
@click.argument("name")
def show(name: str) -> None:
    """Print the preset NAME as it is written: a policy file to extend or to copy."""
    try:
        load_preset(name)
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from None
    click.echo(preset_text(name), nl=False)
