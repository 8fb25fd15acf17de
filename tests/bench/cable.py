"""Between a host of the lab and the gateway: a namespace whose only program passes frames on, worse than a link does.

    host eth0 ──── near  cable  far ──── gateway

The host's interface moves into the namespace, where it is `far`, and the host gets another eth0 with the same
addresses. Nothing of the gateway changes, so that a deployment and a daemon there may be running already.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pyroute2 import netns as namespaces

from nfqguard.lab.topology import OFFLOADS, Host, Lab

from .programs import program
from .systems import RunError, stop

NEAR, FAR = "near", "far"
NO_ADDRESSES = "net/ipv6/conf/default/disable_ipv6"
UNIVERSE = 0
"""RT_SCOPE_UNIVERSE: link-local addresses come by themselves."""


@dataclass(frozen=True)
class Fault:
    """What a cable does to frames.

    delay      of every frame, microseconds, one way
    jitter     microseconds that a reordered or duplicated frame is later at most
    reorder, duplicate, lose  of 10,000 frames with TCP in them
    seed       of chance
    """

    delay: int = 0
    jitter: int = 0
    reorder: int = 0
    duplicate: int = 0
    lose: int = 0
    seed: int = 1

    def arguments(self) -> list[str]:
        return [word for name, value in vars(self).items() for word in (f"--{name}", str(value))]


@dataclass
class Cable:
    """A cable in use. `counted` is there when it has been taken out: for either direction frames, delayed, duplicated,
    lost, overflowed (no room in the cable: it was too short for the load), refused (the kernel would not take it)."""

    host: Host
    counted: dict[str, dict[str, int]] = field(default_factory=dict)


def cable_host(host: Host) -> Host:
    """The namespace that a cable of this host has."""
    return Host(f"{host.name}-cable", NEAR, "", "")


@contextmanager
def cabled(lab: Lab, host: Host, fault: Fault) -> Iterator[Cable]:
    """Put a cable between a host and its link, and take it out again. Raises RunError where that fails."""
    between = cable_host(host)
    made = Cable(between)
    remove(between)
    between.create()
    try:
        between.sysctl(NO_ADDRESSES, 1)
        addresses, routes, mac = host.configure(lambda stack: _facts(stack, host.device))
        host.configure(lambda stack: stack.link("set", index=_index(stack, host.device), net_ns_fd=between.name))
        try:
            between.configure(lambda stack: _connect(stack, lab, host, mac))
            host.configure(lambda stack: _dress(stack, host.device, addresses, routes))
            _set_offloads(lab, host, between)
            with _running(between, fault, made):
                yield made
        finally:
            with suppress(Exception):   # there is none where _connect() failed
                host.configure(lambda stack: stack.link("del", index=_index(stack, host.device)))
            between.configure(lambda stack: _give_back(stack, host))
            host.configure(lambda stack: _dress(stack, host.device, addresses, routes))
    finally:
        remove(between)


def remove(between: Host) -> None:
    """Take a cable's namespace away, with the program inside where a killed run left it. There need not be one."""
    if not between.exists():
        return
    for pid in between.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    namespaces.remove(between.name)


def _index(stack: Any, device: str) -> int:
    return int(stack.link_lookup(ifname=device)[0])


def _facts(stack: Any, device: str) -> tuple[list[tuple[str, int]], list[str], str]:
    """Addresses, the gateways of default routes, and the hardware address of a device."""
    index = _index(stack, device)
    addresses = [(each.get_attr("IFA_ADDRESS"), each["prefixlen"]) for each in stack.get_addr(index=index)
                 if each["scope"] == UNIVERSE]
    gateways = [each.get_attr("RTA_GATEWAY") for each in stack.get_routes()
                if each["dst_len"] == 0 and each.get_attr("RTA_GATEWAY") and each.get_attr("RTA_OIF") == index]
    return addresses, gateways, str(stack.get_links(index)[0].get_attr("IFLA_ADDRESS"))


def _connect(stack: Any, lab: Lab, host: Host, mac: str) -> None:
    """In the cable's namespace: what came is `far`, and a new pair leads from `near` to the host."""
    far = _index(stack, host.device)
    stack.link("set", index=far, ifname=FAR)
    stack.link("add", ifname=NEAR, kind="veth", mtu=lab.mtu,
               peer={"ifname": host.device, "mtu": lab.mtu, "address": mac, "net_ns_fd": host.name})
    for index in (far, _index(stack, NEAR)):
        stack.link("set", index=index, state="up")


def _give_back(stack: Any, host: Host) -> None:
    index = (stack.link_lookup(ifname=FAR) or stack.link_lookup(ifname=host.device))[0]
    stack.link("set", index=index, state="down")
    stack.link("set", index=index, ifname=host.device)
    stack.link("set", index=index, net_ns_fd=host.name)


def _dress(stack: Any, device: str, addresses: list[tuple[str, int]], routes: list[str]) -> None:
    index = _index(stack, device)
    stack.link("set", index=index, state="up")
    for address, length in addresses:
        stack.addr("add", index=index, address=address, prefixlen=length)
    for gateway in routes:
        stack.route("add", dst="::/0" if ":" in gateway else "0.0.0.0/0", gateway=gateway)


def _set_offloads(lab: Lab, host: Host, between: Host) -> None:
    if lab.offloads is None:
        return
    options = [word for name in OFFLOADS for word in (name, "on" if lab.offloads else "off")]
    for place, device in ((host, host.device), (between, NEAR), (between, FAR)):
        place.run(["ethtool", "-K", device, *options])


@contextmanager
def _running(between: Host, fault: Fault, made: Cable) -> Iterator[None]:
    argv = [program("cable"), "--left", NEAR, "--right", FAR, *fault.arguments()]
    process = between.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        if process.stdout.readline() != "ready\n":
            raise RunError(f"the cable does not work: {process.stderr.read().strip()}")
        yield
    finally:
        stop(process)
        assert process.stdout is not None and process.stderr is not None
        made.counted.update(json.loads(process.stdout.read() or "{}"))
        process.stdout.close()
        process.stderr.close()
