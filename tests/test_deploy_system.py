"""The deployment in the kernel: both backends, in namespaces made for each test, with traffic over a gateway."""
from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from three_hosts import BLOCKED_AFTER, CLIENT, SERVER, ThreeHosts, Wire, backends, inside, sweep, tcp_of

from nfqguard.deploy.apply import DeployError, Netfilter, RestoreError, _change, apply, check, remove
from nfqguard.deploy.iptables import restore_text, wanted
from nfqguard.deploy.plan import Plan, make_plan
from nfqguard.policy.model import Deployment

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

CLAMP = "-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1200"
SYN = 0x02
ADDRESS = {4: "192.0.2.9/32", 6: "2001:db8::9/128"}


@pytest.fixture
def hosts() -> Iterator[ThreeHosts]:
    sweep()
    made = ThreeHosts.create()
    yield made
    made.destroy()


@pytest.fixture(params=backends())
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def plan_of(**keys: object) -> Plan:
    return make_plan(Deployment.model_validate(keys))


def foreign_steps(family: int) -> str:
    address = ADDRESS[family]
    return f"""\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:operators - [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -m multiport --dports 25,80 -j operators
-A FORWARD -d {address} -m comment --comment "not ours, though it says -j NFQGUARD" -j ACCEPT
-A operators -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s {address} -o to9 -j MASQUERADE
-A PREROUTING -d {address} -p tcp -m tcp --dport 2525 -j REDIRECT --to-ports 25
COMMIT
*raw
-A OUTPUT -p tcp -m tcp --dport 2526 -j CT --notrack
-A OUTPUT -s {address} -m mark --mark 0x9 -j ACCEPT
COMMIT
*mangle
:shaping - [0:0]
-A PREROUTING -s {address} -j MARK --set-xmark 0x7/0xff
-A FORWARD -s {address} -j shaping
{CLAMP}
-A FORWARD -d {address} -j shaping
-A shaping -j CONNMARK --save-mark --nfmask 0xff --ctmask 0xff
COMMIT
"""


def state(hosts: ThreeHosts, backend: str) -> dict[int, list[str]]:
    return {family: hosts.saved(backend, family) for family in (4, 6)}


@pytest.mark.parametrize("hook", ["forward", "host"])
def test_apply_then_remove_leaves_the_operators_steps_as_they_were(hosts: ThreeHosts, backend: str, hook: str) -> None:
    for family in (4, 6):
        hosts.iptables(backend, family, foreign_steps(family))
    before = state(hosts, backend)
    plan = plan_of(hook=hook, exempt=["192.0.2.0/24", "2001:db8::/32", "0.0.0.0/0"], **{"queue-count": 3})
    with inside(hosts.gateway):
        assert {difference.kind for difference in check(plan, backend)} == {"chain-missing"}
        assert [result.changed for result in apply(plan, backend)] == [True, True]
        assert check(plan, backend) == []
    during = state(hosts, backend)
    ours = {family: [line for line in during[family] if line not in before[family]] for family in (4, 6)}
    assert all("NFQGUARD" in line for family in (4, 6) for line in ours[family])
    raw = during[4][during[4].index("*raw"):]
    raw = raw[:raw.index("COMMIT")]
    assert next(line for line in raw if line.startswith("-A")) == "-A OUTPUT -m mark --mark 0x6e660002 -j NFQGUARD"
    assert [line for line in during[4] if line not in ours[4]] == before[4]
    with inside(hosts.gateway):
        assert [result.changed for result in remove(plan, backend)] == [True, True]
        assert [result.changed for result in remove(plan, backend)] == [False, False]
    assert state(hosts, backend) == before


def test_applying_twice_is_applying_once(hosts: ThreeHosts, backend: str) -> None:
    plan = plan_of()
    with inside(hosts.gateway):
        apply(plan, backend)
        once = state(hosts, backend)
        assert [result.changed for result in apply(plan, backend)] == [False, False]
    assert state(hosts, backend) == once


def test_a_changed_configuration_replaces_the_former_one(hosts: ThreeHosts, backend: str) -> None:
    with inside(hosts.gateway):
        apply(plan_of(ports=[25, 587]), backend)
        changed = plan_of(hook="host", ports=[465], **{"own-mark": 0x76})
        apply(changed, backend)
        assert check(changed, backend) == []
    jumps = [line for line in hosts.saved(backend, 4) if line.endswith("-j NFQGUARD")]
    assert sorted(jumps) == [
        "-A INPUT ! -i lo -p icmp -m conntrack --ctstate RELATED -m connmark ! --mark 0x0/0xf000000 -j NFQGUARD",
        "-A INPUT ! -i lo -p tcp -m multiport --ports 465 -j NFQGUARD",
        "-A OUTPUT -m mark --mark 0x77 -j NFQGUARD",
        "-A OUTPUT -p tcp -m multiport --ports 465 -j NFQGUARD",
    ]


def test_damage_is_found_and_mended(hosts: ThreeHosts, backend: str) -> None:
    plan = plan_of()
    with inside(hosts.gateway):
        apply(plan, backend)
    planned = hosts.saved(backend, 4)
    jump = "-p tcp -m multiport --ports 25 -j NFQGUARD"
    damage = f"-A FORWARD {jump}\n-A PREROUTING -j NFQGUARD\n-I NFQGUARD 1 -j ACCEPT\n-D NFQGUARD -j DROP\n"
    hosts.iptables(backend, 4, f"*mangle\n{damage}COMMIT\n*raw\n-F NFQGUARD\n-I OUTPUT 1 -j CT --zone 3\nCOMMIT\n")
    with inside(hosts.gateway):
        kinds = {(difference.family, difference.kind) for difference in check(plan, backend)}
        assert kinds == {
            (4, "jump-doubled"), (4, "jump-foreign"), (4, "step-foreign"), (4, "step-missing"), (4, "jump-not-first")
        }
        assert [(result.family, result.changed) for result in apply(plan, backend)] == [(4, True), (6, False)]
    hosts.iptables(backend, 4, "*raw\n-D OUTPUT -j CT --zone 3\nCOMMIT\n")
    assert hosts.saved(backend, 4) == planned


def test_a_table_that_changed_since_it_was_read_is_read_again(hosts: ThreeHosts, backend: str) -> None:
    plan = plan_of()
    part = plan.parts[0]
    with inside(hosts.gateway):
        apply(plan, backend)
        stale = Netfilter(4, backend).read("mangle")
        hosts.iptables(backend, 4, "*mangle\n-F FORWARD\nCOMMIT\n")
        with pytest.raises(RestoreError):
            Netfilter(4, backend).restore(restore_text(part, stale, wanted(part)))
        _change(Netfilter(4, backend), part, wanted(part), stale)
        assert check(plan, backend) == []


def test_a_machine_without_iptables_is_told_so(hosts: ThreeHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfqguard.deploy.system.search_path", lambda: "/nonexistent")
    with inside(hosts.gateway), pytest.raises(DeployError, match="iptables-save was not found: install iptables"):
        check(plan_of())


def test_a_machine_without_ipv6_needs_ipv4_only(hosts: ThreeHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfqguard.deploy.system.has_ipv6", lambda: False)
    with inside(hosts.gateway):
        assert [result.family for result in apply(plan_of())] == [4]
        with pytest.raises(DeployError, match="no IPv6"):
            apply(plan_of().only(6))


def test_where_the_second_family_fails_the_first_is_as_before(hosts: ThreeHosts, backend: str) -> None:
    with inside(hosts.gateway):
        apply(plan_of(), backend)
    hosts.iptables(backend, 4, "*mangle\n-A FORWARD -j MARK --set-xmark 0x7/0xff\nCOMMIT\n")
    before = state(hosts, backend)
    *good, last = plan_of(ports=[25, 587], **{"own-mark": 0x76}).parts
    nowhere = dataclasses.replace(last.jumps[0], hook="NOWHERE")
    broken = Plan((*good, dataclasses.replace(last, jumps=(nowhere,))))
    with inside(hosts.gateway), pytest.raises(DeployError, match=r"ip6tables-.*nothing was changed"):
        apply(broken, backend)
    assert state(hosts, backend) == before


def test_an_operators_full_connmark_is_found_as_the_kernel_shows_it(hosts: ThreeHosts, backend: str) -> None:
    hosts.iptables(backend, 6, "*mangle\n-A PREROUTING -j CONNMARK --save-mark\nCOMMIT\n")
    with inside(hosts.gateway):
        apply(plan_of(), backend)
        found = check(plan_of(), backend)
        assert [(difference.family, difference.kind) for difference in found] == [(6, "connmark-overwritten")]
        assert not any(result.changed for result in apply(plan_of(), backend))


@pytest.mark.skipif(len(backends()) < 2, reason="needs both backends installed")
def test_a_chain_in_the_other_backend_is_found(hosts: ThreeHosts) -> None:
    plan = plan_of()
    with inside(hosts.gateway):
        apply(plan, "legacy")
        apply(plan, "nft")
        found = check(plan, "nft")
        kinds = [(difference.family, difference.kind) for difference in found]
        assert kinds == [(family, "other-backend") for family in (4, 4, 4, 6, 6, 6)]
        assert "--backend legacy" in found[0].remedy
        remove(plan, "legacy")
        assert check(plan, "nft") == []


@pytest.mark.parametrize("family", [4, 6])
def test_an_operators_clamp_works_while_ours_is_last(hosts: ThreeHosts, backend: str, family: int) -> None:
    hosts.serve(25)
    wire = hosts.listen_to_wire()
    with inside(hosts.gateway):
        apply(plan_of(), backend)
    consumer = hosts.accept_all(0)
    hosts.iptables(backend, family, f"*mangle\n{CLAMP}\nCOMMIT\n")
    assert hosts.reaches(family, 25)
    assert 1200 not in syn_sizes(wire), "a clamp behind an accepting queue must be out of work, or this proves nothing"
    with inside(hosts.gateway):
        assert [difference.kind for difference in check(plan_of(), backend)] == ["jump-not-last"]
        apply(plan_of(), backend)
        assert check(plan_of(), backend) == []
    assert hosts.reaches(family, 25)
    assert syn_sizes(wire) == [1200]
    assert consumer.stop()


def syn_sizes(wire: Wire) -> list[int]:
    """The MSS in each SYN that reached the server."""
    sizes = []
    for segment in filter(None, map(tcp_of, wire.packets())):
        if segment[13] & 0x3F == SYN:
            options = segment[20 : (segment[12] >> 4) * 4]
            assert options[:2] == b"\x02\x04", "Linux writes the MSS option first"
            sizes.append(int.from_bytes(options[2:4], "big"))
    return sizes


@pytest.mark.parametrize("family", [4, 6])
def test_with_nobody_bound_the_port_is_closed_and_others_are_open(
    hosts: ThreeHosts, backend: str, family: int
) -> None:
    hosts.serve(25, 80)
    assert hosts.reaches(family, 25)
    with inside(hosts.gateway):
        apply(plan_of(), backend)
    wire = hosts.listen_to_wire()
    assert hosts.is_blocked(family, 25)
    assert hosts.reaches(family, 80)
    arrived = wire.tcp_ports()
    assert arrived[25] == 0 and arrived[80] > 0
    with inside(hosts.gateway):
        apply(plan_of(**{"on-absent": "accept"}), backend)
    assert hosts.reaches(family, 25)


def test_a_killed_process_leaves_the_port_closed_until_the_next_one(hosts: ThreeHosts, backend: str) -> None:
    hosts.serve(25)
    with inside(hosts.gateway):
        apply(plan_of(), backend)
    first = hosts.accept_all(0)
    assert hosts.reaches(4, 25)
    first.kill()
    assert hosts.is_blocked(4, 25)
    with inside(hosts.gateway):
        assert check(plan_of(), backend) == []
    second = hosts.accept_all(0)
    assert hosts.reaches(4, 25)
    assert second.stop()


def test_exempt_hosts_pass_with_nobody_bound(hosts: ThreeHosts, backend: str) -> None:
    hosts.serve(25)
    with inside(hosts.gateway):
        apply(plan_of(exempt=[CLIENT[4], SERVER[6]]), backend)
    assert hosts.reaches(4, 25) and hosts.reaches(6, 25)


@pytest.mark.parametrize("family", [4, 6])
def test_connections_spread_evenly_and_stay_whole(hosts: ThreeHosts, backend: str, family: int) -> None:
    hosts.serve(25)
    with inside(hosts.gateway):
        apply(plan_of(**{"queue-first": 7, "queue-count": 4}), backend)
    consumer = hosts.accept_all(7, 8, 9, 10)
    assert all(hosts.reaches(family, 25) for _ in range(40))
    directions: dict[int, set[tuple[int, bool]]] = defaultdict(set)
    for seen in consumer.stop():
        directions[seen.connection].add((seen.queue, seen.destination_port == 25))
    queues = {connection: {queue for queue, _ in pairs} for connection, pairs in directions.items()}
    assert all(len(found) == 1 for found in queues.values()), "a connection was seen in two queues"
    assert all(len(pairs) == 2 for pairs in directions.values()), "only one direction of a connection was seen"
    assert Counter(queue for (queue,) in queues.values()) == {7: 10, 8: 10, 9: 10, 10: 10}


def test_the_operators_connmark_bits_survive(hosts: ThreeHosts, backend: str) -> None:
    operators = """\
*mangle
-A PREROUTING -p tcp -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x800000ab/0xf00000ff
-A POSTROUTING -p tcp -m connmark --mark 0x810000ab
-A POSTROUTING -p tcp -m connmark ! --mark 0x810000ab
COMMIT
"""
    hosts.iptables(backend, 4, operators)
    hosts.serve(25)
    with inside(hosts.gateway):
        apply(plan_of(), backend)
    consumer = hosts.accept_all(0)
    assert hosts.reaches(4, 25)
    seen = consumer.stop()
    counted = [line for line in hosts.saved(backend, 4, "-c") if "-A POSTROUTING -p tcp -m connmark" in line]
    both, neither = (int(line[1:].split(":")[0]) for line in counted)
    assert both == len(seen) > 0 and neither == 0


def test_what_conntrack_does_not_follow_is_dropped_not_passed(hosts: ThreeHosts, backend: str) -> None:
    hosts.iptables(backend, 4, "*raw\n-A PREROUTING -p tcp -j CT --notrack\nCOMMIT\n")
    hosts.serve(25, 80)
    wire = hosts.listen_to_wire()
    with inside(hosts.gateway):
        apply(plan_of(**{"on-absent": "accept"}), backend)
    assert hosts.reaches(4, 80)
    assert hosts.is_blocked(4, 25)
    assert wire.tcp_ports()[25] == 0


def test_fragments_reach_the_queue_whole(hosts: ThreeHosts, backend: str) -> None:
    wire = hosts.listen_to_wire()
    with inside(hosts.gateway):
        apply(plan_of(), backend)
    send_in_fragments(hosts)
    assert hosts.is_blocked(4, 25)  # by now the fragments would have arrived
    assert not [octets for octets in wire.packets() if tcp_of(octets) is not None]
    consumer = hosts.accept_all(0)
    send_in_fragments(hosts)
    hosts.serve(80)
    assert hosts.reaches(4, 80)
    assert [seen.octets for seen in consumer.stop() if seen.source_port == 40025] == [20 + 20 + 200]


def send_in_fragments(hosts: ThreeHosts) -> None:
    from scapy.layers.inet import IP, TCP, fragment

    packet = IP(src=CLIENT[4], dst=SERVER[4]) / TCP(sport=40025, dport=25, flags="S") / (b"x" * 200)
    pieces = fragment(packet, fragsize=64)
    assert len(pieces) > 2
    with inside(hosts.client), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for piece in pieces:
            raw.sendto(bytes(piece), (SERVER[4], 0))


def test_packets_that_conntrack_calls_invalid_never_reach_the_queue(hosts: ThreeHosts, backend: str) -> None:
    from scapy.layers.inet import IP, TCP

    with inside(hosts.gateway):
        apply(plan_of(), backend)
    consumer = hosts.accept_all(0)
    good = IP(src=CLIENT[4], dst=SERVER[4]) / TCP(sport=40026, dport=25, flags="S")
    bad = [
        IP(src=CLIENT[4], dst=SERVER[4]) / TCP(sport=40027, dport=25, flags="S", chksum=0x1234),
        IP(src=CLIENT[4], dst=SERVER[4]) / TCP(sport=40028, dport=25, flags="SF"),
    ]
    wire = hosts.listen_to_wire()
    with inside(hosts.client), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for packet in [*bad, good]:
            raw.sendto(bytes(packet), (SERVER[4], 0))
    hosts.serve(80)
    assert hosts.reaches(4, 80)
    from_client = {seen.source_port for seen in consumer.stop() if seen.destination_port == 25}
    assert from_client == {40026}
    assert wire.tcp_ports()[25] >= 1
    (invalid,) = [line for line in hosts.saved(backend, 4, "-c") if "--ctstate INVALID" in line]
    assert invalid.startswith(f"[{len(bad)}:"), "they are to be counted apart"


def test_mail_host_judges_loopback_once_and_returns_its_own(hosts: ThreeHosts, backend: str) -> None:
    hosts.serve(25)
    own, untracked = Deployment().own_mark, Deployment().untracked_mark
    with inside(hosts.server):
        apply(plan_of(hook="host"), backend)
        assert check(plan_of(hook="host"), backend) == []
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", 25), timeout=0.3)
    assert hosts.is_blocked(4, 25)
    consumer = hosts.accept_all_in(hosts.server, 0)
    with inside(hosts.server), socket.create_connection(("127.0.0.1", 25), timeout=5) as connection:
        port = connection.getsockname()[1]
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    assert hosts.reaches(4, 25)
    wire = Wire(hosts.client)
    with pytest.raises(ConnectionRefusedError):
        connect_marked(hosts, own, 40030)
    with pytest.raises(TimeoutError):   # the answer belongs to no connection that conntrack knows: INVALID
        connect_marked(hosts, untracked, 40031)
    arrived = {int.from_bytes(segment[:2], "big") for segment in map(tcp_of, wire.packets()) if segment is not None}
    wire.close()
    assert arrived >= {40030, 40031}
    seen = consumer.stop()
    assert not [packet for packet in seen if packet.source_port in (40030, 40031)]
    answered = {packet.destination_port for packet in seen} & {40030, 40031}
    assert answered == {40030}, "the answer is not ours, but where conntrack knows of no question it is INVALID"
    opening = [packet for packet in seen if packet.connection == port and packet.flags & SYN]
    assert [packet.destination_port for packet in opening] == [25, port], "each opening packet once, and both"


def connect_marked(hosts: ThreeHosts, mark: int, port: int) -> None:
    """A SYN of our own from the mail host to somebody's port 25, marked, from this port."""
    with inside(hosts.server), socket.socket() as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sender.settimeout(BLOCKED_AFTER)
        sender.bind((SERVER[4], port))
        sender.connect((CLIENT[4], 25))


def rules(hosts: ThreeHosts, *arguments: str, wrapper: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, sys.executable, "-c", "from nfqguard.cli import main; main()", "rules", *arguments]
    root = Path(__file__).resolve().parent.parent
    with inside(hosts.gateway):
        return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60, check=False)


def test_the_command_tells_by_words_and_exit_status(hosts: ThreeHosts, backend: str, tmp_path: Path) -> None:
    file = tmp_path / "nfqguard.toml"
    file.write_text('policy = "ios-esmtp"\n[deployment]\nports = [25, 587]\n')
    options = ("-c", str(file), "--backend", backend)
    before = rules(hosts, "check", *options)
    assert before.returncode == 1 and "mail passes uninspected; run: nfqguard rules apply" in before.stdout
    applied = rules(hosts, "apply", *options)
    assert applied.returncode == 0 and "IPv6: installed" in applied.stdout
    assert "No process is bound to queue 0: mail on port 25, 587 that comes there is dropped" in applied.stdout
    after = rules(hosts, "check", *options, "--json")
    assert after.returncode == 0 and json.loads(after.stdout) == {"as_planned": True, "differences": []}
    assert rules(hosts, "remove", *options, "--family", "6").stdout == "IPv6: removed\n"
    differs = json.loads(rules(hosts, "check", *options, "--json").stdout)["differences"]
    assert [(difference["family"], difference["kind"]) for difference in differs] == [(6, "chain-missing")] * 3
    assert rules(hosts, "remove", *options).stdout == "IPv4: removed\nIPv6: nothing was installed\n"


def test_the_command_says_when_it_cannot_tell(hosts: ThreeHosts, tmp_path: Path) -> None:
    file = tmp_path / "nfqguard.toml"
    file.write_text('policy = "ios-esmtp"\n')
    powerless = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    refused = rules(hosts, "check", "-c", str(file), wrapper=powerless)
    assert refused.returncode == 2 and "CAP_NET_ADMIN" in refused.stderr
    assert rules(hosts, "check", "-c", str(tmp_path / "absent.toml")).returncode == 2
    printed = rules(hosts, "print", "-c", str(file), "--family", "4", wrapper=powerless)
    assert printed.returncode == 0 and "-A FORWARD -p tcp -m multiport --ports 25 -j NFQGUARD" in printed.stdout
