"""The command line: arguments and printing; decides nothing.

Each command is a file of its own, named like the command, and is imported only when it is asked for: `nfqguard check`
needs neither the engine nor scapy, and a part that is not installed takes only its own command with it.
"""
from __future__ import annotations

import importlib

import click

from nfqguard import __version__

COMMANDS = ("run", "check", "preset", "rules", "events", "replay", "lab")
"""In the order in which an operator meets them; `nfqguard.cli.NAME` holds the click command called NAME."""


class LazyGroup(click.Group):
    """A group that finds its commands by file name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands whose file is there."""
        return [name for name in COMMANDS if self.get_command(ctx, name) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called `cmd_name`, or None where this installation has none."""
        if cmd_name not in COMMANDS:
            return None
        path = f"{__name__}.{cmd_name}"
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError as missing:
            if missing.name == path:
                return None
            raise
        commands = (value for value in vars(module).values() if isinstance(value, click.Command))
        return next((command for command in commands if command.name == cmd_name), None)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nfqguard")
def main() -> None:
    """An inline SMTP inspector for Linux gateways."""
