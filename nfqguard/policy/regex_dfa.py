"""From the nondeterministic automaton to the smallest deterministic one: subset construction, Hopcroft's algorithm.

How much work this may be is bounded by counts, not by a clock: whether a policy loads must not depend on how busy the
machine is.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from enum import IntEnum

from nfqguard.policy.regex_nfa import ACCEPT, Assertion, Nfa, RegexError

STATES = 4096
"""States that the smallest automaton may have: with 40 classes of octets, 320 KiB."""

STATES_MADE = 20_000
"""States before the smallest automaton is looked for."""

WORK = 3_000_000
"""Threads moved while states are made; about two seconds on a machine of 2020."""

CR, LF = 13, 10
MATCHED, MATCHES_AT_END = 1, 2


class Obligation(IntEnum):
    """What a thread that passed an end of line or text has claimed of the octets to come."""

    NONE = 0
    LF = 1
    CRLF = 2
    END = 3


class Before(IntEnum):
    """What came before the place where a thread is."""

    OTHER = 0
    LF = 1
    NOTHING = 2


Item = tuple[int, Obligation]
Items = frozenset[Item]
DONE: Item = (ACCEPT, Obligation.NONE)
ALL_DONE: Items = frozenset([DONE])
DONE_AT_END: Item = (ACCEPT, Obligation.END)


def too_large(what: str) -> RegexError:
    return RegexError(f"it is too large: {what}",
                      "make repetitions smaller, anchor it with ^, or split it into several matches")


def octet_classes(sets: Iterable[int]) -> bytes:
    """Octet -> class; octets that no set tells apart share one. Classes count from 0 in order of appearance."""
    different = sorted(set(sets))
    known: dict[tuple[int, ...], int] = {}
    return bytes(known.setdefault(tuple(members >> octet & 1 for members in different), len(known))
                 for octet in range(256))


class Subsets:
    """The subset construction.

    A search begins anew at every octet, so all sets have the threads of `_base` in common. These are left out of a
    state's set: what it costs to make a state is then what it holds beyond them, and an alternation of hundreds of
    names is cheap.

    class_of  octet -> class
    rows      by state and class: the next state
    accepts   by state: does it match if the text ends here?
    """

    def __init__(self, nfa: Nfa) -> None:
        self._nfa = nfa
        self._work = 0
        self._closures: dict[tuple[Item, Before], Items] = {}
        self._steps: dict[Item, list[tuple[int, Items]]] = {}
        self.class_of = octet_classes([*nfa.reads, *([1 << CR, 1 << LF] if nfa.lines else [])])
        self._representative = {octet_class: octet for octet, octet_class in enumerate(self.class_of)}
        self._base: Items = frozenset()
        self._base = self._closure((nfa.start, Obligation.NONE), Before.OTHER)
        self._closures.clear()
        self._base_row = self._moved([frozenset()] * len(self._representative), self._base)
        self._numbers: dict[Items, int] = {}
        self._pending: list[Items] = []
        self.rows: list[list[int]] = []
        self.accepts: list[bool] = []
        self._number(self._closure((nfa.start, Obligation.NONE), Before.NOTHING))
        for items in self._pending:     # which grows meanwhile
            self.rows.append([self._number(target) for target in self._row(items)])

    def _number(self, items: Items) -> int:
        """The state of these threads; all that have matched are one."""
        if DONE in items or DONE in self._base:
            items = ALL_DONE
        if items not in self._numbers:
            if len(self._numbers) == STATES_MADE:
                raise too_large(f"it has more than {STATES_MADE} states on the way to the fewest")
            self._numbers[items] = len(self._numbers)
            self._pending.append(items)
            self.accepts.append(not {DONE, DONE_AT_END}.isdisjoint(items) or DONE_AT_END in self._base)
        return self._numbers[items]

    def _row(self, items: Items) -> list[Items]:
        self._spend(len(self._base_row))
        return [items] * len(self._base_row) if DONE in items else self._moved(self._base_row, items)

    def _moved(self, row: list[Items], items: Items) -> list[Items]:
        """The row, and in addition where these threads go."""
        gathered: dict[int, set[Item]] = defaultdict(set)
        for item in items:
            for octet_class, targets in self._step(item):
                self._spend(len(targets))
                gathered[octet_class] |= targets
        row = list(row)
        for octet_class, found in gathered.items():
            row[octet_class] |= found
        return row

    def _step(self, item: Item) -> list[tuple[int, Items]]:
        """Where one thread goes, by class; without the classes that end it."""
        if item not in self._steps:
            node, obligation = item
            reads = self._nfa.reads[node]
            kept = {Obligation.NONE: reads, Obligation.LF: reads & 1 << LF, Obligation.CRLF: reads & 1 << CR,
                    Obligation.END: 0}[obligation]
            behind = (self._nfa.leads[node], Obligation.LF if obligation is Obligation.CRLF else Obligation.NONE)
            self._steps[item] = [
                (octet_class, self._closure(behind, Before.LF if octet == LF and self._nfa.lines else Before.OTHER))
                for octet_class, octet in self._representative.items() if kept >> octet & 1
            ]
        return self._steps[item]

    def _closure(self, item: Item, before: Before) -> Items:
        """The threads that read next, or have matched, once this one has passed all it can; without the base."""
        if (item, before) not in self._closures:
            seen, waiting = {item}, [item]
            while waiting:
                node, obligation = waiting.pop()
                for target, assertion in self._nfa.passes[node]:
                    fresh = {(target, owed) for owed in passing(assertion, obligation, before)} - seen
                    seen |= fresh
                    waiting += fresh
            self._spend(len(seen))
            reading = frozenset(found for found in seen if self._nfa.reads[found[0]])
            self._closures[item, before] = reading - self._base
        return self._closures[item, before]

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > WORK:
            raise too_large("too much work to compile it")


def passing(assertion: Assertion, owed: Obligation, before: Before) -> tuple[Obligation, ...]:
    """What a thread that owes `owed` owes behind the assertion, one for each way to pass; none: it cannot pass."""
    if assertion is Assertion.TEXT_START:
        return (owed,) if before is Before.NOTHING else ()
    if assertion is Assertion.LINE_START:
        return () if before is Before.OTHER else (owed,)
    if assertion is Assertion.TEXT_END:
        return (Obligation.END,) if owed in (Obligation.NONE, Obligation.END) else ()
    if assertion is Assertion.LINE_END and owed is Obligation.NONE:
        return Obligation.LF, Obligation.CRLF, Obligation.END
    return (owed,)


class Partition:
    """Hopcroft's algorithm: blocks of states that nothing read from there on tells apart, once refine() is done.

    Blocks only ever grow in number, so that what will be too large is known long before the end.

    block_of  state -> block
    """

    def __init__(self, rows: list[list[int]], accepts: list[bool]) -> None:
        kinds = sorted(set(accepts))
        self.block_of = [kinds.index(accept) for accept in accepts]
        self._blocks: list[set[int]] = [set() for _ in kinds]
        for state, block in enumerate(self.block_of):
            self._blocks[block].add(state)
        self._sources: list[dict[int, list[int]]] = [defaultdict(list) for _ in rows[0]]
        for state, row in enumerate(rows):
            for octet_class, target in enumerate(row):
                self._sources[octet_class][target].append(state)
        self._waiting = set(range(len(kinds)))

    def refine(self) -> None:
        while self._waiting:
            splitter = list(self._blocks[self._waiting.pop()])
            for sources in self._sources:
                self._split([source for target in splitter for source in sources.get(target, ())])

    def _split(self, states: list[int]) -> None:
        """Part the states from the others of their blocks."""
        touched: dict[int, set[int]] = defaultdict(set)
        for state in states:
            touched[self.block_of[state]].add(state)
        for block, inside in touched.items():
            outside = self._blocks[block] - inside if len(inside) < len(self._blocks[block]) else None
            if outside:
                self._part(block, *sorted((inside, outside), key=len))

    def _part(self, block: int, smaller: set[int], larger: set[int]) -> None:
        if len(self._blocks) == STATES:
            raise too_large(f"it needs more than {STATES} states")
        self._blocks[block] = larger
        self._blocks.append(smaller)
        new = len(self._blocks) - 1
        for state in smaller:
            self.block_of[state] = new
        self._waiting.add(new)      # where `block` waits, both do now; where not, the smaller one is enough


def minimised(rows: list[list[int]], accepts: list[bool]) -> tuple[list[list[int]], list[int]]:
    """The smallest automaton that says the same: its rows and, by state, MATCHED and MATCHES_AT_END. It has matched for
    good in the one accepting state that nothing leaves. State 0 stays the start."""
    partition = Partition(rows, accepts)
    partition.refine()
    numbers = {partition.block_of[0]: 0}
    members = [0]
    made: list[list[int]] = []
    for member in members:              # which grows meanwhile
        row = []
        for target in rows[member]:
            block = partition.block_of[target]
            if block not in numbers:
                numbers[block] = len(numbers)
                members.append(target)
            row.append(numbers[block])
        made.append(row)
    return made, [
        0 if not accepts[member] else MATCHED | MATCHES_AT_END if set(row) == {state} else MATCHES_AT_END
        for state, (member, row) in enumerate(zip(members, made, strict=True))
    ]


def merged_classes(rows: list[list[int]], class_of: bytes) -> tuple[list[list[int]], bytes]:
    """Classes whose columns are alike become one."""
    numbers: dict[tuple[int, ...], int] = {}
    merged = [numbers.setdefault(column, len(numbers)) for column in zip(*rows, strict=True)]
    return [list(row) for row in zip(*numbers, strict=True)], bytes(merged[octet_class] for octet_class in class_of)
