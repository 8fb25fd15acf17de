"""Facts about the system that a deployment depends on. Reads only.

Everything is read through /proc/thread-self, not /proc/self: a thread may have entered another network namespace, and
/proc/net shows the one of the process.
"""
from __future__ import annotations

import os
from pathlib import Path

CAP_NET_ADMIN = 12
"""linux/capability.h."""
CONNTRACK_LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"
"""Documentation/networking/nf_conntrack-sysctl.rst: 1 lets all but RST segments pass outside the window."""


def has_ipv6() -> bool:
    """Whether the kernel speaks IPv6 at all; switched off by sysctl still counts, for it may be switched on again."""
    return _net("if_inet6").exists()


def may_administer_network() -> bool:
    """Whether this thread has CAP_NET_ADMIN. Asked first, for iptables-legacy-save answers others with silence."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_NET_ADMIN & 1)
    return False


def bound_queues() -> frozenset[int] | None:
    """The numbers of the NFQUEUEs that a process has bound; None where the kernel does not tell.

    Source: net/netfilter/nfnetlink_queue.c, seq_show. The file is readable by root's group only.
    """
    try:
        lines = _net("netfilter/nfnetlink_queue").read_text().splitlines()
    except OSError:
        return None
    return frozenset(int(line.split()[0]) for line in lines if line.strip())


def conntrack_is_liberal() -> bool | None:
    """Whether connection tracking lets TCP segments pass that are outside the window it knows; None where there is no
    connection tracking. Each network namespace has its own setting, and /proc/sys shows the calling thread's."""
    try:
        return (Path("/proc/sys") / CONNTRACK_LIBERAL.replace(".", "/")).read_text().strip() != "0"
    except OSError:
        return None


def search_path() -> str:
    """Where to look for programs: cron and some units leave out the directories of the administrator."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _net(name: str) -> Path:
    return Path("/proc/thread-self/net") / name
