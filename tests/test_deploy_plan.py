"""The plan and its text: exact restore text for several deployments, and what check says of a table that differs."""
from __future__ import annotations

from collections.abc import Callable

import pytest

from nfqguard.deploy.apply import _explain
from nfqguard.deploy.difference import conflicts, differences
from nfqguard.deploy.iptables import NOTHING, Table, present, read_table, restore_text, wanted
from nfqguard.deploy.plan import KEEPING, PORTS_PER_JUMP, PlanError, TableName, TablePlan, make_plan, queue_values
from nfqguard.policy.model import Deployment


def errors(family: int, chain: str = "NFQGUARD", mask: str = "0x0/0xf000000") -> str:
    """The jump for ICMP errors about our connections, from the protocol on."""
    protocol = {4: "icmp", 6: "ipv6-icmp"}[family]
    return f"-p {protocol} -m conntrack --ctstate RELATED -m connmark ! --mark {mask} -j {chain}"


def part_of(family: int = 4, table: TableName = "mangle", out: bool = False, **keys: object) -> TablePlan:
    """out: the chain in mangle POSTROUTING."""
    parts = make_plan(Deployment.model_validate(keys)).only(family).parts
    (part,) = (part for part in parts if part.table == table and part.chain.endswith(KEEPING) == out)
    return part


def fresh_text(family: int = 4, table: TableName = "mangle", out: bool = False, **keys: object) -> list[str]:
    part = part_of(family, table, out, **keys)
    return restore_text(part, Table({}), wanted(part)).splitlines()


def test_default_deployment() -> None:
    expected = [
        "*mangle",
        ":NFQGUARD - [0:0]",
        "-A NFQGUARD -p tcp -m tcp --tcp-flags SYN SYN -m connmark --mark 0xf000000/0xf000000 -j NFQUEUE --queue-num 0",
        "-A NFQGUARD -m connmark --mark 0xf000000/0xf000000 -j RETURN",
        "-A NFQGUARD -m mark --mark 0x10000000/0x10000000 -j MARK --set-xmark 0x0/0x10000000",
        "-A NFQGUARD -m conntrack --ctstate INVALID -j DROP",
        "-A NFQGUARD -m connmark --mark 0x0/0xf000000 -j CONNMARK --set-xmark 0x1000000/0xf000000",
        "-A NFQGUARD -m connmark --mark 0x1000000/0xf000000 -j NFQUEUE --queue-num 0",
        "-A NFQGUARD -j DROP",
        "-A FORWARD -p tcp -m multiport --ports 25 -j NFQGUARD",
    ]
    errors4 = "-A FORWARD -p icmp -m conntrack --ctstate RELATED -m connmark ! --mark 0x0/0xf000000 -j NFQGUARD"
    errors6 = "-A FORWARD -p ipv6-icmp -m conntrack --ctstate RELATED -m connmark ! --mark 0x0/0xf000000 -j NFQGUARD"
    assert fresh_text(4) == [*expected, errors4, "COMMIT"]
    assert fresh_text(6) == [*expected, errors6, "COMMIT"]


def test_gateway_with_queues_exemptions_and_bypass() -> None:
    keys = {
        "ports": [25, 587],
        "queue-first": 10,
        "queue-count": 3,
        "connmark-mask": 0x70,
        "offload-mark": 0x300,
        "on-absent": "accept",
        "chain": "MAIL-in",
        "exempt": ["192.0.2.7", "198.51.100.0/24", "2001:db8::/32"],
    }
    behind = [
        "-A MAIL-in -p tcp -m tcp --tcp-flags SYN SYN -m connmark --mark 0x70/0x70"
        " -j NFQUEUE --queue-num 10 --queue-bypass",
        "-A MAIL-in -m connmark --mark 0x70/0x70 -j RETURN",
        "-A MAIL-in -m mark --mark 0x300/0x300 -j MARK --set-xmark 0x0/0x300",
        "-A MAIL-in -m conntrack --ctstate INVALID -j DROP",
        "-A MAIL-in -m connmark --mark 0x0/0x70 -m statistic --mode nth --every 3 --packet 0"
        " -j CONNMARK --set-xmark 0x10/0x70",
        "-A MAIL-in -m connmark --mark 0x0/0x70 -m statistic --mode nth --every 2 --packet 0"
        " -j CONNMARK --set-xmark 0x20/0x70",
        "-A MAIL-in -m connmark --mark 0x0/0x70 -j CONNMARK --set-xmark 0x30/0x70",
        "-A MAIL-in -m connmark --mark 0x10/0x70 -j NFQUEUE --queue-num 10 --queue-bypass",
        "-A MAIL-in -m connmark --mark 0x20/0x70 -j NFQUEUE --queue-num 11 --queue-bypass",
        "-A MAIL-in -m connmark --mark 0x30/0x70 -j NFQUEUE --queue-num 12 --queue-bypass",
        "-A MAIL-in -j DROP",
        "-A FORWARD -p tcp -m multiport --ports 25,587 -j MAIL-in",
    ]
    errors4, errors6 = (f"-A FORWARD {errors(family, 'MAIL-in', '0x0/0x70')}" for family in (4, 6))
    head = ["*mangle", ":MAIL-in - [0:0]"]
    assert fresh_text(4, **keys) == [
        *head,
        "-A MAIL-in -s 192.0.2.7/32 -j RETURN",
        "-A MAIL-in -d 192.0.2.7/32 -j RETURN",
        "-A MAIL-in -s 198.51.100.0/24 -j RETURN",
        "-A MAIL-in -d 198.51.100.0/24 -j RETURN",
        *behind,
        errors4,
        "COMMIT",
    ]
    exempt = ["-A MAIL-in -s 2001:db8::/32 -j RETURN", "-A MAIL-in -d 2001:db8::/32 -j RETURN"]
    assert fresh_text(6, **keys) == [*head, *exempt, *behind, errors6, "COMMIT"]


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_handed_over_is_kept_and_taken_back(family: int) -> None:
    opening = "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN,ACK"
    accepted = "-m mark --mark 0x10000000/0x10000000"
    assert fresh_text(family, out=True, ports=[25, 587]) == [
        "*mangle",
        ":NFQGUARD-OUT - [0:0]",
        f"-A NFQGUARD-OUT {opening} -m connmark --mark 0xf000000/0xf000000"
        " -j CONNMARK --set-xmark 0x1000000/0xf000000",
        f"-A NFQGUARD-OUT {accepted} -m connmark ! --mark 0x0/0xf000000 -j CONNMARK --set-xmark 0xf000000/0xf000000",
        f"-A NFQGUARD-OUT {accepted} -j MARK --set-xmark 0x0/0x10000000",
        "-A POSTROUTING -p tcp -m multiport --ports 25,587 -j NFQGUARD-OUT",
        "COMMIT",
    ]


def test_on_a_mail_host_a_syn_that_leaves_takes_back_too() -> None:
    keys = {"hook": "host", "chain": "MAIL-in", "connmark-mask": 0x70, "offload-mark": 0x300}
    assert fresh_text(out=True, **keys)[2:-2] == [
        "-A MAIL-in-OUT -p tcp -m tcp --tcp-flags SYN SYN -m connmark --mark 0x70/0x70"
        " -j CONNMARK --set-xmark 0x10/0x70",
        "-A MAIL-in-OUT -m mark --mark 0x300/0x300 -m connmark ! --mark 0x0/0x70 -j CONNMARK --set-xmark 0x70/0x70",
        "-A MAIL-in-OUT -m mark --mark 0x300/0x300 -j MARK --set-xmark 0x0/0x300",
    ]


def test_without_offload_mark_nothing_is_handed_over() -> None:
    assert fresh_text(out=True, **{"offload-mark": 0}) == []
    assert not [line for line in fresh_text(**{"offload-mark": 0}) if "RETURN" in line or "-j MARK" in line]


@pytest.mark.parametrize("keys,said", [
    ({"queue-count": 3, "connmark-mask": 0x30}, "queue-count 3 is one too many"),
    ({"queue-count": 15}, "queue-count 15 is one too many"),
    ({"offload-mark": 0x6000000}, "within 0x6e660001"),
    ({"offload-mark": 2}, "within 0x6e660002"),
])
def test_offloading_needs_numbers_of_its_own(keys: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Deployment.model_validate(keys)
    assert Deployment.model_validate({**keys, "offload-mark": 0}).offload_mark == 0


def test_mail_host_returns_its_own_packets_before_all_else_and_judges_loopback_once() -> None:
    assert fresh_text(4, hook="host", exempt=["192.0.2.7"]) == [
        "*mangle",
        ":NFQGUARD - [0:0]",
        "-A NFQGUARD -m mark --mark 0x6e660001 -j RETURN",
        "-A NFQGUARD -m mark --mark 0x6e660002 -j RETURN",
        "-A NFQGUARD -s 192.0.2.7/32 -j RETURN",
        "-A NFQGUARD -d 192.0.2.7/32 -j RETURN",
        "-A NFQGUARD -p tcp -m tcp --tcp-flags SYN SYN -m connmark --mark 0xf000000/0xf000000 -j NFQUEUE --queue-num 0",
        "-A NFQGUARD -m connmark --mark 0xf000000/0xf000000 -j RETURN",
        "-A NFQGUARD -m mark --mark 0x10000000/0x10000000 -j MARK --set-xmark 0x0/0x10000000",
        "-A NFQGUARD -m conntrack --ctstate INVALID -j DROP",
        "-A NFQGUARD -m connmark --mark 0x0/0xf000000 -j CONNMARK --set-xmark 0x1000000/0xf000000",
        "-A NFQGUARD -m connmark --mark 0x1000000/0xf000000 -j NFQUEUE --queue-num 0",
        "-A NFQGUARD -j DROP",
        "-A INPUT ! -i lo -p tcp -m multiport --ports 25 -j NFQGUARD",
        f"-A INPUT ! -i lo {errors(4)}",
        "-A OUTPUT -p tcp -m multiport --ports 25 -j NFQGUARD",
        "COMMIT",
    ]


@pytest.mark.parametrize("hook", ["forward", "host"])
def test_packets_of_our_own_with_final_addresses_are_taken_from_conntrack(hook: str) -> None:
    keys = {"hook": hook, "own-mark": 0x41, "chain": "MAIL-in"}
    expected = [
        "*raw",
        ":MAIL-in - [0:0]",
        "-A MAIL-in -j CT --notrack",
        "-I OUTPUT 1 -m mark --mark 0x42 -j MAIL-in",
        "COMMIT",
    ]
    assert fresh_text(4, "raw", **keys) == expected
    assert fresh_text(6, "raw", **keys) == expected


def test_both_marks_are_numbers_that_a_packet_can_have() -> None:
    assert Deployment.model_validate({"own-mark": 0xFFFFFFFE, "offload-mark": 0}).untracked_mark == 0xFFFFFFFF
    with pytest.raises(ValueError, match="own-mark"):
        Deployment.model_validate({"own-mark": 0xFFFFFFFF})


def test_more_ports_than_one_jump_can_name() -> None:
    ports = list(range(1025, 1025 + PORTS_PER_JUMP + 1))
    first = ",".join(map(str, ports[:PORTS_PER_JUMP]))
    assert fresh_text(4, ports=[*ports, 1025])[-4:] == [
        f"-A FORWARD -p tcp -m multiport --ports {first} -j NFQGUARD",
        f"-A FORWARD -p tcp -m multiport --ports {ports[-1]} -j NFQGUARD",
        f"-A FORWARD {errors(4)}",
        "COMMIT",
    ]


def test_mask_of_all_bits_is_written_as_iptables_prints_it() -> None:
    lines = fresh_text(4, **{"connmark-mask": 0xFFFFFFFF, "offload-mark": 0x10000000})
    assert "-A NFQGUARD -m connmark --mark 0xffffffff -j RETURN" in lines
    assert "-A NFQGUARD -m connmark --mark 0x0 -j CONNMARK --set-xmark 0x1/0xffffffff" in lines
    assert "-A NFQGUARD -m connmark --mark 0x1 -j NFQUEUE --queue-num 0" in lines
    assert f"-A FORWARD {errors(4, mask='0x0')}" in lines


@pytest.mark.parametrize(
    "mask,count,values", [(1, 1, (1,)), (0x80000000, 1, (0x80000000,)), (0x700, 3, (0x100, 0x200, 0x300))]
)
def test_queue_values_lie_in_the_mask_and_are_never_zero(mask: int, count: int, values: tuple[int, ...]) -> None:
    assert queue_values(mask, count) == values


@pytest.mark.parametrize(
    "keys,named",
    [
        ({"ports": []}, "ports"),
        ({"chain": "FORWARD"}, "FORWARD"),
    ],
)
def test_what_netfilter_cannot_do_is_refused(keys: dict[str, object], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        make_plan(Deployment.model_validate(keys))


SAVED = """\
# Generated by iptables-save v1.8.9 on Sun Nov  1 00:00:00 2026
*mangle
:PREROUTING ACCEPT [7:420]
:FORWARD ACCEPT [0:0]
:operators - [0:0]
:NFQGUARD - [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -p tcp -m multiport --ports 25 -j NFQGUARD
-A FORWARD -p icmp -m conntrack --ctstate RELATED -m connmark ! --mark 0x0/0xf000000 -j NFQGUARD
-A FORWARD -m comment --comment "counts -j NFQGUARD" -j operators
-A NFQGUARD -p tcp -m tcp --tcp-flags SYN SYN -m connmark --mark 0xf000000/0xf000000 -j NFQUEUE --queue-num 0
-A NFQGUARD -m connmark --mark 0xf000000/0xf000000 -j RETURN
-A NFQGUARD -m mark --mark 0x10000000/0x10000000 -j MARK --set-xmark 0x0/0x10000000
-A NFQGUARD -m conntrack --ctstate INVALID -j DROP
-A NFQGUARD -m connmark --mark 0x0/0xf000000 -j CONNMARK --set-xmark 0x1000000/0xf000000
-A NFQGUARD -m connmark --mark 0x1000000/0xf000000 -j NFQUEUE --queue-num 0
-A NFQGUARD -j DROP
COMMIT
# Completed on Sun Nov  1 00:00:00 2026
*raw
:OUTPUT ACCEPT [0:0]
:NFQGUARD - [0:0]
-A OUTPUT -m mark --mark 0x6e660002 -j NFQGUARD
-A OUTPUT -m mark --mark 0x7 -j CT --zone 7
-A NFQGUARD -j CT --notrack
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -p tcp -m multiport --ports 25 -j NFQGUARD
COMMIT
"""


def table_with(*changes: tuple[str, str]) -> Table:
    text = SAVED
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return read_table(text, "mangle")


BEHIND = ('-A FORWARD -m comment --comment "counts -j NFQGUARD" -j operators\n', "")
JUMP = "-A FORWARD -p tcp -m multiport --ports 25 -j NFQGUARD\n-A FORWARD -p icmp"
ERRORS = f"-A FORWARD {errors(4)}\n"
LAST = "-A NFQGUARD -j DROP\n"


def test_reading_keeps_to_one_table_and_takes_counters() -> None:
    table = read_table(SAVED, "mangle")
    assert set(table.chains) == {"PREROUTING", "FORWARD", "operators", "NFQGUARD"}
    assert len(table.chains["FORWARD"]) == 4 and len(table.chains["NFQGUARD"]) == 7
    assert [jump.position for jump in present(table, "NFQGUARD").jumps] == [2, 3]
    counted = "\n".join(f"[3:180] {line}" if line.startswith("-A") else line for line in SAVED.splitlines())
    assert read_table(counted, "mangle") == table
    assert {name: len(steps) for name, steps in read_table(SAVED, "raw").chains.items()} == {"OUTPUT": 2, "NFQGUARD": 1}


def test_applying_replaces_every_jump_in_one_transaction_and_puts_ours_last() -> None:
    part, table = part_of(), read_table(SAVED, "mangle")
    lines = restore_text(part, table, wanted(part)).splitlines()
    assert lines[:2] == ["*mangle", ":NFQGUARD - [0:0]"]
    assert lines[-5:] == [
        "-D FORWARD -p tcp -m multiport --ports 25 -j NFQGUARD",
        f"-D FORWARD {errors(4)}",
        "-A FORWARD -p tcp -m multiport --ports 25 -j NFQGUARD",
        f"-A FORWARD {errors(4)}",
        "COMMIT",
    ]
    assert lines.count("COMMIT") == 1


def test_removing_names_only_what_is_ours() -> None:
    assert restore_text(part_of(), read_table(SAVED, "mangle"), NOTHING).splitlines() == [
        "*mangle",
        ":NFQGUARD - [0:0]",
        "-D FORWARD -p tcp -m multiport --ports 25 -j NFQGUARD",
        f"-D FORWARD {errors(4)}",
        "-X NFQGUARD",
        "COMMIT",
    ]
    assert restore_text(part_of(), Table({}), NOTHING) == ""
    assert restore_text(part_of(table="raw"), read_table(SAVED, "raw"), NOTHING).splitlines() == [
        "*raw",
        ":NFQGUARD - [0:0]",
        "-D OUTPUT -m mark --mark 0x6e660002 -j NFQGUARD",
        "-X NFQGUARD",
        "COMMIT",
    ]


def test_undo_puts_the_former_jump_where_it_was() -> None:
    before = present(read_table(SAVED, "mangle"), "NFQGUARD")
    after = table_with(BEHIND)
    lines = restore_text(part_of(), after, before).splitlines()
    assert lines[-3:-1] == ["-I FORWARD 2 -p tcp -m multiport --ports 25 -j NFQGUARD", f"-I FORWARD 3 {errors(4)}"]
    assert [line for line in lines if line.startswith("-A NFQGUARD")] == [
        f"-A NFQGUARD {step}" for step in read_table(SAVED, "mangle").chains["NFQGUARD"]
    ]


def test_a_table_as_planned_has_no_difference_whatever_the_spelling_of_numbers() -> None:
    assert differences(part_of(), table_with(BEHIND)) == []
    assert differences(part_of(), table_with(BEHIND, ("--mark 0x0/0xf000000", "--mark 0/0xF000000"))) == []


@pytest.mark.parametrize(
    "kind,changes,said",
    [
        ("jump-not-last", [], "operators"),
        ("chain-missing", [(":NFQGUARD - [0:0]\n", ""), ("-A NFQGUARD", "-A elsewhere"), BEHIND], "uninspected"),
        ("jump-missing", [BEHIND, (JUMP, "-A FORWARD -p icmp")], "port 25"),
        ("jump-missing", [BEHIND, (ERRORS, "")], "path MTU discovery"),
        ("jump-doubled", [BEHIND, (ERRORS, ERRORS * 2)], "2 times for ICMP errors"),
        ("jump-foreign", [BEHIND, (ERRORS, ERRORS + "-A FORWARD -p icmp -j NFQGUARD\n")], "other packets"),
        ("jump-doubled", [BEHIND, (JUMP, JUMP.replace("-A FORWARD -p icmp", "") + JUMP)], "2 times"),
        ("jump-foreign", [BEHIND, (":operators - [0:0]\n", "-A PREROUTING -p tcp -j NFQGUARD\n")], "PREROUTING"),
        ("step-missing", [BEHIND, (LAST, "")], "passes uninspected"),
        ("step-foreign", [BEHIND, (LAST, "-A NFQGUARD -j LOG\n" + LAST)], "-j LOG"),
        (
            "steps-out-of-order",
            [BEHIND, (LAST, ""), (":NFQGUARD - [0:0]\n", ":NFQGUARD - [0:0]\n" + LAST)],
            "order",
        ),
    ],
)
def test_each_difference_is_named_with_its_meaning(kind: str, changes: list[tuple[str, str]], said: str) -> None:
    found = differences(part_of(), table_with(*changes))
    assert [difference.kind for difference in found] == [kind]
    assert said in found[0].meaning and "nfqguard rules apply" in found[0].remedy
    assert str(found[0]).startswith("IPv4: ")


MARK_JUMP = "-A OUTPUT -m mark --mark 0x6e660002 -j NFQGUARD\n"
ZONE = "-A OUTPUT -m mark --mark 0x7 -j CT --zone 7\n"


@pytest.mark.parametrize(
    "kind,changes,said",
    [
        (None, [], ""),
        ("chain-missing", [(":NFQGUARD - [0:0]\n-A OUTPUT", "-A OUTPUT"), ("-A NFQGUARD -j CT", "-A no -j CT")], "raw"),
        ("jump-missing", [(MARK_JUMP, "")], "mark 0x6e660002"),
        ("jump-doubled", [(MARK_JUMP, MARK_JUMP * 2)], "2 times"),
        ("jump-not-first", [(MARK_JUMP, ""), (ZONE, ZONE + MARK_JUMP)], "--zone 7"),
        ("step-missing", [("-A NFQGUARD -j CT --notrack\n", "")], "do not arrive"),
    ],
)
def test_each_difference_in_raw_is_named(kind: str | None, changes: list[tuple[str, str]], said: str) -> None:
    text = SAVED[SAVED.index("*raw"):]
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    part, table = part_of(table="raw"), read_table(text, "raw")
    found = differences(part, table)
    assert [difference.kind for difference in found] == [kind] * (kind is not None)
    assert all(said in difference.meaning for difference in found)
    if kind != "chain-missing":
        mended = restore_text(part, table, wanted(part)).splitlines()
        assert mended[-2] == "-I OUTPUT 1 -m mark --mark 0x6e660002 -j NFQGUARD"
    assert conflicts(part, table) == []


OUT = "*mangle\n" + "".join(f"{line}\n" for line in fresh_text(out=True)[1:])
HAND_OVER, TAKE_BACK = "-m connmark ! --mark 0x0/0xf000000", "SYN,ACK -m connmark"
BITS_OFF = "--set-xmark 0x0/0x10000000"


@pytest.mark.parametrize(
    "kind,keep,said",
    [
        (None, lambda line: True, ""),
        ("chain-missing", lambda line: line.startswith("*"), "not handed over"),
        ("jump-missing", lambda line: "POSTROUTING" not in line, "not handed over"),
        ("step-missing", lambda line: HAND_OVER not in line, "not handed over"),
        ("step-missing", lambda line: TAKE_BACK not in line, "new connection on the ports"),
        ("step-missing", lambda line: BITS_OFF not in line, "somebody else set offload-mark's bits"),
    ],
)
def test_each_difference_in_postrouting_is_named(kind: str | None, keep: Callable[[str], bool], said: str) -> None:
    text = "\n".join(filter(keep, OUT.splitlines()))
    behind = text.replace("COMMIT", "-A POSTROUTING -j operators\nCOMMIT")   # nothing is skipped there
    for found in (differences(part_of(out=True), read_table(saved, "mangle")) for saved in (text, behind)):
        assert [difference.kind for difference in found] == [kind] * (kind is not None)
        assert all(said in difference.meaning for difference in found)


def test_a_chain_that_is_not_planned_any_more_is_found_and_removed() -> None:
    part, table = part_of(out=True, **{"offload-mark": 0}), read_table(OUT, "mangle")
    assert [difference.kind for difference in differences(part, table)] == ["chain-foreign"]
    assert restore_text(part, table, wanted(part)).splitlines() == [
        "*mangle",
        ":NFQGUARD-OUT - [0:0]",
        "-D POSTROUTING -p tcp -m multiport --ports 25 -j NFQGUARD-OUT",
        "-X NFQGUARD-OUT",
        "COMMIT",
    ]
    assert differences(part, Table({})) == []


def test_our_own_chain_overwrites_nothing_of_somebody_elses() -> None:
    assert conflicts(part_of(), read_table(OUT, "mangle")) == []
    assert conflicts(part_of(out=True), read_table(SAVED, "mangle")) == []


@pytest.mark.parametrize(
    "step,overwrites",
    [
        ("-j CONNMARK --set-xmark 0x1/0xff", False),
        ("-j CONNMARK --set-xmark 0x1/0xffffffff", True),
        ("-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff", True),
        ("-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffff", False),
        ("-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", False),
        ("-j MARK --set-xmark 0x1/0xffffffff", False),
    ],
)
def test_steps_of_others_that_overwrite_our_connmark_bits_are_found(step: str, overwrites: bool) -> None:
    table = table_with(BEHIND, ("-A NFQGUARD -m conntrack", f"-A PREROUTING {step}\n-A NFQGUARD -m conntrack"))
    found = conflicts(part_of(), table)
    assert [difference.kind for difference in found] == ["connmark-overwritten"] * overwrites
    assert all(step in difference.meaning and "0xf000000" in difference.remedy for difference in found)
    assert differences(part_of(), table) == [], "what apply cannot mend must not keep it from being done"


def test_other_ports_than_planned_are_a_foreign_jump_and_a_missing_one() -> None:
    kinds = [difference.kind for difference in differences(part_of(ports=[26]), table_with(BEHIND))]
    assert kinds == ["jump-missing", "jump-foreign"]


@pytest.mark.parametrize(
    "message,said",
    [
        ("iptables-restore: line 8 failed: No chain/target/match by that name.", "modprobe -a xt_NFQUEUE xt_connmark"),
        ("iptables-nft-restore: line 5 failed: Permission denied (you must be root).", "as root"),
        ("Another app is currently holding the xtables lock; waited 10s", "Try again"),
        ("iptables-restore: line 12 failed", "modprobe -a xt_NFQUEUE xt_connmark xt_conntrack xt_mark xt_multiport"),
        ("iptables-restore: line 10 failed", "at `-A FORWARD -p tcp"),
        ("iptables-restore: line 11 failed", "at `-A FORWARD -p icmp"),
        ("Extension NFQUEUE revision 0 not supported, missing kernel module?", "could not add the steps"),
    ],
)
def test_a_refusal_is_explained(message: str, said: str) -> None:
    part = part_of()
    assert said in _explain("iptables-restore", message, restore_text(part, Table({}), wanted(part)))
