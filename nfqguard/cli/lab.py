"""`nfqguard lab`: three hosts in network namespaces, with a real mail server, to try things on."""
from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from nfqguard.lab.demo import Demo
from nfqguard.lab.postfix import Postfix
from nfqguard.lab.roots import RootError
from nfqguard.lab.server import DOMAIN, USERS
from nfqguard.lab.topology import Host, Lab, LabError

prefix_option = click.option("--prefix", default="nfqguard", show_default=True,
                             help="Begins the namespaces' names; labs of different prefixes stand side by side.")


@click.group()
def lab() -> None:
    """A lab on this machine: client, gateway and mail servers in network namespaces. Needs root."""


@lab.command()
@prefix_option
@click.option("--mtu", type=click.IntRange(1280, 65535), default=1500, show_default=True, help="Of every link.")
@click.option("--offloads/--no-offloads", default=None, help="Checksum and segmentation offloads of every link; the "
              "kernel's default if not given.")
def up(prefix: str, mtu: int, offloads: bool | None) -> None:
    """Set up the lab and start its mail servers. One that stands with the same options is left as it is."""
    with _explained():
        network = Lab(prefix=prefix, mtu=mtu, offloads=offloads, second=True)
        network.up()
        _say(f"the network stands: {', '.join(host.name for host in network.hosts)}")
        for host in (network.server, network.second_server):
            postfix = Postfix(network, host, progress=_say)
            postfix.start()
            _say(f"Postfix answers on {host.ipv4} and {host.ipv6} as {postfix.name}")
    box = Postfix(network).mailbox("alice")
    click.echo(f"From the client the mail server is {network.public_ipv4} or {network.public_ipv6}, port 25.\n"
               f"Mailboxes: {', '.join(f'{user}@{DOMAIN}' for user in USERS)}; {box} holds what came.\n"
               f"`nfqguard lab shell gateway` is a shell on the gateway; `nfqguard lab down` ends the lab.")


@lab.command()
@prefix_option
def down(prefix: str) -> None:
    """Take the lab down: its processes (a shell inside, too), its namespaces and its files, mailboxes included."""
    with _explained():
        Lab(prefix=prefix).down()
    click.echo("The lab is down.")


@lab.command()
@click.argument("host", type=click.Choice(["client", "gateway", "server", "second"]))
@prefix_option
def shell(host: str, prefix: str) -> None:
    """A shell on a host of the lab, with this machine's files and programs."""
    network = Lab(prefix=prefix, second=True)
    hosts: dict[str, Host] = {"client": network.client, "gateway": network.gateway, "server": network.server,
                              "second": network.second_server}
    chosen = hosts[host]
    if not chosen.exists():
        click.echo(f"The lab has no {host} now: `nfqguard lab up` makes one.", err=True)
        sys.exit(1)
    program = os.environ.get("SHELL") or shutil.which("bash") or "/bin/sh"
    argv = chosen.argv([program])
    if sys.stdin.isatty():
        click.echo(f"This is the lab's {host}; `exit` leads back.")
    sys.stdout.flush()
    os.execvp(argv[0], argv)


@lab.command()
@click.option("--prefix", default="nfqguard-demo", show_default=True,
              help="As for `lab up`; another one, so that a lab of yours is left alone.")
def demo(prefix: str) -> None:
    """Show it all: a message through the gateway, a dialogue with forbidden commands, events, counters; clean up.

    Exit status: 0 if everything was as it must be, 1 if anything was not.
    """
    with _explained():
        sys.exit(0 if Demo(Lab(prefix=prefix)).run() else 1)


def _say(line: str) -> None:
    click.echo(f"  {line}")


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (LabError, RootError) as error:
        click.echo(f"nfqguard lab: {error}", err=True)
        sys.exit(1)
