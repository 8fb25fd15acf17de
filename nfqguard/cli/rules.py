"""`nfqguard rules`: the deployment steps in Netfilter, shown, installed, compared, taken away."""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from nfqguard.deploy import system
from nfqguard.deploy.apply import PROGRAM, Applied, Backend, DeployError
from nfqguard.deploy.apply import apply as apply_plan
from nfqguard.deploy.apply import check as check_plan
from nfqguard.deploy.apply import remove as remove_plan
from nfqguard.deploy.difference import Difference
from nfqguard.deploy.iptables import Table, restore_text, wanted
from nfqguard.deploy.plan import Family, Plan, PlanError, TablePlan, make_plan, queue_values
from nfqguard.policy.load import DEFAULT_FILE, ConfigError, load
from nfqguard.policy.model import Deployment

EXIT_AS_PLANNED = 0
EXIT_DIFFERS = 1
EXIT_FAILED = 1
EXIT_CANNOT_TELL = 2


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every subcommand takes."""
    options = (
        click.option("-c", "--config", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True,
                     help="The configuration file."),
        click.option("--family", type=click.Choice(["4", "6"]), help="IPv4 or IPv6 only; both otherwise."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    )
    for option in reversed(options):
        command = option(command)
    return command


backend_option = click.option(
    "--backend", type=click.Choice(["system", "nft", "legacy"]), default="system", show_default=True,
    help="Which iptables: the machine's own choice, or that one.")


@click.group()
def rules() -> None:
    """Show, install, compare or take away the deployment steps in Netfilter."""


@rules.command("print")
@common_options
def print_text(config: Path, family: str | None, as_json: bool) -> None:
    """Print what `apply` would feed to iptables-restore on a machine where nothing is installed."""
    deployment, plan = _planned(config, family, as_json)
    texts: dict[Family, str] = {}
    for part in plan.parts:
        texts[part.family] = texts.get(part.family, "") + _text(part)
    if as_json:
        click.echo(json.dumps({f"ipv{number}": text for number, text in texts.items()}))
        return
    click.echo("\n".join(f"# {line}" for line in _legend(deployment)))
    for number, text in texts.items():
        click.echo(f"# IPv{number}: for {PROGRAM[number]}-restore --noflush\n{text}", nl=False)


@rules.command("apply")
@common_options
@backend_option
def apply(config: Path, family: str | None, as_json: bool, backend: Backend) -> None:
    """Install the steps, or bring them back to what is planned. They outlive the daemon; `remove` takes them away."""
    deployment, plan = _planned(config, family, as_json)
    results = _done(apply_plan, plan, backend, as_json)
    unbound = _unbound(deployment)
    if as_json:
        click.echo(json.dumps({"families": [asdict(result) for result in results], "unbound_queues": unbound}))
        return
    for result in results:
        click.echo(f"IPv{result.family}: {'installed' if result.changed else 'already as planned'}")
    if unbound:
        click.echo(_notice(deployment, unbound))


@rules.command("remove")
@common_options
@backend_option
def remove(config: Path, family: str | None, as_json: bool, backend: Backend) -> None:
    """Take the chains and every jump to them away. Mail passes uninspected from then on."""
    _, plan = _planned(config, family, as_json)
    results = _done(remove_plan, plan, backend, as_json)
    if as_json:
        click.echo(json.dumps({"families": [asdict(result) for result in results]}))
        return
    for result in results:
        click.echo(f"IPv{result.family}: {'removed' if result.changed else 'nothing was installed'}")


@rules.command("check")
@common_options
@backend_option
def check(config: Path, family: str | None, as_json: bool, backend: Backend) -> None:
    """Compare what is installed with what is planned: exit status 0 as planned, 1 different, 2 cannot tell."""
    _, plan = _planned(config, family, as_json)
    try:
        found = check_plan(plan, backend)
    except DeployError as error:
        _fail(error, as_json, EXIT_CANNOT_TELL)
    _report(found, as_json)
    sys.exit(EXIT_DIFFERS if found else EXIT_AS_PLANNED)


def _planned(config: Path, family: str | None, as_json: bool) -> tuple[Deployment, Plan]:
    try:
        deployment = load(config).deployment
        plan = make_plan(deployment)
    except (ConfigError, PlanError) as error:
        _fail(error, as_json, EXIT_CANNOT_TELL)
    chosen: dict[str, Family] = {"4": 4, "6": 6}
    return deployment, plan.only(chosen[family]) if family else plan


def _legend(deployment: Deployment) -> list[str]:
    """What the numbers in the text stand for."""
    mask = deployment.connmark_mask
    values = queue_values(mask, deployment.queue_count)
    lines = [f"connmark, bits {mask:#x} of a connection:"]
    lines += [f"  {value:#x}: queue {deployment.queue_first + index}" for index, value in enumerate(values)]
    if deployment.offload_mark:
        lines += [
            f"  {mask:#x}: the kernel has it, since TLS began or for an exempt class; only a new opening is queued",
            f"packet mark {deployment.offload_mark:#x}: nfqguard accepts the packet and hands its connection over",
        ]
    own, untracked = deployment.own_mark, deployment.untracked_mark
    return [*lines, f"packet marks {own:#x} and {untracked:#x}: nfqguard itself sends the packet"]


def _text(part: TablePlan) -> str:
    return restore_text(part, Table({}), wanted(part))


def _done(
    action: Callable[[Plan, Backend], Sequence[Applied]], plan: Plan, backend: Backend, as_json: bool
) -> Sequence[Applied]:
    try:
        return action(plan, backend)
    except DeployError as error:
        _fail(error, as_json, EXIT_FAILED)


def _unbound(deployment: Deployment) -> list[int]:
    bound = system.bound_queues()
    wanted_queues = range(deployment.queue_first, deployment.queue_first + deployment.queue_count)
    return [] if bound is None else [number for number in wanted_queues if number not in bound]


def _notice(deployment: Deployment, unbound: list[int]) -> str:
    queues = ", ".join(map(str, unbound))
    ports = ", ".join(map(str, deployment.ports))
    fate = "passes uninspected" if deployment.on_absent == "accept" else "is dropped"
    return (f"No process is bound to queue {queues}: mail on port {ports} that comes there {fate} "
            f"(on-absent = \"{deployment.on_absent}\") until nfqguard runs.")


def _report(found: list[Difference], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"as_planned": not found, "differences": [asdict(difference) for difference in found]}))
    elif not found:
        click.echo("Netfilter is as planned.")
    else:
        click.echo("\n".join(map(str, found)))


def _fail(error: Exception, as_json: bool, status: int) -> NoReturn:
    lines = [str(error), *getattr(error, "__notes__", ())]
    if as_json:
        answer: dict[str, Any] = {"error": lines}
        click.echo(json.dumps(answer))
    else:
        click.echo("\n".join(f"nfqguard rules: {line}" for line in lines), err=True)
    sys.exit(status)
