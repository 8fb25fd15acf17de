"""The lab with a real Postfix behind a gateway that runs nfqguard, and what tests look at it with."""
from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import smtplib
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from three_hosts import tcp_of

from nfqguard.lab.dialogue import Dialogue
from nfqguard.lab.guard import Guard
from nfqguard.lab.postfix import Postfix
from nfqguard.lab.topology import OFFLOADS, RUN, Host, Lab

PREFIX = "nqmail"
PATIENCE = 10.0
ETHERNET = 14
ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS, SO_RCVBUFFORCE = 263, 6, 33
BUFFER = 64 << 20
RTO_MAX = Path("/proc/sys/net/ipv4/tcp_rto_max_ms")
ADDRESSES = ("172.22.1.110", "fd00:10::2")
"""The mail server as the client knows it."""
INSIDE = {"172.22.1.110": "10.10.10.2", "fd00:10::2": "fd00:10::2"}
"""The address that it has itself."""
SENDER = "carol@outside.example"


@dataclass(frozen=True)
class MailLab:
    """Both stand for a module: Postfix is started once."""

    lab: Lab
    postfix: Postfix

    def dialogue(self, address: str, seconds: float = PATIENCE) -> Dialogue:
        """A session of the client's that has been greeted and has said EHLO."""
        session = Dialogue(self.lab.client, address, seconds=seconds)
        try:
            assert session.reply().startswith(b"220 ")
            assert session.ask(b"EHLO client.outside.example\r\n").startswith(b"250-")
        except BaseException:
            session.close()
            raise
        return session

    def deliver(self, address: str, user: str = "alice") -> None:
        """Send a small message and find it in the mailbox."""
        before = len(self.postfix.messages(user))
        with Smtp(self.lab.client, address) as smtp:
            smtp.sendmail(SENDER, [f"{user}@inside.example"], b"Subject: small\r\n\r\nEXPN root\r\n")
        self.postfix.await_messages(before + 1, user)


@contextmanager
def mail_lab(tls: bool = False) -> Iterator[MailLab]:
    """A live_lab() with a Postfix that runs, with STARTTLS or without."""
    with live_lab() as lab:
        postfix = Postfix(lab, settings=_tls(lab) if tls else {})
        postfix.start()
        yield MailLab(lab, postfix)


@contextmanager
def live_lab() -> Iterator[Lab]:
    """Make it; take all of it down whatever happens, SIGTERM of `timeout` included, and look whether that is so."""
    _sweep()
    lab = Lab(f"{PREFIX}{os.getpid()}")
    with _ended_by_sigterm(), lab:
        if RTO_MAX.exists():
            lab.client.sysctl("net/ipv4/tcp_rto_max_ms", 1000)  # what is lost comes again every second
        yield lab
        pids = [pid for host in lab.hosts for pid in host.pids()]
    assert [host.name for host in lab.hosts if host.exists()] == []
    assert not lab.run_dir.exists()
    await_that(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), f"processes {pids} are gone")


def certificate(folder: Path) -> Path:
    """A key and a certificate that it signs itself, in one file."""
    file = folder / "tls.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=mail.inside.example",
                    "-days", "2", "-keyout", folder / "tls.key", "-out", folder / "tls.crt"],
                   check=True, capture_output=True)
    file.write_bytes((folder / "tls.key").read_bytes() + (folder / "tls.crt").read_bytes())
    file.chmod(0o600)
    return file


def _tls(lab: Lab) -> dict[str, str]:
    return {"smtpd_tls_security_level": "may", "smtpd_tls_chain_files": str(certificate(lab.run_dir))}


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within, SIGTERM does what Ctrl-C does: pytest ends its fixtures on the way out."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sweep() -> None:
    """Take down the labs of test runs that were killed."""
    for folder in RUN.glob(f"nfqguard-lab-{PREFIX}*"):
        found = re.fullmatch(rf"nfqguard-lab-({PREFIX}(\d+))", folder.name)
        if found and not _command_line(int(found[2])):
            Lab(found[1]).down()


def _command_line(pid: int) -> bytes:
    """Empty where the process is gone, or is dead and nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def guarded(lab: Lab, policy: str = "ios-esmtp", extra: str = "", queues: int = 1) -> Iterator[Guard]:
    """nfqguard deployed and running; afterwards the process is gone and the steps are removed. extra: TOML."""
    guard = Guard(lab, policy, extra)
    guard.write_config()
    guard.events_file.unlink(missing_ok=True)
    guard.rules("apply")
    try:
        run(guard, queues)
        yield guard
    finally:
        if guard.process is not None and guard.process.poll() is None:
            guard.stop(signal.SIGKILL)
        guard.rules("remove")


def run(guard: Guard, queues: int = 1) -> None:
    """Start the daemon and wait until all its queues are bound."""
    guard.start()
    await_that(lambda: len(bound(guard.lab)) == queues, f"{queues} queues are bound")


def bound(lab: Lab) -> list[int]:
    """The queues of the gateway that somebody has bound."""
    table = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
    return [int(line.split()[0]) for line in lab.gateway.call(table.read_text).splitlines()]


def statistics(guard: Guard) -> dict[int, dict[str, Any]]:
    """What was counted until the last stop, by queue."""
    return {each["stats"]["queue"]: each["stats"] for each in guard.events() if each["event_type"] == "stats"}


def stop(guard: Guard) -> dict[int, dict[str, Any]]:
    """Stop as systemd would; what was counted."""
    assert guard.stop() == 0, guard.log.read_text()
    return statistics(guard)


def await_that(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain until {what}"
        time.sleep(0.02)


def set_offloads(lab: Lab, on: bool) -> None:
    """Of every veth that mail passes; looks whether the kernel did it."""
    for host, device in ((lab.client, "eth0"), (lab.gateway, "outside"), (lab.gateway, "inside"), (lab.server, "eth0")):
        words = [word for name in OFFLOADS for word in (name, "on" if on else "off")]
        host.run(["ethtool", "-K", device, *words])
        shown = str(host.run(["ethtool", "-k", device]).stdout)
        state = {line.split(":")[0].strip(): line.split()[1] for line in shown.splitlines() if len(line.split()) > 1}
        assert state["tcp-segmentation-offload"] == ("on" if on else "off")
        assert state["generic-receive-offload"] == ("on" if on else "off")


class Smtp(smtplib.SMTP):
    """Python's client, in a namespace of the lab."""

    def __init__(self, host: Host, address: str) -> None:
        self._namespace = host
        super().__init__(address, 25, local_hostname="client.outside.example", timeout=PATIENCE * 3)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connection = self._namespace.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            connection.settimeout(timeout)
            connection.connect((host, port))
        except BaseException:
            connection.close()
            raise
        return connection


@dataclass(frozen=True)
class Seen:
    """A TCP packet on an interface. arriving: it came from outside the host. frame: all of it, Ethernet first."""

    arriving: bool
    frame: bytes
    source: str
    destination: str
    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: int
    payload: bytes


class Tap:
    """Every packet of port 25 on a host's interface, whatever connection it claims to belong to; a context manager."""

    def __init__(self, host: Host) -> None:
        self._socket = host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.bind((host.device, ETH_P_ALL))
        self._socket.setblocking(False)

    def packets(self) -> list[Seen]:
        """Those since the last call. An AssertionError where some were lost to us: then nothing is proved."""
        found = []
        with suppress(BlockingIOError):
            while True:
                frame, address = self._socket.recvfrom(1 << 17)
                seen = _parse(frame, address[2] != socket.PACKET_OUTGOING)
                if seen is not None and 25 in (seen.source_port, seen.destination_port):
                    found.append(seen)
        lost = struct.unpack("=II", self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        assert lost == 0, f"{lost} packets were lost to the capture"
        return found

    def arrived(self) -> list[Seen]:
        """Those that came from outside."""
        return [each for each in self.packets() if each.arriving]

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire as it is."""
        self._socket.send(frame)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def _parse(frame: bytes, arriving: bool) -> Seen | None:
    kind, packet = int.from_bytes(frame[12:14]), frame[ETHERNET:]
    if kind == 0x0800:
        packet = packet[:int.from_bytes(packet[2:4]) or None]   # short frames are padded; 0: more than it can tell
        ends = packet[12:16], packet[16:20]
    elif kind == 0x86DD:
        packet = packet[:40 + int.from_bytes(packet[4:6])] if packet[4:6] != b"\0\0" else packet
        ends = packet[8:24], packet[24:40]
    else:
        return None
    segment = tcp_of(packet)
    if segment is None:
        return None
    source, destination, seq, ack, offset, flags = struct.unpack("!HHIIBB", segment[:14])
    addresses = [str(ipaddress.ip_address(end)) for end in ends]
    return Seen(arriving, frame, *addresses, source, destination, seq, ack, flags, segment[(offset >> 4) * 4:])


@contextmanager
def smtpd_stands_still(postfix: Postfix) -> Iterator[None]:
    """Within, no command is answered; the kernel goes on acknowledging."""
    pids = [pid for pid in postfix.home.pids() if _name(pid) == "smtpd"]
    assert pids, "Postfix has no smtpd"
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def records(guard: Guard, kind: str, port: int | None = None) -> list[dict[str, Any]]:
    """The EVE records of a type, of the client's port if one is named. A line cut off by a kill is left out."""
    found: list[dict[str, Any]] = []
    for line in guard.events_file.read_text().splitlines() if guard.events_file.exists() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return [each for each in found if each["event_type"] == kind and port in (None, each.get("src_port"))]


def joined(packets: Sequence[Seen]) -> bytes:
    """What was in them, in the order in which they came."""
    return b"".join(each.payload for each in packets)
