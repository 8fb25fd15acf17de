"""The plan in the language of iptables: steps to text, iptables-save output to structure, and the text between the two.

Every step is written exactly as iptables-save prints it, so that wanted and existing compare as text. The chain's name
and the jumps' target are enough to find what is ours again; comments on the steps would only need one more match
extension from the kernel.

A change is one restore text for `iptables-restore --noflush`: the kernel takes all of it or nothing, and names no chain
but those we change. It deletes the jumps that are there and adds those that shall be there, in the same transaction, so
that applying twice is applying once and at no moment a packet finds no jump.

Syntax: iptables-restore(8), iptables-extensions(8); canonical forms as of iptables 1.8.9, nft and legacy alike.
"""
from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from itertools import pairwise

from nfqguard.deploy.plan import (
    AnyJump,
    ChooseQueue,
    ClearMark,
    DropInvalid,
    DropRest,
    ErrorJump,
    Family,
    KeepJump,
    KeepOffload,
    MarkJump,
    QueueOpening,
    ReturnHost,
    ReturnOffloaded,
    ReturnOwn,
    SendToQueue,
    TableName,
    TablePlan,
    TakeBack,
    Untrack,
)

ICMP: dict[Family, str] = {4: "icmp", 6: "ipv6-icmp"}


@dataclass(frozen=True)
class PlacedJump:
    """A jump to our chain: from which chain, with which matches, and where; position counts from 1, None is last."""

    chain: str
    specification: str
    position: int | None = None


@dataclass(frozen=True)
class Ours:
    """What of a table is ours: the chain's steps in order (None: no such chain) and all jumps to it."""

    steps: tuple[str, ...] | None
    jumps: tuple[PlacedJump, ...]


NOTHING = Ours(None, ())


@dataclass(frozen=True)
class Table:
    """A table as it exists: each chain's steps in order, as iptables-save prints them without `-A CHAIN`."""

    chains: dict[str, tuple[str, ...]]


@singledispatch
def specification(step: object) -> str:
    """Matches and target of a step of our chain, as iptables-save prints them."""
    raise TypeError(f"no deployment step: {step!r}")


@specification.register
def _(step: ReturnOwn) -> str:
    return f"-m mark --mark {step.mark:#x} -j RETURN"


@specification.register
def _(step: ReturnHost) -> str:
    if step.network.prefixlen == 0:
        return "-j RETURN"  # iptables-save leaves out a network that is everything
    return f"{'-s' if step.end == 'source' else '-d'} {step.network} -j RETURN"


@specification.register
def _(step: DropInvalid) -> str:
    return "-m conntrack --ctstate INVALID -j DROP"


@specification.register
def _(step: ChooseQueue) -> str:
    turn = f" -m statistic --mode nth --every {step.every} --packet 0" if step.every > 1 else ""
    target = f"-j CONNMARK --set-xmark {step.value:#x}/{step.mask:#x}"
    return f"-m connmark --mark {_masked(0, step.mask)}{turn} {target}"


@specification.register
def _(step: SendToQueue) -> str:
    return f"-m connmark --mark {_masked(step.value, step.mask)} {_to_queue(step.number, step.bypass)}"


@specification.register
def _(step: QueueOpening) -> str:
    opening = f"-p tcp -m tcp --tcp-flags SYN SYN -m connmark --mark {_masked(step.mask, step.mask)}"
    return f"{opening} {_to_queue(step.number, step.bypass)}"


@specification.register
def _(step: ReturnOffloaded) -> str:
    return f"-m connmark --mark {_masked(step.mask, step.mask)} -j RETURN"


@specification.register
def _(step: ClearMark) -> str:
    return f"-m mark --mark {_masked(step.mark, step.mark)} -j MARK --set-xmark 0x0/{step.mark:#x}"


@specification.register
def _(step: KeepOffload) -> str:
    asked, queued = f"-m mark --mark {_masked(step.mark, step.mark)}", f"-m connmark ! --mark {_masked(0, step.mask)}"
    return f"{asked} {queued} -j CONNMARK --set-xmark {step.mask:#x}/{step.mask:#x}"


@specification.register
def _(step: TakeBack) -> str:
    flags = "SYN SYN" if step.any_syn else "FIN,SYN,RST,ACK SYN,ACK"
    opening = f"-p tcp -m tcp --tcp-flags {flags} -m connmark --mark {_masked(step.mask, step.mask)}"
    return f"{opening} -j CONNMARK --set-xmark {step.value:#x}/{step.mask:#x}"


@specification.register
def _(step: DropRest) -> str:
    return "-j DROP"


@specification.register
def _(step: Untrack) -> str:
    return "-j CT --notrack"


def jump_specification(jump: AnyJump, chain: str) -> str:
    """Matches and target of a jump, as iptables-save prints them."""
    if isinstance(jump, MarkJump):
        return f"-m mark --mark {jump.mark:#x} -j {chain}"
    if isinstance(jump, KeepJump):
        return _by_port(jump.ports, chain)
    interface = f"! -i {jump.except_input} " if jump.except_input else ""
    if isinstance(jump, ErrorJump):
        queued = f"-m conntrack --ctstate RELATED -m connmark ! --mark {_masked(0, jump.mask)}"
        return f"{interface}-p {ICMP[jump.family]} {queued} -j {chain}"
    return interface + _by_port(jump.ports, chain)


def _by_port(ports: tuple[int, ...], chain: str) -> str:
    return f"-p tcp -m multiport --ports {','.join(map(str, ports))} -j {chain}"


def wanted(part: TablePlan) -> Ours:
    """What the plan wants: jumps by port and those of errors last in their chain, one by mark first."""
    if part.steps is None:
        return NOTHING
    steps = tuple(specification(step) for step in part.steps)
    return Ours(steps, tuple(_placed(jump, part.chain) for jump in part.jumps))


def present(table: Table, chain: str) -> Ours:
    """What of the table is ours, jumps with their positions."""
    return Ours(table.chains.get(chain), tuple(_jumps_to(table, chain)))


def read_table(saved: str, name: TableName) -> Table:
    """The table of that name in iptables-save output (with or without counters); empty where there is none."""
    chains: dict[str, list[str]] = {}
    here = False
    for line in saved.splitlines():
        if line.startswith("*"):
            here = line[1:].strip() == name
        elif here and line.startswith(":"):
            chains.setdefault(line[1:].split()[0], [])
        elif here and (line.startswith("-A ") or line.startswith("[")):
            chain, step = line[line.index("-A ") + 3 :].split(" ", 1)
            chains.setdefault(chain, []).append(step)
    return Table({chain: tuple(steps) for chain, steps in chains.items()})


def restore_text(part: TablePlan, table: Table, target: Ours) -> str:
    """Text for `iptables-restore --noflush` that turns what is ours in `table` into `target` and touches nothing else.

    Empty where neither has anything. Declaring the chain creates it, or empties it where it exists.
    """
    chain, existing = part.chain, present(table, part.chain)
    if existing == NOTHING and target == NOTHING:
        return ""
    lines = [f"*{part.table}", f":{chain} - [0:0]"]
    lines += [f"-A {chain} {step}" for step in target.steps or ()]
    lines += [f"-D {jump.chain} {jump.specification}" for jump in existing.jumps]
    lines += [_add(jump) for jump in target.jumps]
    if target.steps is None:
        lines += [f"-X {chain}"]
    return "\n".join([*lines, "COMMIT", ""])


def words(step: str) -> tuple[str, ...]:
    """A step's words with every number in one spelling, for another version may print 0 where this one prints 0x0."""
    return tuple("/".join(map(_number, word.split("/"))) for word in shlex.split(step))


def target_of(step: str) -> str:
    """The chain or target that a step leads to; empty where it has none."""
    parts = shlex.split(step)
    return next((after for word, after in pairwise(parts) if word in ("-j", "-g")), "")


def connmark_bits_written(step: str) -> int:
    """The bits of the connmark that a step overwrites, as a mask; 0 where it leaves the connmark alone.

    Every way of setting is printed as --set-xmark VALUE/MASK, and saving with both masks; restoring only reads.
    """
    parts = shlex.split(step)
    if target_of(step) != "CONNMARK":
        return 0
    options = dict(pairwise(parts))
    if "--set-xmark" in options:
        value, _, mask = options["--set-xmark"].partition("/")
        return int(value, 0) | int(mask or "0xffffffff", 0)
    return int(options.get("--ctmask", "0xffffffff"), 0) if "--save-mark" in parts else 0


def _jumps_to(table: Table, chain: str) -> Iterator[PlacedJump]:
    for name, steps in table.chains.items():
        for position, step in enumerate(steps, 1):
            if name != chain and target_of(step) == chain:
                yield PlacedJump(name, step, position)


def _placed(jump: AnyJump, chain: str) -> PlacedJump:
    return PlacedJump(jump.hook, jump_specification(jump, chain), 1 if isinstance(jump, MarkJump) else None)


def _add(jump: PlacedJump) -> str:
    if jump.position is None:
        return f"-A {jump.chain} {jump.specification}"
    return f"-I {jump.chain} {jump.position} {jump.specification}"


def _to_queue(number: int, bypass: bool) -> str:
    return f"-j NFQUEUE --queue-num {number}{' --queue-bypass' if bypass else ''}"


def _masked(value: int, mask: int) -> str:
    # iptables-save leaves out a mask of all bits.
    return f"{value:#x}" if mask == 0xFFFFFFFF else f"{value:#x}/{mask:#x}"


def _number(word: str) -> str:
    try:
        return str(int(word, 0))
    except ValueError:
        return word
