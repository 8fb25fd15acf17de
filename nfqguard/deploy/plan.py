"""What should exist in Netfilter, as plain data: no iptables syntax, no system, no file.

Per address family one chain of ours in the mangle table, with jumps to it, and two small ones: in mangle POSTROUTING
for connections that the kernel takes over, and in the raw table.

The jumps are the last steps of mangle FORWARD. A packet that the engine accepts goes on at the next hook, so whatever
stands behind them in this table never sees it; an operator's TCPMSS clamp has to stand before. The filter table
comes later and still judges what we accept. PREROUTING was rejected as a place: there one direction is seen before NAT,
the other after.

The jump by port takes the diverted ports only, and inside the chain nothing is accepted: a packet is queued, dropped,
or returned to where it came from. The order inside:

1.  Our own packets return (hook host only; see below).
2.  Exempt hosts return, whichever end they are. They come before every drop: exempt means untouched.
3.  Connections that were handed over to the kernel return, known by their connmark. But every SYN and SYN-ACK on such a
    connection goes to the first queue: after a RST of the server's, or where an end has forgotten the connection,
    conntrack takes a new one on the same ports for the old one, and its connmark with it (nf_conntrack_proto_tcp.c:
    a SYN that is "ignored", then the SYN-ACK that answers it). The engine sees the opening and judges it.
4.  Whoever else set offload-mark's bits has not handed anything over: they are cleared.
5.  What conntrack calls INVALID is dropped: wrong checksum, impossible flags, outside the window. Conntrack alone only
    detaches such a packet from its connection and lets it pass. Without a connection it has no connmark, so step 3 does
    not know it, and step 8 would drop it, too; here it is counted apart, and stays out also if step 8 should ever be
    loosened.
6.  A connection without a queue gets one, in turn, kept in a few bits of its connmark. One queue has the same shape as
    many, so that going from one to two keeps running connections where they are.
7.  The packet goes to its connection's queue.
8.  The rest is dropped: what conntrack does not follow can carry no connmark, and so has no queue.

Fragments have no step of their own. Conntrack, which these steps need anyhow, reassembles before it looks, so a
fragment reaches this table only where somebody took it away from conntrack (raw table, before defragmentation). Its
first fragment still shows the port, comes here, has no connmark and ends in step 8. Later fragments show no port:
`iptables -f` could only match them for all of TCP, which would hit other people's traffic, and without the first nobody
can reassemble them. A fragment that would overwrite the first one's ports lies at offset 0 and shows a port itself.

ICMP errors about our connections have a jump of their own, behind the one by port. They quote a segment as it was
behind the gateway. Where an edit changed the length that number was never its sender's, who therefore believes no word
of it (RFC 5927, 4.1): a path with a smaller MTU swallows its segments for good. Only the engine knows both numbers.
Conntrack finds the quoted connection and attaches that one to the error, as RELATED, so the connmark which the error
shows is the connection's: any queue in it and the error is ours, and goes to the queue that knows the flow. All other
ICMP, errors about connections without a queue included, never comes here. A jump for all ICMP that is RELATED was
rejected: what has no queue would end in step 8. On a mail host only INPUT has this jump, for nobody's errors about our
connections leave by OUTPUT. Without the engine the errors are dropped like the segments.

What we send ourselves (resets, refusals) leaves by OUTPUT, under two marks. Under own-mark go the packets that
conntrack knows as their connection's: they must be tracked, so that it translates them. Under own-mark + 1 go those
whose addresses are final already, such as the one to a server behind DNAT: conntrack knows its connection in the other
direction only and would take it for a new one, whose source port it has to change. So raw OUTPUT jumps to a chain of
the same name, which takes them away from conntrack. That jump is the first step there: of several CT steps the first
one counts, and an operator's zone would keep ours from working. In mangle OUTPUT, which is ours on a mail host only,
both marks return before step 5: to conntrack the second of two resets may be INVALID, for it meets a connection that
the first has closed. An operator's own drop of INVALID in OUTPUT needs an exception for own-mark.

The engine hands a connection over by setting offload-mark's bits in the packet mark of one packet that it accepts. In
mangle POSTROUTING, which that packet comes to next, a chain of ours keeps this on the connmark, as the highest value of
connmark-mask, and clears the bits again. Only our own bits of the connmark change, and only of connections that have a
queue. From then on step 3 lets the connection pass, the daemon running or not. The same chain takes it back: a SYN-ACK
that comes so far on such a connection was accepted by the engine and begins a new one, which belongs to the first queue
from its next packet on. A SYN alone takes nothing back on a gateway, for anybody can forge one; on a mail host it does,
for there only what the host sends itself passes POSTROUTING, and INPUT does not. Setting the connmark through ctnetlink
was rejected: a second socket and a lookup, and not in one step with the packet.

On a mail host a packet on the loopback interface would pass OUTPUT and INPUT and be judged twice, the second time as
its own retransmission. So INPUT leaves out what came over `lo`; both directions of a local connection pass OUTPUT.

Sources: net/netfilter/nf_queue.c, xt_NFQUEUE.c, xt_connmark.c, xt_statistic.c, nf_defrag_ipv4.c,
nf_conntrack_proto_icmp.c (nf_conntrack_inet_error) (Linux 6.12);
iptables-extensions(8).
"""
from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from nfqguard.policy.model import Deployment

Family = Literal[4, 6]
FAMILIES: tuple[Family, ...] = (4, 6)
Hook = Literal["FORWARD", "INPUT", "OUTPUT"]
KEEPING = "-OUT"
"""What the name of the chain in mangle POSTROUTING ends in; at most 28 octets in all (XT_EXTENSION_MAXNAMELEN)."""
TableName = Literal["mangle", "raw"]
End = Literal["source", "destination"]
ENDS: tuple[End, ...] = ("source", "destination")

PORTS_PER_JUMP = 15
"""XT_MULTI_PORTS of linux/netfilter/xt_multiport.h: more ports need a second jump."""


RESERVED_NAMES = frozenset(
    {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING", "ACCEPT", "DROP", "RETURN", "QUEUE"}
)
"""The table's own chains, which we would empty, and the verdicts, which a jump would mean instead."""


class PlanError(ValueError):
    """The deployment section asks for what Netfilter cannot do; the text says what and which key to change."""


@dataclass(frozen=True)
class ReturnOwn:
    """Packets that we sent ourselves, known by their packet mark, go on as they are."""

    mark: int


@dataclass(frozen=True)
class ReturnHost:
    """Packets from (source) or to (destination) an exempt network go on uninspected."""

    network: IPv4Network | IPv6Network
    end: End


@dataclass(frozen=True)
class DropInvalid:
    """Packets that conntrack calls INVALID are dropped."""


@dataclass(frozen=True)
class ChooseQueue:
    """One of every `every` connections that have no queue yet gets `value` into the bits `mask` of its connmark."""

    value: int
    mask: int
    every: int


@dataclass(frozen=True)
class SendToQueue:
    """Connections with `value` in the bits `mask` of the connmark go to NFQUEUE `number`; bypass: accept if unbound."""

    value: int
    mask: int
    number: int
    bypass: bool


@dataclass(frozen=True)
class DropRest:
    """What has no queue is dropped, never passed."""


@dataclass(frozen=True)
class Untrack:
    """Conntrack leaves the packet alone."""


@dataclass(frozen=True)
class QueueOpening:
    """A SYN or SYN-ACK on a connection that was handed over goes to NFQUEUE `number`; bypass: accept if unbound."""

    mask: int
    number: int
    bypass: bool


@dataclass(frozen=True)
class ReturnOffloaded:
    """Packets of connections that were handed over, known by all bits of the mask, go on uninspected."""

    mask: int


@dataclass(frozen=True)
class ClearMark:
    """Packets that show all these bits in the packet mark lose them."""

    mark: int


@dataclass(frozen=True)
class KeepOffload:
    """A packet with these bits in its mark hands its connection over, where that has a queue: all bits of the mask."""

    mark: int
    mask: int


@dataclass(frozen=True)
class TakeBack:
    """A SYN-ACK (`any_syn`: or a SYN) gives a connection that was handed over the queue with this value."""

    value: int
    mask: int
    any_syn: bool


Step = (
    ReturnOwn | ReturnHost | QueueOpening | ReturnOffloaded | ClearMark | DropInvalid | ChooseQueue | SendToQueue
    | DropRest | KeepOffload | TakeBack | Untrack
)


@dataclass(frozen=True)
class Jump:
    """At the end of a built-in chain: TCP from or to one of the ports goes through our chain."""

    hook: Hook
    ports: tuple[int, ...]
    except_input: str | None = None
    """Name of an input interface whose packets are left out."""


@dataclass(frozen=True)
class ErrorJump:
    """Behind the jumps by port: ICMP errors of this family about connections that have a queue go through our chain."""

    hook: Hook
    family: Family
    mask: int
    """The bits of the connmark that hold a connection's queue."""
    except_input: str | None = None
    """Name of an input interface whose packets are left out."""


@dataclass(frozen=True)
class KeepJump:
    """In mangle POSTROUTING: TCP from or to one of the ports goes through the chain that hands over and takes back."""

    hook: Literal["POSTROUTING"]
    ports: tuple[int, ...]


@dataclass(frozen=True)
class MarkJump:
    """The first step of a built-in chain: packets with this packet mark go through our chain."""

    hook: Hook
    mark: int


AnyJump = Jump | ErrorJump | KeepJump | MarkJump


@dataclass(frozen=True)
class TablePlan:
    """One chain of ours, in one table of one address family: its steps, in order, and the jumps to it.

    steps None: the chain should not exist.
    """

    family: Family
    table: TableName
    chain: str
    steps: tuple[Step, ...] | None
    jumps: tuple[AnyJump, ...]


@dataclass(frozen=True)
class Plan:
    """What should exist, IPv4 first, of each family the mangle table first."""

    parts: tuple[TablePlan, ...]

    def only(self, *families: Family) -> Plan:
        """The same plan without the other families."""
        return Plan(tuple(part for part in self.parts if part.family in families))


def make_plan(deployment: Deployment) -> Plan:
    """The plan for a deployment section, both families. Raises PlanError."""
    if not deployment.ports:
        raise PlanError("deployment.ports is empty: name at least one port, such as 25")
    if deployment.chain in RESERVED_NAMES:
        raise PlanError(f"deployment.chain cannot be {deployment.chain}, Netfilter's own name: choose another one")
    return Plan(tuple(part for family in FAMILIES for part in _parts(deployment, family)))


def queue_values(mask: int, count: int) -> tuple[int, ...]:
    """The connmark values that stand for queue 1, 2, ... `count`, each within the bits `mask`; 0 stands for none yet.

    The model has made sure that the bits are adjacent and can count so far.
    """
    lowest = mask & -mask
    return tuple(number * lowest for number in range(1, count + 1))


def _parts(deployment: Deployment, family: Family) -> tuple[TablePlan, ...]:
    return (_mangle(deployment, family), _keeping(deployment, family), _raw(deployment, family))


def _keeping(deployment: Deployment, family: Family) -> TablePlan:
    mark, mask = deployment.offload_mark, deployment.connmark_mask
    take_back = TakeBack(queue_values(mask, 1)[0], mask, deployment.hook == "host")
    steps = (take_back, KeepOffload(mark, mask), ClearMark(mark))
    jumps = tuple(KeepJump("POSTROUTING", group) for group in _port_groups(deployment))
    return TablePlan(family, "mangle", deployment.chain + KEEPING, steps if mark else None, jumps if mark else ())


def _mangle(deployment: Deployment, family: Family) -> TablePlan:
    return TablePlan(family, "mangle", deployment.chain, _steps(deployment, family), _jumps(deployment, family))


def _raw(deployment: Deployment, family: Family) -> TablePlan:
    return TablePlan(family, "raw", deployment.chain, (Untrack(),), (MarkJump("OUTPUT", deployment.untracked_mark),))


def _port_groups(deployment: Deployment) -> list[tuple[int, ...]]:
    ports = tuple(dict.fromkeys(deployment.ports))
    return [ports[at : at + PORTS_PER_JUMP] for at in range(0, len(ports), PORTS_PER_JUMP)]


def _jumps(deployment: Deployment, family: Family) -> tuple[AnyJump, ...]:
    groups = _port_groups(deployment)
    mask = deployment.connmark_mask
    if deployment.hook == "forward":
        return (*(Jump("FORWARD", group) for group in groups), ErrorJump("FORWARD", family, mask))
    arriving = tuple(Jump("INPUT", group, except_input="lo") for group in groups)
    errors = ErrorJump("INPUT", family, mask, except_input="lo")
    return (*arriving, errors, *(Jump("OUTPUT", group) for group in groups))


def _steps(deployment: Deployment, family: Family) -> tuple[Step, ...]:
    marks = (deployment.own_mark, deployment.untracked_mark) if deployment.hook == "host" else ()
    first = (*map(ReturnOwn, marks), *_exempt(deployment, family), *_offloaded(deployment))
    return (*first, DropInvalid(), *_queueing(deployment), DropRest())


def _exempt(deployment: Deployment, family: Family) -> tuple[Step, ...]:
    networks = [network for network in dict.fromkeys(deployment.exempt) if network.version == family]
    return tuple(ReturnHost(network, end) for network in networks for end in ENDS)


def _offloaded(deployment: Deployment) -> tuple[Step, ...]:
    if not deployment.offload_mark:
        return ()
    mask, bypass = deployment.connmark_mask, deployment.on_absent == "accept"
    opening = QueueOpening(mask, deployment.queue_first, bypass)
    return (opening, ReturnOffloaded(mask), ClearMark(deployment.offload_mark))


def _queueing(deployment: Deployment) -> tuple[Step, ...]:
    # Each choice sees only the connections that the earlier ones left, so "every" counts down: with four queues the
    # first takes a quarter of all, the second a third of the rest, and the last whatever is left.
    mask, count = deployment.connmark_mask, deployment.queue_count
    values = queue_values(mask, count)
    choices = tuple(ChooseQueue(value, mask, count - index) for index, value in enumerate(values))
    bypass = deployment.on_absent == "accept"
    queues = (SendToQueue(value, mask, deployment.queue_first + index, bypass) for index, value in enumerate(values))
    return (*choices, *queues)
