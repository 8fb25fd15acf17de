"""A polite guest: a lab, a demonstration, an interruption or a crash leave the machine as it was."""
from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nfqguard.lab import roots

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]
ROOT = Path(__file__).parents[1]
PREFIX = f"guest{os.getpid()}"
SYSCTLS = ("net/ipv4", "net/ipv6", "net/netfilter", "net/core", "net/bridge")
VOLATILE = ("net/netfilter/nf_conntrack_count", "net/ipv4/route/flush", "net/ipv6/route/flush")
LISTENING = "0A"
Snapshot = dict[str, set[str]]


def said(*argv: str) -> set[str]:
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return {line.partition(" [")[0] for line in done.stdout.splitlines() if not line.startswith("#")}


def readable_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def listeners() -> set[str]:
    found = set()
    for protocol in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in readable_text(Path("/proc/net", protocol)).splitlines()[1:]:
            local, _, state = line.split()[1:4]
            if state == LISTENING or not protocol.startswith("tcp"):
                found.add(f"{protocol} {local}")
    return found


def sysctls() -> set[str]:
    paths = [path for folder in SYSCTLS for path in Path("/proc/sys", folder).rglob("*") if path.is_file()]
    return {f"{path} {readable_text(path).strip()}" for path in paths if not str(path).endswith(VOLATILE)}


def snapshot() -> Snapshot:
    """What a guest could leave behind, a line each."""
    mounts = readable_text(Path("/proc/self/mountinfo")).splitlines()
    return {
        "namespaces": {path.name for path in Path("/run/netns").glob("*")},
        "mounts": {" ".join([line.split()[4], line.partition(" - ")[2]]) for line in mounts},
        "run directories": {path.name for path in Path("/run").glob("nfqguard*")},
        "links": {path.name for path in Path("/sys/class/net").iterdir()},
        "iptables": said("iptables-save") | said("ip6tables-save"),
        "listeners": listeners(),
        "sysctls": sysctls(),
        "packages": said("dpkg-query", "-W", "-f", "${Package} ${Version} ${Status}\n"),
        "users": set(readable_text(Path("/etc/passwd")).splitlines() + readable_text(Path("/etc/group")).splitlines()),
        "programs": {name for name in ("postfix", "swaks", "smtp-source", "exim4", "smtpd") if shutil.which(name)},
    }


SHARED = {"namespaces", "mounts", "run directories"}
"""Other labs may come to stand on this machine, and go, while we look."""


def differences(before: Snapshot) -> list[str]:
    """What appeared, or vanished, and stays so: what comes and goes within seconds belongs to somebody else. Where
    somebody else's namespaces stand, of what is shared with them only what bears our name is ours to answer for."""
    for attempt in range(3):
        after = snapshot()
        alone = all(name.startswith(PREFIX) for name in before["namespaces"] | after["namespaces"])
        found = [f"{kind}: {line} appeared" for kind in before for line in sorted(after[kind] - before[kind])
                 if kind not in SHARED or alone or PREFIX in line]
        found += [f"{kind}: {line} vanished" for kind in before for line in sorted(before[kind] - after[kind])
                  if kind not in SHARED or alone]
        if not found:
            return []
        time.sleep(attempt * 5)
    return found


def lab(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nfqguard", "lab", *words], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=300)


def demo() -> subprocess.Popen[str]:
    """A demonstration that has come as far as its first message."""
    process = subprocess.Popen([sys.executable, "-u", "-m", "nfqguard", "lab", "demo", "--prefix", PREFIX], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "Sending a real message" in line:
            return process
    raise AssertionError(f"the demonstration ended with {process.wait()} before its first message")


@pytest.fixture
def before() -> Snapshot:
    for name in ("postfix", "swaks"):
        roots.fetch(name)
    return snapshot()


def test_the_demonstration_passes_and_leaves_nothing(before: Snapshot) -> None:
    done = lab("demo", "--prefix", PREFIX)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("DEMO PASSED")
    assert differences(before) == []


def test_a_lab_leaves_nothing(before: Snapshot) -> None:
    up = lab("up", "--prefix", PREFIX)
    assert up.returncode == 0, up.stdout + up.stderr
    assert snapshot()["namespaces"] > before["namespaces"]
    again = lab("up", "--prefix", PREFIX)
    assert again.returncode == 0, again.stdout + again.stderr
    shell = subprocess.run([sys.executable, "-m", "nfqguard", "lab", "shell", "server", "--prefix", PREFIX], cwd=ROOT,
                           input="cat /proc/net/route\n", capture_output=True, text=True, check=True,
                           env=os.environ | {"SHELL": "/bin/sh"})
    assert shell.stdout.splitlines()[1].split()[:3] == ["eth0", "00000000", "010A0A0A"]   # default by 10.10.10.1
    assert lab("down", "--prefix", PREFIX).returncode == 0
    assert lab("down", "--prefix", PREFIX).returncode == 0
    assert differences(before) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demonstration_cleans_up_and_fails(before: Snapshot, number: signal.Signals) -> None:
    process = demo()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert rest.splitlines()[-1].startswith("DEMO FAILED")
    assert differences(before) == []


def test_after_a_killed_demonstration_down_cleans_up(before: Snapshot) -> None:
    process = demo()
    process.kill()
    process.communicate(timeout=60)
    assert any(PREFIX in name for name in snapshot()["namespaces"])
    assert lab("down", "--prefix", PREFIX).returncode == 0
    assert differences(before) == []


def test_a_demonstration_cannot_pass_where_nothing_is_masked() -> None:
    """The demonstration compares: where greeting and EHLO reply are not masked it must fail, and say so."""
    code = ("import sys; from nfqguard.lab import demo; from nfqguard.lab.topology import Lab; "
            "demo.POLICY = 'ios-esmtp'; sys.exit(0 if demo.Demo(Lab(sys.argv[1])).run() else 1)")
    done = subprocess.run([sys.executable, "-c", code, PREFIX], cwd=ROOT, capture_output=True, text=True, check=False,
                          timeout=300)
    assert done.returncode == 1
    assert "NOT AS IT MUST BE: the greeting as the client read it" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("DEMO FAILED")
