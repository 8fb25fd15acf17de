"""Where Netfilter differs from the plan, what each difference means for the mail, and what to do about it."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nfqguard.deploy import iptables
from nfqguard.deploy.iptables import PlacedJump, Table, words
from nfqguard.deploy.plan import (
    KEEPING,
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
    Step,
    TablePlan,
    TakeBack,
    Untrack,
)

Kind = Literal[
    "chain-missing",
    "chain-foreign",
    "step-missing",
    "step-foreign",
    "steps-out-of-order",
    "jump-missing",
    "jump-foreign",
    "jump-doubled",
    "jump-not-last",
    "jump-not-first",
    "connmark-overwritten",
    "other-backend",
]

APPLY = "run: nfqguard rules apply"
UNTRANSLATED = "path MTU discovery does not work where an edit changed the length"
NOT_OFFLOADED = "connections whose TLS has begun, and exempt ones of classes, are not handed over to the kernel"
NEW_FOR_OLD = "a new connection on the ports of one that the kernel has taken over may pass uninspected"
OWN_ONE_END = "of the packets that nfqguard sends itself some do not arrive where addresses are translated"


@dataclass(frozen=True)
class Difference:
    """One difference: its kind for programs; what is so and what that means, and the remedy, for people."""

    family: Family
    kind: Kind
    meaning: str
    remedy: str

    def __str__(self) -> str:
        return f"IPv{self.family}: {self.meaning}; {self.remedy}"


def differences(part: TablePlan, table: Table) -> list[Difference]:
    """Where `table` differs from the plan; an empty list where it is as planned."""
    if part.steps is None:
        return list(_unwanted(part, table))
    if part.chain not in table.chains:
        keeps = any(isinstance(step, KeepOffload) for step in part.steps)
        consequence = OWN_ONE_END if part.table == "raw" else NOT_OFFLOADED if keeps else "mail passes uninspected"
        meaning = f"chain {part.chain} is missing from {part.table}, so {consequence}"
        return [Difference(part.family, "chain-missing", meaning, APPLY)]
    return [*_in_chain(part, table), *_in_jumps(part, table)]


def conflicts(part: TablePlan, table: Table) -> list[Difference]:
    """Steps of others in mangle that write the connmark bits which hold a connection's queue. We cannot mend them."""
    mask = max((step.mask for step in part.steps or () if isinstance(step, ChooseQueue)), default=0)
    ours = (part.chain, part.chain + KEEPING)
    found = []
    for chain, steps in table.chains.items():
        for step in steps:
            if chain not in ours and iptables.connmark_bits_written(step) & mask:
                meaning = (
                    f"mangle {chain} holds `{step}`, which overwrites bits {mask:#x} of the connmark, where a "
                    "connection's queue is kept: packets come to the wrong queue or are dropped"
                )
                remedy = f"give that step a mask without {mask:#x}, or choose other bits as connmark-mask"
                found.append(Difference(part.family, "connmark-overwritten", meaning, remedy))
    return found


def _unwanted(part: TablePlan, table: Table) -> Iterator[Difference]:
    if part.chain in table.chains:
        meaning = f"chain {part.chain} exists in {part.table}, and is not planned any more"
        yield Difference(part.family, "chain-foreign", meaning, APPLY)


def _in_chain(part: TablePlan, table: Table) -> Iterator[Difference]:
    steps = part.steps or ()
    existing = [words(step) for step in table.chains[part.chain]]
    planned = [words(iptables.specification(step)) for step in steps]
    if existing == planned:
        return
    missing, foreign = Counter(planned) - Counter(existing), Counter(existing) - Counter(planned)
    for step, step_words in zip(steps, planned, strict=True):
        if missing[step_words]:
            yield Difference(part.family, "step-missing", _without(part.chain, step), APPLY)
    for text, step_words in zip(table.chains[part.chain], existing, strict=True):
        if foreign[step_words]:
            yield _foreign_step(part, text)
    if not missing and not foreign:
        meaning = f"the steps of chain {part.chain} are not in the planned order, so mail may pass uninspected"
        yield Difference(part.family, "steps-out-of-order", meaning, APPLY)


def _without(chain: str, step: Step) -> str:
    return f"chain {chain} lacks `{iptables.specification(step)}`: {_consequence(step)}"


def _consequence(step: Step) -> str:
    match step:
        case ReturnOwn():
            return "the packets that nfqguard sends itself would be queued again"
        case ReturnHost(network=network):
            return f"mail of the exempt {network} is inspected"
        case DropInvalid():
            return "packets that conntrack calls invalid are no longer dropped by themselves and counted apart"
        case ChooseQueue():
            return "connections are not spread over the queues as planned"
        case SendToQueue(number=number):
            return f"nothing, or not everything that should, reaches queue {number}"
        case QueueOpening() | TakeBack():
            return NEW_FOR_OLD
        case ReturnOffloaded():
            return "connections that the kernel has taken over come to no queue and are dropped"
        case ClearMark():
            return "packets on which somebody else set offload-mark's bits may hand connections over uninspected"
        case KeepOffload():
            return NOT_OFFLOADED
        case DropRest():
            return "what has no queue passes uninspected"
        case Untrack():
            return OWN_ONE_END


def _foreign_step(part: TablePlan, text: str) -> Difference:
    meaning = f"chain {part.chain} holds `{text}`, which is not planned and may lead mail around the inspection"
    remedy = f"if it is needed put it into another chain, then {APPLY} (which empties {part.chain} first)"
    return Difference(part.family, "step-foreign", meaning, remedy)


def _in_jumps(part: TablePlan, table: Table) -> Iterator[Difference]:
    existing = iptables.present(table, part.chain).jumps
    for jump in part.jumps:
        yield from _of_jump(part, jump, [placed for placed in existing if _is(placed, jump, part.chain)])
    for placed in existing:
        if not any(_is(placed, jump, part.chain) for jump in part.jumps):
            meaning = f"{placed.chain} holds `{placed.specification}`, which is not planned: other packets come to us"
            yield Difference(part.family, "jump-foreign", meaning, APPLY)
    yield from _before(part, table) if part.table == "raw" else _behind(part, table)


def _is(placed: PlacedJump, jump: AnyJump, chain: str) -> bool:
    planned = words(iptables.jump_specification(jump, chain))
    return placed.chain == jump.hook and words(placed.specification) == planned


def _of_jump(part: TablePlan, jump: AnyJump, found: list[PlacedJump]) -> Iterator[Difference]:
    if isinstance(jump, MarkJump):
        what, consequence = f"mark {jump.mark:#x}", OWN_ONE_END
    elif isinstance(jump, KeepJump):
        what, consequence = f"port {', '.join(map(str, jump.ports))}", NOT_OFFLOADED
    elif isinstance(jump, ErrorJump):
        what, consequence = "ICMP errors about connections that have a queue", UNTRANSLATED
    else:
        what, consequence = f"port {', '.join(map(str, jump.ports))}", "this mail passes uninspected"
    if not found:
        meaning = f"{part.table} {jump.hook} does not jump to {part.chain} for {what}: {consequence}"
        yield Difference(part.family, "jump-missing", meaning, APPLY)
    elif len(found) > 1:
        meaning = f"{part.table} {jump.hook} jumps to {part.chain} {len(found)} times for {what}; once is planned"
        yield Difference(part.family, "jump-doubled", meaning, APPLY)


def _before(part: TablePlan, table: Table) -> Iterator[Difference]:
    for jump in part.jumps:
        steps = table.chains.get(jump.hook, ())
        ours = [position for position, step in enumerate(steps) if iptables.target_of(step) == part.chain]
        if ours and ours[0]:
            meaning = (
                f"in {part.table} {jump.hook} the jump to {part.chain} is not first: `{'`, `'.join(steps[: ours[0]])}` "
                "may put our own packets into a zone of connection tracking or lead them past it"
            )
            remedy = f"{APPLY}; where a program puts steps first there, let it start before nfqguard"
            yield Difference(part.family, "jump-not-first", meaning, remedy)


def _behind(part: TablePlan, table: Table) -> Iterator[Difference]:
    # A jump that is missing altogether has been reported; here only foreign steps behind one that exists count.
    # Behind a jump that keeps the connmark nothing is skipped: its chain only returns.
    for hook in dict.fromkeys(jump.hook for jump in part.jumps if not isinstance(jump, KeepJump)):
        steps = table.chains.get(hook, ())
        ours = [position for position, step in enumerate(steps) if iptables.target_of(step) == part.chain]
        behind = [step for step in steps[ours[0] :] if iptables.target_of(step) != part.chain] if ours else []
        if behind:
            skipped = "`, `".join(behind)
            meaning = f"in mangle {hook} the jump to {part.chain} is not last: accepted mail skips `{skipped}`"
            remedy = f"{APPLY}; where a program appends steps there, let it start before nfqguard"
            yield Difference(part.family, "jump-not-last", meaning, remedy)
