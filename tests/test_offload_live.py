"""Connections that the kernel takes over, with a real Postfix and real TLS behind the gateway: how few packets come to
us, what arrives, and that the next connection on the same ports is inspected again.
"""
from __future__ import annotations

import hashlib
import os
import random
import smtplib
import socket
import ssl
import struct
import threading
from base64 import encodebytes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
from mail_gateway import Lines
from mail_lab import (
    ADDRESSES,
    PATIENCE,
    SENDER,
    MailLab,
    Smtp,
    await_that,
    bound,
    certificate,
    guarded,
    mail_lab,
    records,
    stop,
)

from nfqguard.lab.guard import Guard
from nfqguard.lab.topology import Host, LabError

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces and NFQUEUE"),
]

OCTETS = 10_000_000
FEW = 40
"""Packets of a session up to the hellos of TLS, with those of closing to spare."""
PLAIN = 26
"""Where a small server of our own listens."""
POLICY = """\
[policies.tls]
extends = "ios-esmtp"
verbs = ["AUTH", "DATA", "EHLO", "HELO", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "STARTTLS"]
offload-tls = {offload}
{more}
"""
LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"


def policy(offload: bool = True, more: str = "", ports: str = "[25, 26]", deployment: str = "") -> str:
    return (POLICY.format(offload=str(offload).lower(), more=more)
            + f"[deployment]\nports = {ports}\n{deployment}\n")


@pytest.fixture(scope="module")
def mail() -> Iterator[MailLab]:
    with mail_lab(tls=True) as made:
        yield made


@pytest.fixture(params=ADDRESSES, ids=["ipv4", "ipv6"])
def address(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def large(octets: int = OCTETS) -> bytes:
    lines = encodebytes(random.Random(octets).randbytes(octets * 3 // 4)).replace(b"\n", b"\r\n")
    return b"Subject: large\r\n\r\n" + lines


def send(mail: MailLab, address: str, message: bytes) -> str:
    """Over TLS, into alice's mailbox. Returns the digest of what arrived, without what the server put before it."""
    before = len(mail.postfix.messages())
    with Smtp(mail.lab.client, address) as smtp:
        smtp.starttls(context=unverified())
        smtp.sendmail(SENDER, ["alice@inside.example"], message)
    arrived = mail.postfix.await_messages(before + 1)[-1].read_bytes()
    return hashlib.sha256(arrived[arrived.index(b"Subject: large"):]).hexdigest()


def digest(message: bytes) -> str:
    return hashlib.sha256(message.replace(b"\r\n", b"\n")).hexdigest()


def test_after_the_hellos_no_packet_comes_to_us(mail: MailLab, address: str) -> None:
    message = large()
    with guarded(mail.lab, "tls", policy()) as guard:
        assert send(mail, address, message) == digest(message)
        counted = stop(guard)[0]
        (record,) = records(guard, "flow")
    assert counted["flows-offloaded"] == 1
    assert counted["kernel"]["received"] <= FEW and counted["packets"] <= FEW
    assert record["nfqguard"]["reason"] == "offloaded", record


def test_without_offload_all_of_it_comes_to_us(mail: MailLab, address: str) -> None:
    message = large()
    with guarded(mail.lab, "tls", policy(offload=False)) as guard:
        assert send(mail, address, message) == digest(message)
        counted = stop(guard)[0]
    assert counted["flows-offloaded"] == 0
    assert counted["packets"] > OCTETS / 65536 > FEW and counted["octets"] > OCTETS


def test_a_deployment_without_offload_brings_all_of_it_to_us(mail: MailLab, address: str) -> None:
    message = large(1_000_000)
    with guarded(mail.lab, "tls", policy(deployment="offload-mark = 0")) as guard:
        assert send(mail, address, message) == digest(message)
        counted = stop(guard)[0]
    assert counted["flows-offloaded"] == 0 and counted["octets"] > 1_000_000


def test_a_flow_whose_length_was_changed_stays(mail: MailLab, address: str) -> None:
    message = large(1_000_000)
    longer = 'mask-banner = "text"\nbanner-text = "a greeting that has many more octets than Postfix has said, ESMTP"'
    mail.lab.gateway.sysctl(LIBERAL, 1)
    try:
        with guarded(mail.lab, "tls", policy(more=longer)) as guard:
            assert send(mail, address, message) == digest(message)
            counted = stop(guard)[0]
    finally:
        mail.lab.gateway.sysctl(LIBERAL, 0)
    assert counted["banners-replaced"] >= 1 and counted["flows-offloaded"] == 0 and counted["octets"] > 1_000_000


def test_beside_an_offloaded_connection_plaintext_is_inspected(mail: MailLab, address: str) -> None:
    with guarded(mail.lab, "tls", policy()) as guard, Smtp(mail.lab.client, address) as smtp:
        smtp.starttls(context=unverified())
        assert smtp.ehlo()[0] == 250
        with mail.dialogue(address) as plain:
            assert plain.ask(b"VRFY alice@inside.example\r\n").startswith(b"500 ")
            masked = [event["nfqguard"]["text"] for event in guard_events(guard, "mask")]
            assert masked == ["VRFY alice@inside.example"]
        assert smtp.docmd("NOOP")[0] == 250
        counted = stop(guard)[0]
    assert (counted["flows-offloaded"], counted["commands-masked"]) == (1, 1)


def guard_events(guard: Guard, action: str) -> list[dict]:
    def found() -> list[dict]:
        return [event for event in guard.events() if event.get("nfqguard", {}).get("action") == action]
    await_that(found, f"an event of {action} is told")
    return found()


# ---- the same ports again, before a small server of our own

class Server:
    """Speaks a little SMTP. Under TLS, END closes in order, and RESET resets. `heard`: the lines in plaintext."""

    def __init__(self, host: Host, address: str, file: str) -> None:
        self.heard: list[bytes] = []
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(file)
        self._listener = host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((address, PLAIN))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(PATIENCE)
            connection.sendall(b"220 mail ESMTP\r\n")
            lines = Lines(connection)
            while line := lines.next():
                self.heard.append(line)
                if line == b"STARTTLS\r\n":
                    connection.sendall(b"220 go ahead\r\n")
                    self._secure(self._context.wrap_socket(connection, server_side=True))
                    return
                connection.sendall(b"250 fine\r\n" if line.startswith((b"EHLO", b"NOOP")) else b"500 what?\r\n")

    def _secure(self, connection: ssl.SSLSocket) -> None:
        with connection:
            while line := connection.recv(1024):
                if line == b"RESET\r\n":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if line == b"END\r\n":
                    connection.unwrap()
                    return
                connection.sendall(b"250 " + line)


INSIDE = {ADDRESSES[0]: "10.10.10.2", ADDRESSES[1]: ADDRESSES[1]}


@pytest.fixture
def server(mail: MailLab, address: str) -> Iterator[Server]:
    program = "ip6tables" if ":" in address else "iptables"
    opening = ["FORWARD", "-p", "tcp", "-m", "multiport", "--ports", str(PLAIN), "-j", "ACCEPT"]
    mail.lab.gateway.run([program, "-w", "-I", *opening])
    made = Server(mail.lab.server, INSIDE[address], str(certificate(mail.lab.run_dir)))
    try:
        yield made
    finally:
        made.close()
        mail.lab.gateway.run([program, "-w", "-D", *opening])


def connect(host: Host, address: str, port: int) -> tuple[socket.socket, Lines]:
    """From this port of ours (0: any); greeted."""
    connection = host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    connection.bind(("::" if ":" in address else "0.0.0.0", port))
    connection.connect((address, PLAIN))
    lines = Lines(connection)
    assert lines.next() == b"220 mail ESMTP\r\n"
    return connection, lines


def over_tls(host: Host, address: str, last: bytes) -> int:
    """A connection with TLS that ends as the server is told. Returns our port."""
    connection, lines = connect(host, address, 0)
    port = int(connection.getsockname()[1])
    connection.sendall(b"STARTTLS\r\n")
    assert lines.next() == b"220 go ahead\r\n"
    with unverified().wrap_socket(connection) as secure:
        for _ in range(20):
            secure.sendall(b"NOOP\r\n")
            assert secure.recv(100) == b"250 NOOP\r\n"
        secure.sendall(last)
        with suppress(OSError):
            assert secure.recv(100) == b""
            secure.unwrap()
    return port


@pytest.mark.parametrize("last,queues", [(b"RESET\r\n", 1), (b"RESET\r\n", 3), (b"END\r\n", 1)])
def test_the_same_ports_again_are_inspected(
    mail: MailLab, server: Server, address: str, last: bytes, queues: int
) -> None:
    """Behind a server's RST conntrack takes the new connection for the old one, connmark and all."""
    client = mail.lab.client
    with guarded(mail.lab, "tls", policy(deployment=f"queue-count = {queues}"), queues) as guard:
        for _ in range(queues):
            port = over_tls(client, address, last)
        connection, lines = connect(client, address, port)
        with connection:
            connection.sendall(b"EXPN staff\r\n")
            assert lines.next() == b"500 what?\r\n"
            connection.sendall(b"STARTTLS\r\n")
            assert lines.next() == b"220 go ahead\r\n"
            with unverified().wrap_socket(connection) as secure:
                secure.sendall(b"NOOP\r\n")
                assert secure.recv(100) == b"250 NOOP\r\n"
        counted = stop(guard)
    assert server.heard == [b"STARTTLS\r\n"] * queues + [b"XXXXXXXXXX\r\n", b"STARTTLS\r\n"]
    assert sum(each["flows-offloaded"] for each in counted.values()) == queues + 1
    assert [number for number, each in counted.items() if each["commands-masked"]] == [0], "the first queue has it"
    assert sum(each["packets"] for each in counted.values()) <= (queues + 1) * FEW


def test_a_restart_leaves_offloaded_connections_alone(mail: MailLab, server: Server, address: str) -> None:
    with guarded(mail.lab, "tls", policy()) as guard:
        connection, lines = connect(mail.lab.client, address, 0)
        connection.sendall(b"STARTTLS\r\n")
        assert lines.next() == b"220 go ahead\r\n"
        with unverified().wrap_socket(connection) as secure:
            secure.sendall(b"NOOP\r\n")
            assert secure.recv(100) == b"250 NOOP\r\n"
            stop(guard)
            secure.sendall(b"NOOP\r\n")
            assert secure.recv(100) == b"250 NOOP\r\n"


OPERATORS = """\
*mangle
-A PREROUTING -p tcp -m multiport --ports 25 -j MARK --set-xmark 0x80/0xff
-A PREROUTING -p tcp -m conntrack --ctstate NEW -j CONNMARK --set-xmark 0x800000ab/0xf00000ff
-A POSTROUTING -p tcp -m multiport --ports 25 -m mark ! --mark 0x80
-A POSTROUTING -p tcp -m multiport --ports 25 -m connmark ! --mark 0x800000ab/0xf00000ff
-A POSTROUTING -p tcp -m multiport --ports 25 -m connmark --mark 0x8f0000ab
COMMIT
"""


def test_the_operators_marks_survive(mail: MailLab, address: str) -> None:
    program = "ip6tables" if ":" in address else "iptables"
    gateway = mail.lab.gateway
    with guarded(mail.lab, "tls", policy(ports="[25]")) as guard:
        gateway.run([f"{program}-restore", "-w", "--noflush"], input=OPERATORS)
        try:
            assert send(mail, address, message := large(1_000_000)) == digest(message)
            saved = str(gateway.run([f"{program}-save", "-t", "mangle", "-c"]).stdout).splitlines()
        finally:
            for line in OPERATORS.splitlines()[1:-1]:
                gateway.run([program, "-w", "-t", "mangle", *line.replace("-A", "-D", 1).split()])
        assert stop(guard)[0]["flows-offloaded"] == 1
    counting = [line for line in saved if line[0] == "[" and "POSTROUTING" in line and "-j" not in line]
    counts = [int(line[1:].split(":")[0]) for line in counting]
    assert counts[:2] == [0, 0], "packet mark and connmark of others"
    assert counts[2] > 5, "packets of the offloaded connection"


# ---- classes

EXEMPT = """
[network]
inside = ["10.10.10.0/24", "fd00:10::/64"]
[[classes]]
name = "esa"
direction = "inbound"
in-interfaces = ["{interface}"]
out-interfaces = ["inside"]
exempt = true
"""


def test_an_exempt_class_passes_and_goes_to_the_kernel(mail: MailLab, address: str) -> None:
    message = large()
    with guarded(mail.lab, "tls", policy() + EXEMPT.format(interface="outside")) as guard:
        with Smtp(mail.lab.client, address) as smtp:
            smtp.ehlo()
            assert smtp.docmd("VRFY", "alice@inside.example")[0] == 252, "the policy would mask it"
            before = len(mail.postfix.messages())
            smtp.sendmail(SENDER, ["alice@inside.example"], message)
        arrived = mail.postfix.await_messages(before + 1)[-1].read_bytes()
        counted = stop(guard)[0]
    assert arrived.endswith(message[-1000:].replace(b"\r\n", b"\n"))
    assert (counted["flows-exempt"], counted["flows-offloaded"], counted["commands-masked"]) == (1, 1, 0)
    assert counted["packets"] < 10


def test_a_class_for_other_interfaces_does_not_fit(mail: MailLab, address: str) -> None:
    with guarded(mail.lab, "tls", policy() + EXEMPT.format(interface="inside")) as guard:
        with mail.dialogue(address) as plain:
            plain.ask(b"EXPN staff\r\n")
        counted = stop(guard)[0]
    assert (counted["flows-exempt"], counted["commands-masked"]) == (0, 1)


def test_an_interface_that_is_not_there_is_told(mail: MailLab) -> None:
    with pytest.raises(LabError, match="the class 'esa' names the interface ppp7, which is not there"), \
            guarded(mail.lab, "tls", policy() + EXEMPT.format(interface="ppp7")):
        pass


# ---- a mail host

@contextmanager
def on_mail_host(mail: MailLab, host: Host, extra: str) -> Iterator[Guard]:
    lab = SimpleNamespace(gateway=host, run_dir=mail.lab.run_dir)
    guard = Guard(lab, "tls", extra)   # type: ignore[arg-type]
    guard.write_config()
    guard.events_file.unlink(missing_ok=True)
    guard.rules("apply")
    try:
        guard.start()
        await_that(lambda: bound(lab), "the queue is bound")   # type: ignore[arg-type]
        assert guard.rules("check") == "Netfilter is as planned.\n"
        yield guard
    finally:
        if guard.process is not None and guard.process.poll() is None:
            guard.process.kill()
            guard.process.wait()
        guard.rules("remove")


@pytest.mark.parametrize("place", [lambda lab: lab.server, lambda lab: lab.client], ids=["server", "client"])
def test_on_a_mail_host(mail: MailLab, server: Server, address: str, place: Callable) -> None:
    """Whichever end it is: handed over, and inspected again when the ports are used again."""
    with on_mail_host(mail, place(mail.lab), policy(deployment='hook = "host"')) as guard:
        assert send(mail, address, message := large()) == digest(message)
        port = over_tls(mail.lab.client, address, b"RESET\r\n")
        connection, lines = connect(mail.lab.client, address, port)
        with connection:
            connection.sendall(b"EXPN staff\r\n")
            assert lines.next() == b"500 what?\r\n"
        counted = stop(guard)[0]
    assert server.heard[-1] == b"XXXXXXXXXX\r\n"
    assert counted["flows-offloaded"] == 2 and counted["packets"] <= 3 * FEW


def test_smtplib_is_what_it_seems(mail: MailLab) -> None:
    """Without nfqguard: the Postfix here offers STARTTLS, or nothing above was tried."""
    with Smtp(mail.lab.client, ADDRESSES[0]) as smtp:
        smtp.ehlo()
        assert smtp.has_extn("starttls") and isinstance(smtp, smtplib.SMTP)
