"""The lab's network: namespaces on one machine, shaped as the example router of Cisco's SMTP inspection document.

        client                      gateway                              server
    172.22.1.10/24 ───── outside 172.22.1.16/24                     10.10.10.2/24
    fd00:22::10/64       fd00:22::16/64                             fd00:10::2/64
                                    inside 10.10.10.1/24 ────┬──────────┘
                                    fd00:10::1/64            └───── second  10.10.10.5/24
                                                                            fd00:10::5/64
    static NAT (IPv4)    172.22.1.110 <-> 10.10.10.2      172.22.1.111 <-> 10.10.10.5
    access list 101      inbound on outside: tcp port 25 to 172.22.1.110 (IPv6: to fd00:10::2), and what answers us

The links are veth pairs made inside the namespaces: the machine's own namespace sees no interface, address, step or
sysctl of the lab. Where there is a second server, both stand behind a bridge in a namespace of its own, so that the
gateway has the same two interfaces either way.

Nothing but names is needed to take a lab down. Its processes are found by the namespace they run in; a pid file was
rejected, for a crash may leave one without the processes or the processes without one.
"""
from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from pyroute2 import IPRoute
from pyroute2 import netns as namespaces

T = TypeVar("T")

RUN = Path("/run")
NAMESPACES = Path("/run/netns")
PUBLIC_IPV4 = "172.22.1.110"
"""The mail server as the outside knows it."""
SECOND_PUBLIC_IPV4 = "172.22.1.111"
OFFLOADS = ("tx", "tso", "gso", "gro")
LIBC = ctypes.CDLL(None, use_errno=True)
COMMAND_TIMEOUT = 60.0
KILL_AFTER = 3.0


class LabError(RuntimeError):
    """The lab cannot do what was asked; the text says why and what to do."""


@dataclass(frozen=True)
class Host:
    """A namespace of the lab: where a program can be run and a socket be opened.

    name    of the namespace, as `ip netns` shows it
    device  the veth that leads out; for the gateway the outside one
    ipv4, ipv6  its addresses, without prefix length; for the gateway the outside ones
    """

    name: str
    device: str
    ipv4: str
    ipv6: str

    @property
    def path(self) -> Path:
        return NAMESPACES / self.name

    def argv(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        """The command that runs `argv` inside; nsenter becomes the program, so the pid is the program's own."""
        return ["nsenter", f"--net={self.path}", "--", *(os.fspath(word) for word in argv)]

    def popen(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside; options are subprocess.Popen's."""
        return subprocess.Popen(self.argv(argv), **options)

    def run(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a program inside and wait. Options are subprocess.run's; unless told otherwise text is captured, an exit
        status other than 0 raises subprocess.CalledProcessError, and one minute is the bound."""
        if "stdout" not in options and "stderr" not in options:
            options.setdefault("capture_output", True)
        return subprocess.run(self.argv(argv), **{"check": True, "text": True, "timeout": COMMAND_TIMEOUT} | options)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function inside and return what it returns, or raise what it raises.

        A thread enters the namespace and ends there: the calling thread never leaves its own, whatever happens.
        """
        def enter() -> T:
            namespaces.setns(str(self.path), flags=0)
            return function()

        return _in_thread(enter)

    def configure(self, function: Callable[[Any], T]) -> T:
        """Call a function inside with pyroute2's IPRoute of the namespace; see call().

        pyroute2's own NetNS forks, and the child, which it ends by SIGTERM, inherits our signal handlers and our stack:
        a handler that raises would have the child clean up the lab.
        """
        def use() -> T:
            with IPRoute() as stack:
                return function(stack)

        return self.call(use)

    def create(self) -> None:
        """Make the namespace, without a fork, for the reason told under configure()."""
        def make() -> None:
            if LIBC.unshare(namespaces.CLONE_NEWNET) != 0:
                raise LabError(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}")
            namespaces.attach(self.name, "thread-self")

        _in_thread(make)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket that belongs to the namespace for as long as it lives, used from here."""
        return self.call(lambda: socket.socket(family, kind, protocol))

    def sysctl(self, key: str, value: int) -> None:
        """Set a sysctl of the namespace; key as in `net/ipv4/ip_forward`."""
        self.call(lambda: Path("/proc/sys", key).write_text(f"{value}\n"))

    def exists(self) -> bool:
        return str(self.path) in _mount_points()

    def pids(self) -> list[int]:
        """The processes inside, this one never among them."""
        inode = self.path.stat().st_ino
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _namespace_of(pid) == inode]


def _in_thread(function: Callable[[], T]) -> T:
    """Call a function in a thread of its own, which may change its namespaces, and return or raise what it does."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _mount_points() -> set[str]:
    """What is mounted where. os.path.ismount() is no answer: it overlooks a directory bound to itself."""
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _namespace_of(pid: int) -> int | None:
    if pid == os.getpid():
        return None
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


@dataclass(frozen=True)
class Lab:
    """A lab, standing or not. Use it as a context manager, or call up() and down().

    prefix    of the namespaces' names and of the run directory; labs of different prefixes stand side by side
    mtu       of every link, 1280 to 65535
    offloads  True or False sets tx, tso, gso and gro of every veth by ethtool; None leaves the kernel's default
    second    whether the second server, 10.10.10.5, is there
    """

    prefix: str = "nfqguard"
    mtu: int = 1500
    offloads: bool | None = None
    second: bool = False
    client: Host = field(init=False)
    gateway: Host = field(init=False)
    server: Host = field(init=False)
    second_server: Host = field(init=False)
    lan: Host = field(init=False)
    """The switch inside; only where there is a second server."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,23}", self.prefix):
            raise LabError(f"{self.prefix!r} cannot be a lab's name: up to 24 lower-case letters, digits and hyphens")
        if not 1280 <= self.mtu <= 65535:
            raise LabError(f"an MTU of {self.mtu} is outside 1280 to 65535, what IPv6 and veth allow")
        hosts = {
            "client": Host(f"{self.prefix}-client", "eth0", "172.22.1.10", "fd00:22::10"),
            "gateway": Host(f"{self.prefix}-gateway", "outside", "172.22.1.16", "fd00:22::16"),
            "server": Host(f"{self.prefix}-server", "eth0", "10.10.10.2", "fd00:10::2"),
            "second_server": Host(f"{self.prefix}-second", "eth0", "10.10.10.5", "fd00:10::5"),
            "lan": Host(f"{self.prefix}-lan", "bridge", "", ""),
        }
        for attribute, host in hosts.items():
            object.__setattr__(self, attribute, host)

    @property
    def run_dir(self) -> Path:
        """Where the lab's daemons keep their files; gone after down()."""
        return RUN / f"nfqguard-lab-{self.prefix}"

    @property
    def public_ipv4(self) -> str:
        """The mail server's address as seen from the client."""
        return PUBLIC_IPV4

    @property
    def public_ipv6(self) -> str:
        """The same for IPv6, where nothing is translated."""
        return self.server.ipv6

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The namespaces that this lab has when it is up."""
        return (self.client, self.gateway, self.server) + ((self.second_server, self.lan) if self.second else ())

    def __enter__(self) -> Self:
        """Make the lab anew, whatever stood there under the same prefix."""
        self.down()
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Make the lab. One that stands already with the same options is left as it is; anything else of that prefix,
        whole or half built, is taken down first. On any failure nothing stays. LabError says what was missing."""
        with _lock():
            if self.is_up():
                return
            self._clear()
            try:
                self._build()
            except BaseException:
                self._clear()
                raise

    def down(self) -> None:
        """End the lab's processes, a shell inside included, and remove its namespaces and files. Always possible."""
        with _lock():
            self._clear()

    def is_up(self) -> bool:
        """Whether the lab stands whole, with these options."""
        try:
            stamp = json.loads((self.run_dir / "lab.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(stamp == self._options()) and all(host.exists() for host in self.hosts)

    def _options(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key in ("prefix", "mtu", "offloads", "second")}

    def _build(self) -> None:
        _require("nsenter", "iptables-restore", "ip6tables-restore", *(() if self.offloads is None else ("ethtool",)))
        self.run_dir.mkdir(mode=0o755)
        if str(NAMESPACES) not in _mount_points():
            (self.run_dir / "netns-made").touch()
        for host in self.hosts:
            host.create()
            host.sysctl("net/ipv6/conf/default/accept_dad", 0)
        self._link()
        self._address()
        self._set_offloads()
        self._route_and_filter()
        (self.run_dir / "lab.json").write_text(json.dumps(self._options()))

    def _link(self) -> None:
        self.gateway.configure(lambda stack: self._veth(stack, "outside", "eth0", self.client))
        if not self.second:
            self.gateway.configure(lambda stack: self._veth(stack, "inside", "eth0", self.server))
            return
        self.gateway.configure(lambda stack: self._veth(stack, "inside", "gateway", self.lan))
        self.lan.configure(self._bridge)

    def _bridge(self, stack: Any) -> None:
        self._veth(stack, "server", "eth0", self.server)
        self._veth(stack, "second", "eth0", self.second_server)
        stack.link("add", ifname="bridge", kind="bridge", mtu=self.mtu)
        bridge = stack.link_lookup(ifname="bridge")[0]
        for port in ("gateway", "server", "second"):
            stack.link("set", index=stack.link_lookup(ifname=port)[0], master=bridge)

    def _veth(self, stack: Any, name: str, peer: str, there: Host) -> None:
        stack.link("add", ifname=name, kind="veth", mtu=self.mtu,
                   peer={"ifname": peer, "mtu": self.mtu, "net_ns_fd": there.name})

    def _address(self) -> None:
        addresses: dict[Host, dict[str, tuple[str, ...]]] = {
            self.client: {"eth0": ("172.22.1.10/24", "fd00:22::10/64")},
            self.gateway: {"outside": ("172.22.1.16/24", "fd00:22::16/64", f"{PUBLIC_IPV4}/32"),
                           "inside": ("10.10.10.1/24", "fd00:10::1/64")},
            self.server: {"eth0": ("10.10.10.2/24", "fd00:10::2/64")},
            self.second_server: {"eth0": ("10.10.10.5/24", "fd00:10::5/64")},
        }
        if self.second:
            addresses[self.gateway]["outside"] += (f"{SECOND_PUBLIC_IPV4}/32",)
        routes: dict[Host, tuple[str, ...]] = {
            self.client: ("fd00:22::16",),
            self.server: ("10.10.10.1", "fd00:10::1"),
            self.second_server: ("10.10.10.1", "fd00:10::1"),
        }
        for host in self.hosts:
            host.configure(partial(_bring_up, addresses=addresses.get(host, {}), gateways=routes.get(host, ())))

    def _set_offloads(self) -> None:
        if self.offloads is None:
            return
        state = "on" if self.offloads else "off"
        options = [word for name in OFFLOADS for word in (name, state)]
        for host in self.hosts:
            for device in host.configure(_veths):
                host.run(["ethtool", "-K", device, *options])

    def _route_and_filter(self) -> None:
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.gateway.sysctl(key, 1)
        self.gateway.sysctl("net/ipv4/conf/all/rp_filter", 0)
        self.gateway.run(["iptables-restore", "-w"], input=IPV4_STEPS)
        self.gateway.run(["ip6tables-restore", "-w"], input=IPV6_STEPS)

    def _clear(self) -> None:
        hosts = (self.client, self.gateway, self.server, self.second_server, self.lan)
        _end_processes([host for host in hosts if host.exists()])
        for host in hosts:
            if os.path.lexists(host.path):
                namespaces.remove(host.name)
        made = (self.run_dir / "netns-made").exists()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        if made:
            _unmake_namespace_directory()


def _veths(stack: Any) -> list[str]:
    return [link.get_attr("IFLA_IFNAME") for link in stack.get_links(kind="veth")]


def _bring_up(stack: Any, addresses: dict[str, tuple[str, ...]], gateways: tuple[str, ...]) -> None:
    """Set every link of a namespace up, with these addresses by device, and default routes by these gateways."""
    for link in stack.get_links():
        stack.link("set", index=link["index"], state="up")
    for device, given in addresses.items():
        index = stack.link_lookup(ifname=device)[0]
        for address in given:
            stack.addr("add", index=index, address=address)
    for gateway in gateways:
        stack.route("add", dst="::/0" if ":" in gateway else "0.0.0.0/0", gateway=gateway)


def _end_processes(hosts: Sequence[Host]) -> None:
    """End all that runs in these namespaces: asked first, killed KILL_AFTER seconds later."""
    began = time.monotonic()
    asked: set[int] = set()
    while pids := {pid for host in hosts for pid in host.pids()}:
        late = time.monotonic() > began + KILL_AFTER
        if time.monotonic() > began + 4 * KILL_AFTER:
            raise LabError(f"processes {sorted(pids)} inside the lab do not end even when killed; look at them with ps")
        for pid in pids if late else pids - asked:
            _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= pids
        time.sleep(0.02)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _unmake_namespace_directory() -> None:
    """Undo the mount on /run/netns where it was made for a lab; while others stand, the duty passes to one of them."""
    others = list(RUN.glob("nfqguard-lab-*"))
    if others:
        (others[0] / "netns-made").touch()
        return
    try:
        next(NAMESPACES.iterdir())
    except StopIteration:
        subprocess.run(["umount", NAMESPACES], check=False, capture_output=True)
        try:
            NAMESPACES.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
                raise
    except FileNotFoundError:
        pass


@contextmanager
def _lock() -> Iterator[None]:
    """One lab is built or taken down at a time. The lock is on the directory itself, so no file is left behind."""
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces: run it as root")
    handle = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _require(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise LabError(f"missing on this machine: {', '.join(missing)}; packaging/prepare.sh installs what is needed")


IPV4_STEPS = """\
*nat
:PREROUTING ACCEPT
:POSTROUTING ACCEPT
-A PREROUTING -i outside -d 172.22.1.110 -j DNAT --to-destination 10.10.10.2
-A PREROUTING -i outside -d 172.22.1.111 -j DNAT --to-destination 10.10.10.5
-A POSTROUTING -o outside -s 10.10.10.2 -j SNAT --to-source 172.22.1.110
-A POSTROUTING -o outside -s 10.10.10.5 -j SNAT --to-source 172.22.1.111
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:access-list-101 -
-A INPUT -i outside -j access-list-101
-A FORWARD -i outside -j access-list-101
-A access-list-101 -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
-A access-list-101 -p tcp -m conntrack --ctorigdst 172.22.1.110 --ctorigdstport 25 -j RETURN
-A access-list-101 -j REJECT --reject-with icmp-admin-prohibited
COMMIT
"""

IPV6_STEPS = """\
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:access-list-101 -
-A INPUT -i outside -j access-list-101
-A FORWARD -i outside -j access-list-101
-A access-list-101 -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN
-A access-list-101 -p ipv6-icmp --icmpv6-type neighbour-solicitation -j RETURN
-A access-list-101 -p ipv6-icmp --icmpv6-type neighbour-advertisement -j RETURN
-A access-list-101 -d fd00:10::2 -p tcp --dport 25 -j RETURN
-A access-list-101 -j REJECT --reject-with icmp6-adm-prohibited
COMMIT
"""
