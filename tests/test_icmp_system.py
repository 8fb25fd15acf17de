"""Path MTU discovery through the deployment: a router behind the gateway refuses large packets, and the client's kernel
believes it, for the number that the ICMP error quotes is the client's own.

    client ──── outside  gateway  inside ──── router ──[small MTU]── server
               insert-header: behind it, the server's numbers are not the client's

Linux believes an error that quotes any octet under way (tcp_v4_err, tcp_v6_err: snd_una to snd_nxt), and so may believe
an untranslated one. Here it cannot: so many small messages go first that their headers outgrow the initial window.
"""
from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest
from linear_mail import BYE, GO, GREETING, MAIL, OK, RCPT, Server
from mail_gateway import checksum_errors
from mail_lab import RTO_MAX, await_that, guarded, records, stop
from wire import folded

from nfqguard.lab.dialogue import Dialogue
from nfqguard.lab.topology import RUN, Host, Lab

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

PREFIX = "nqpmtu"
LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
SMALL_MTU = 1380
HEADER = "X-Gateway: inspected by nfqguard on its way to the server"
POLICY = f'[policies.inserting]\nextends = "ios-esmtp"\nmax-data = 0\ninsert-header = "{HEADER}"\n'
SMALL = b"Subject: small\r\n\r\nhello\r\n.\r\n"
SMALL_MESSAGES = 400
INITIAL_WINDOW = 10 * 1460
MESSAGE_OCTETS = 1_000_000
SECONDS = 15.0
STUCK_AFTER = 4.0
"""Seconds; with path MTU discovery a message takes a fraction of one."""
SERVER = {4: "10.10.20.2", 6: "fd00:20::2"}
PUBLIC = {4: "172.22.1.110", 6: SERVER[6]}
"""The server as the client knows it: IPv4 behind static NAT."""
ROUTER = {4: "10.10.10.2", 6: "fd00:10::2"}
JUMP = ["-m", "conntrack", "--ctstate", "RELATED", "-m", "connmark", "!", "--mark", "0x0/0xf000000", "-j", "NFQGUARD"]
NAT = f"*nat\n-A PREROUTING -i outside -d {PUBLIC[4]} -j DNAT --to-destination {SERVER[4]}\nCOMMIT\n"


def large(seed: int) -> bytes:
    text = base64.b64encode(random.Random(seed).randbytes(MESSAGE_OCTETS * 3 // 4))
    return b"".join(text[at:at + 76] + b"\r\n" for at in range(0, len(text), 76)) + b".\r\n"


def sweep() -> None:
    """Take down what a run that was killed left."""
    for folder in RUN.glob(f"nfqguard-lab-{PREFIX}*"):
        found = re.fullmatch(rf"nfqguard-lab-({PREFIX}(\d+))", folder.name)
        if found and not Path(f"/proc/{found[2]}").exists():
            Lab(found[1]).down()


def far_server(lab: Lab) -> Host:
    """The lab's second server, here behind its first one, which is the router. The lab takes it down with the rest."""
    return replace(lab.second_server, ipv4=SERVER[4], ipv6=SERVER[6])


def put_server_behind_router(lab: Lab) -> None:
    far, router = far_server(lab), lab.server
    far.create()
    far.sysctl("net/ipv6/conf/default/accept_dad", 0)
    router.run(["ip", "link", "add", "small", "mtu", str(SMALL_MTU), "type", "veth",
                "peer", "name", "eth0", "mtu", str(SMALL_MTU), "netns", far.name])
    for host, device, last in ((router, "small", 1), (far, "eth0", 2)):
        host.run(["ip", "address", "add", f"10.10.20.{last}/24", "dev", device])
        host.run(["ip", "address", "add", f"fd00:20::{last}/64", "dev", device])
        host.run(["ip", "link", "set", device, "up"])
    for gateway, advertised in (("10.10.20.1", 1460), ("fd00:20::1", 1440)):
        # The server must not tell by its MSS what the link can carry.
        far.run(["ip", "route", "add", "default", "via", gateway, "advmss", str(advertised)])
    for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        router.sysctl(key, 1)
    router.run(["ip", "route", "replace", "default", "via", "10.10.10.1"])
    router.run(["ip", "route", "replace", "default", "via", "fd00:10::1"])
    lab.gateway.run(["ip", "route", "add", "10.10.20.0/24", "via", ROUTER[4]])
    lab.gateway.run(["ip", "route", "add", "fd00:20::/64", "via", ROUTER[6]])


@contextmanager
def routed_lab(offloads: bool) -> Iterator[Lab]:
    sweep()
    with Lab(f"{PREFIX}{os.getpid()}", offloads=offloads) as lab:
        put_server_behind_router(lab)
        for program in ("iptables", "ip6tables"):
            for table in ("nat", "filter"):
                lab.gateway.run([program, "-t", table, "-F"])
        lab.gateway.run(["iptables-restore", "--noflush"], input=NAT)
        lab.client.run(["ip", "route", "add", "default", "via", lab.gateway.ipv4])
        lab.gateway.sysctl(LIBERAL, 1)
        # Others let the window grow while little is sent.
        lab.client.call(lambda: Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text("reno"))
        if RTO_MAX.exists():
            lab.client.sysctl("net/ipv4/tcp_rto_max_ms", 1000)
        yield lab


@pytest.fixture(params=[True, False], ids=["offloads", "single-packets"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with routed_lab(request.param) as made:
        yield made


@pytest.fixture
def plain_lab() -> Iterator[Lab]:
    with routed_lab(False) as made:
        yield made


def learned(lab: Lab, family: int) -> int | None:
    """The path MTU that the client's kernel keeps for the server."""
    (route,) = json.loads(str(lab.client.run(["ip", "-j", "route", "get", PUBLIC[family]]).stdout))
    for metric in route.get("metrics", []):
        if "mtu" in metric:
            return int(metric["mtu"])
    return None


def begin(session: Dialogue) -> bytes:
    """Small messages, until the server's numbers are far from the client's; what the server must have read."""
    assert session.reply() == GREETING
    session.ask(b"EHLO client.outside.example\r\n")
    for _ in range(SMALL_MESSAGES):
        envelope(session)
        assert session.ask(SMALL) == OK
    assert SMALL_MESSAGES * len(HEADER) > INITIAL_WINDOW
    return b"EHLO client.outside.example\r\n" + SMALL_MESSAGES * (transaction(SMALL))


def envelope(session: Dialogue) -> None:
    session.send(MAIL + RCPT + b"DATA\r\n")
    assert [session.reply() for _ in range(3)] == [OK, OK, GO]


def transaction(message: bytes) -> bytes:
    return MAIL + RCPT + b"DATA\r\n" + HEADER.encode() + b"\r\n" + message


@contextmanager
def mail(lab: Lab, family: int, seconds: float) -> Iterator[tuple[Dialogue, Server]]:
    with ExitStack() as stack:
        server = Server(far_server(lab))
        stack.callback(server.close)
        yield stack.enter_context(Dialogue(lab.client, PUBLIC[family], seconds=seconds)), server


@pytest.mark.parametrize("family", [4, 6])
def test_two_megabytes_pass_a_link_with_a_smaller_mtu(lab: Lab, family: int) -> None:
    with guarded(lab, "inserting", POLICY) as guard:
        with mail(lab, family, SECONDS) as (session, server):
            wanted = begin(session)
            assert learned(lab, family) is None, "nothing may have been learned before, or this proves nothing"
            for seed in (1, 2):  # the second one's header goes into a segment of the size that was learned
                envelope(session)
                began = time.monotonic()
                assert session.ask(large(seed)) == OK
                assert time.monotonic() - began < STUCK_AFTER
                wanted += transaction(large(seed))
            assert session.ask(b"QUIT\r\n") == BYE
            mtu, heard = learned(lab, family), server.heard[session.port]
        assert bytes(heard) == wanted + b"QUIT\r\n"
        counted = stop(guard)[0]
    assert mtu == SMALL_MTU - len(HEADER) - len("\r\n"), "as much as the link carries and no edit makes too long"
    assert (counted["resets"], records(guard, "drop")) == (0, [])
    assert [checksum_errors(host) for host in lab.hosts] == [0, 0, 0]


@pytest.mark.parametrize("family", [4, 6])
def test_without_the_jump_the_message_stands_still(plain_lab: Lab, family: int) -> None:
    lab, (program, protocol) = plain_lab, {4: ("iptables", "icmp"), 6: ("ip6tables", "ipv6-icmp")}[family]
    with (guarded(lab, "inserting", POLICY) as guard, mail(lab, family, SECONDS) as (session, _),
          ThreadPoolExecutor(1) as pool):
        lab.gateway.run([program, "-t", "mangle", "-D", "FORWARD", "-p", protocol, *JUMP])
        begin(session)
        envelope(session)
        asked = pool.submit(session.ask, large(1))
        with pytest.raises(TimeoutError):
            asked.result(STUCK_AFTER)
        assert disbelieved(lab) > 0
        assert learned(lab, family) is None, "the client's kernel believed a number that is not its own"
        guard.rules("apply")
        assert asked.result(SECONDS) == OK, "the jump alone made the difference"
        assert session.ask(b"QUIT\r\n") == BYE


@dataclass(frozen=True)
class OnTheClient:
    """What a guard needs of a lab: here it runs where the mail comes from."""

    gateway: Host
    run_dir: Path


@pytest.mark.parametrize("family", [4, 6])
def test_a_mail_host_hears_of_the_path_in_input(lab: Lab, family: int) -> None:
    lab.client.sysctl(LIBERAL, 1)
    host = cast(Lab, OnTheClient(lab.client, lab.run_dir))
    with guarded(host, "inserting", POLICY + '[deployment]\nhook = "host"\n') as guard:
        with mail(lab, family, SECONDS) as (session, server):
            wanted = begin(session)
            for seed in (1, 2):
                envelope(session)
                assert session.ask(large(seed)) == OK
                wanted += transaction(large(seed))
            assert session.ask(b"QUIT\r\n") == BYE
            mtu, heard = learned(lab, family), server.heard[session.port]
        assert bytes(heard) == wanted + b"QUIT\r\n"
        counted = stop(guard)[0]
    assert mtu == SMALL_MTU - len(HEADER) - len("\r\n")
    assert (counted["resets"], counted["drop.icmp-without-flow"], disbelieved(lab)) == (0, 0, 0)


def disbelieved(lab: Lab) -> int:
    """ICMP errors that the client's kernel did not believe, both families."""
    text = lab.client.call(Path("/proc/thread-self/net/netstat").read_text)
    names, values = (line.split() for line in text.splitlines() if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True))["OutOfWindowIcmps"])


def heard_errors(lab: Lab) -> int:
    """ICMP errors that reached the client, both families."""
    found = 0
    for file, name in (("snmp", "InDestUnreachs"), ("snmp6", "Icmp6InPktTooBigs"), ("snmp6", "Icmp6InDestUnreachs")):
        lines = lab.client.call(Path("/proc/thread-self/net", file).read_text).splitlines()
        if file == "snmp":
            names, values = (line.split() for line in lines if line.startswith("Icmp:"))
            found += int(dict(zip(names, values, strict=True))[name])
        else:
            found += next(int(line.split()[1]) for line in lines if line.split()[0] == name)
    return found


def too_big(lab: Lab, family: int, port: int, sequence: int) -> bytes:
    """What the router would say of the client's segment with that number, without an IP header."""
    source, destination = (socket.inet_pton(socket.AF_INET if family == 4 else socket.AF_INET6, address)
                           for address in ((lab.client.ipv4, lab.client.ipv6)[family == 6], SERVER[family]))
    segment = struct.pack("!HHIIHHHH", port, 25, sequence, 0, 0x5010, 1000, 0, 0)
    if family == 6:
        return struct.pack("!BBHI", 2, 0, 0, SMALL_MTU) + struct.pack(
            "!IHBB", 6 << 28, 1400, 6, 64) + source + destination + segment
    quoted = struct.pack("!BBHHHBBH", 0x45, 0, 1440, 1, 0x4000, 64, 6, 0) + source + destination
    quoted = quoted[:10] + struct.pack("!H", folded(quoted) ^ 0xFFFF) + quoted[12:]
    message = struct.pack("!BBHI", 3, 4, 0, SMALL_MTU) + quoted + segment
    return message[:2] + struct.pack("!H", folded(message) ^ 0xFFFF) + message[4:]


@pytest.mark.parametrize("family", [4, 6])
def test_a_forged_error_does_not_reach_the_client(plain_lab: Lab, family: int) -> None:
    lab = plain_lab
    with guarded(lab, "inserting", POLICY) as guard:
        with mail(lab, family, SECONDS) as (session, _), raw_icmp(lab.server, family) as raw:
            assert session.reply() == GREETING
            forged = too_big(lab, family, session.port, 0x12345678)  # nothing is under way
            raw.sendto(forged, ((lab.client.ipv4, lab.client.ipv6)[family == 6], 0))
            assert session.ask(b"EHLO client.outside.example\r\n")  # behind them in the same queue
            assert session.ask(b"QUIT\r\n") == BYE
        assert (heard_errors(lab), disbelieved(lab), learned(lab, family)) == (0, 0, None)
        assert stop(guard)[0]["drop.icmp-without-flow"] == 1


def raw_icmp(host: Host, family: int) -> socket.socket:
    """The kernel writes the IP header, and with IPv6 the checksum (RFC 3542, 3.1)."""
    if family == 6:
        return host.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    return host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


def answers_echo(lab: Lab, family: int) -> bool:
    request = struct.pack("!BBHHH", 128 if family == 6 else 8, 0, 0, 7, 1)
    request = request[:2] + struct.pack("!H", folded(request) ^ 0xFFFF) + request[4:]
    with raw_icmp(lab.client, family) as raw:
        raw.settimeout(2)
        raw.sendto(request, (PUBLIC[family], 0))
        while octets := raw.recv(2048):
            if octets[0 if family == 6 else 20] == (129 if family == 6 else 0):
                return True
    return False


@pytest.mark.parametrize("family", [4, 6])
def test_other_icmp_passes_while_nobody_is_bound(plain_lab: Lab, family: int) -> None:
    """An echo, an error about UDP, and one about a TCP connection on a port that is not ours."""
    lab, client = plain_lab, plain_lab.client
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET
    with guarded(lab, "inserting", POLICY) as guard:
        guard.stop(signal.SIGKILL)
        assert answers_echo(lab, family)
        with client.socket(kind, socket.SOCK_DGRAM) as datagrams:
            datagrams.settimeout(2)
            datagrams.connect((PUBLIC[family], 9))
            datagrams.send(b"anybody there?")
            with pytest.raises(ConnectionRefusedError):
                datagrams.recv(1)
        before = heard_errors(lab)
        with far_server(lab).socket(kind) as listener, client.socket(kind) as connection:
            listener.bind((SERVER[family], 2626))
            listener.listen()
            connection.connect((PUBLIC[family], 2626))
            connection.sendall(bytes(20_000))
            await_that(lambda: learned(lab, family) == SMALL_MTU, "the path MTU is learned")
        assert heard_errors(lab) > before
