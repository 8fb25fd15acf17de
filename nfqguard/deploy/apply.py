"""Brings a plan into the kernel, takes it out again, compares. The only file that starts a program.

Each table of each family changes in one transaction of iptables-restore. There is none over several, so where a later
one fails the earlier ones are put back, jumps at their old positions. python-iptables was rejected: it binds the legacy
library and does not see what iptables-nft made.

Nothing here is called when the daemon stops: a deployment outlives its process, so that closed means closed.
"""
from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nfqguard.deploy import system
from nfqguard.deploy.difference import Difference, conflicts, differences
from nfqguard.deploy.iptables import NOTHING, Ours, Table, present, read_table, restore_text, wanted
from nfqguard.deploy.plan import Family, Plan, TableName, TablePlan

Backend = Literal["system", "nft", "legacy"]
"""system: whatever `iptables` means on this machine; nft and legacy: that one, where both are installed."""

PROGRAM: dict[Family, str] = {4: "iptables", 6: "ip6tables"}
LOCK_SECONDS = 10
"""How long to wait while another program holds the xtables lock."""
TIMEOUT_SECONDS = 60
ATTEMPTS = 3
"""Reading and writing are two steps; somebody else may change the table in between. Then read again."""

MODULES = {
    "multiport": "xt_multiport",
    "mark": "xt_mark",
    "MARK": "xt_mark",
    "conntrack": "xt_conntrack",
    "connmark": "xt_connmark",
    "CONNMARK": "xt_connmark",
    "statistic": "xt_statistic",
    "CT": "xt_CT",
    "NFQUEUE": "xt_NFQUEUE",
}
UNSUPPORTED = re.compile(
    r"No chain/target/match|missing kernel module|No such file|not supported|Couldn't load|can't initialize"
)
"""How iptables 1.8 words that the kernel, or its own extension, is missing."""


class DeployError(Exception):
    """The deployment could not be read or changed; the text says what happened and what to do."""


class RestoreError(DeployError):
    """iptables-restore refused a text. Nothing of it took effect."""


@dataclass(frozen=True)
class Applied:
    """What became of one family: whether anything had to change."""

    family: Family
    changed: bool


@dataclass(frozen=True)
class Netfilter:
    """The tables of one family, by the programs of one backend, in the network namespace of the calling thread."""

    family: Family
    backend: Backend = "system"

    def read(self, table: TableName) -> Table:
        """The table of that name. Raises DeployError."""
        # Without -t: asking the legacy program for one table by name would create it.
        done = _run([self._program("save")], "")
        if done.returncode:
            raise DeployError(f"{self.name('save')} failed: {_text_of(done)}")
        if f"Table `{table}' is incompatible" in done.stdout:
            raise DeployError(
                f"{self.name('save')} cannot show the {table} table, for another program has put native nftables steps "
                "into it: have it use a table of its own"
            )
        return read_table(done.stdout, table)

    def restore(self, text: str) -> None:
        """Hand over a restore text; all of it takes effect or nothing. Raises RestoreError, DeployError."""
        done = _run([self._program("restore"), "--noflush", f"--wait={LOCK_SECONDS}"], text)
        if done.returncode:
            raise RestoreError(_explain(self.name("restore"), _text_of(done), text))

    def installed(self) -> bool:
        """Whether the programs exist."""
        return shutil.which(self.name("save"), path=system.search_path()) is not None

    def name(self, action: str) -> str:
        """Name of the program for an action, save or restore."""
        backend = "" if self.backend == "system" else f"-{self.backend}"
        return f"{PROGRAM[self.family]}{backend}-{action}"

    def _program(self, action: str) -> str:
        path = shutil.which(self.name(action), path=system.search_path())
        if path is None:
            raise DeployError(f"{self.name(action)} was not found: install iptables (Debian: apt install iptables)")
        return path


def apply(plan: Plan, backend: Backend = "system") -> list[Applied]:
    """Make the kernel hold the plan, in every family of it that the machine has. What is as planned is not touched.

    Raises DeployError, after which every family is as it was before.
    """
    return _each(plan, backend, wanted, lambda part, table: not differences(part, table))


def remove(plan: Plan, backend: Backend = "system") -> list[Applied]:
    """Take our chains and every jump to them away. Raises DeployError, after which every family is as it was before."""
    return _each(plan, backend, lambda part: NOTHING, lambda part, table: present(table, part.chain) == NOTHING)


def check(plan: Plan, backend: Backend = "system") -> list[Difference]:
    """Where the kernel differs from the plan. Raises DeployError where that cannot be told."""
    found: list[Difference] = []
    for part in _here(plan).parts:
        table = Netfilter(part.family, backend).read(part.table)
        found += [*differences(part, table), *conflicts(part, table)]
        found += _in_other_backend(part, backend)
    return found


def _each(
    plan: Plan,
    backend: Backend,
    target: Callable[[TablePlan], Ours],
    is_done: Callable[[TablePlan, Table], bool],
) -> list[Applied]:
    changes: dict[Family, bool] = {}
    undo: list[Callable[[], None]] = []
    try:
        for part in _here(plan).parts:
            netfilter = Netfilter(part.family, backend)
            before = netfilter.read(part.table)
            if changed := not is_done(part, before):
                undo.append(_undoing(netfilter, part, present(before, part.chain)))
                _change(netfilter, part, target(part), before)
            changes[part.family] = changes.get(part.family, False) or changed
    except BaseException as error:
        _undo(undo, error)
        raise
    return [Applied(family, changed) for family, changed in changes.items()]


def _change(netfilter: Netfilter, part: TablePlan, target: Ours, before: Table) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return netfilter.restore(restore_text(part, before, target))
        except RestoreError:
            now = netfilter.read(part.table)
            if now == before or attempt == ATTEMPTS:
                raise
            before = now


def _undoing(netfilter: Netfilter, part: TablePlan, former: Ours) -> Callable[[], None]:
    def undo() -> None:
        now = netfilter.read(part.table)
        if present(now, part.chain) != former:
            netfilter.restore(restore_text(part, now, former))

    return undo


def _undo(steps: list[Callable[[], None]], cause: BaseException) -> None:
    for undo in reversed(steps):
        try:
            undo()
        except DeployError as error:
            cause.add_note(f"and putting the former state back failed, too: {error}")


def _here(plan: Plan) -> Plan:
    if not system.may_administer_network():
        raise DeployError("reading and changing Netfilter needs root (CAP_NET_ADMIN): run this as root")
    if system.has_ipv6():
        return plan
    if not plan.only(4).parts:
        raise DeployError("this machine has no IPv6 (/proc/net/if_inet6 is missing): nothing to deploy for it")
    return plan.only(4)


def _in_other_backend(part: TablePlan, backend: Backend) -> list[Difference]:
    # Both backends' tables are in force at once: a chain left in the other one queues every packet a second time.
    other = Netfilter(part.family, "legacy" if _is_nft(part.family, backend) else "nft")
    if not other.installed():
        return []
    try:
        table = other.read(part.table)
    except DeployError:
        return []  # the kernel lacks that backend, so nothing can be in it
    if present(table, part.chain) == NOTHING:
        return []
    meaning = f"chain {part.chain} exists in {part.table} of the {other.backend} tables as well: packets pass it twice"
    return [Difference(part.family, "other-backend", meaning, f"run: nfqguard rules remove --backend {other.backend}")]


def _is_nft(family: Family, backend: Backend) -> bool:
    if backend != "system":
        return backend == "nft"
    return "nf_tables" in _run([Netfilter(family)._program("save"), "--version"], "").stdout


def _run(command: list[str], text: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "PATH": system.search_path()}
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DeployError(f"{command[0]} did not end within {TIMEOUT_SECONDS} s") from error
    except OSError as error:
        raise DeployError(f"{command[0]} could not be run: {error.strerror}") from error


def _text_of(done: subprocess.CompletedProcess[str]) -> str:
    kept = [line.strip() for line in done.stderr.splitlines() if line.strip() and not line.startswith("Try `")]
    return "; ".join(kept).replace(":; ", ": ") or f"exit status {done.returncode}, no message"


def _explain(program: str, message: str, text: str) -> str:
    if "xtables lock" in message:
        return f"another program held the xtables lock for {LOCK_SECONDS} s; nothing was changed. Try again"
    if re.search(r"you must be root|Permission denied|Operation not permitted", message):
        return f"{program} was refused ({message}): run this as root, with CAP_NET_ADMIN in this network namespace"
    line = _failed_line(message, text)
    # The legacy program learns of the kernel's refusal at COMMIT only; then any step may be the cause.
    step = "" if line == "COMMIT" else line
    modules = sorted({MODULES[word] for word in (step or text).split() if word in MODULES})
    if modules and (line == "COMMIT" or UNSUPPORTED.search(message)):
        return (
            f"{program} could not add {f'`{step}`' if step else 'the steps'} ({message}): nothing was changed. "
            f"Does this kernel have {', '.join(modules)}? Try: modprobe -a {' '.join(modules)}"
        )
    return f"{program} refused the text, nothing was changed: {message}" + (f" (at `{step}`)" if step else "")


def _failed_line(message: str, text: str) -> str:
    found = re.search(r"line:? (\d+)", message)
    lines = text.splitlines()
    return lines[int(found[1]) - 1] if found and 1 <= int(found[1]) <= len(lines) else ""
