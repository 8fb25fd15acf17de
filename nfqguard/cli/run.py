"""`nfqguard run`: inspect what the deployment brings to the queues, until a signal ends it."""
from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from nfqguard import daemon
from nfqguard.policy.load import DEFAULT_FILE, ConfigError, load

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2


@click.command()
@click.option("-c", "--config", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True,
              help="The configuration file.")
@click.option("--events", metavar="FILE", help="Write events there, - for standard output, not to the configured file.")
def run(config: Path, events: str | None) -> None:
    """Inspect mail in the foreground until SIGTERM or SIGINT; SIGHUP opens the file of events anew.

    Exit status: 0 stopped by a signal, 1 a queue failed or is taken, 2 the configuration is wrong.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="nfqguard: %(message)s")
    try:
        configuration = load(config)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_CONFIGURATION)
    for warning in configuration.warnings:
        logging.warning("%s", warning)
    try:
        daemon.run(configuration, events)
    except daemon.DaemonError as error:
        logging.error("%s", error)
        sys.exit(EXIT_FAILED)
