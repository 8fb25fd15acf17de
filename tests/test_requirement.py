"""What a policy needs of the kernel: `run` refuses where it is missing, `check` warns."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nfqguard.deploy.system import CONNTRACK_LIBERAL
from nfqguard.policy.compile import compile_policy
from nfqguard.policy.load import load

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

SILENT = 'ehlo-keywords = ["SIZE"]\n'
"""With mask-ehlo, nothing else about the policy surprises."""
CHANGES = {
    "mask-banner": 'mask-ehlo = true\nmask-banner = "text"\nbanner-text = "mail.example ready"\n',
    "remove-ehlo": "mask-ehlo = true\nremove-ehlo = true\n",
    "insert-header": 'mask-ehlo = true\ninsert-header = "X-Gateway: here"\n',
    "matches.unknown-keywords": 'mask-ehlo = true\n[[policies.p.matches]]\n'
                                'name = "unknown-keywords"\nmatch = "ehlo-reply-parameter"\n'
                                'names = "others"\naction = "remove"\n',
}
SYSCTL = Path("/proc/sys") / CONNTRACK_LIBERAL.replace(".", "/")
LIBERAL, STRICT = f"echo 1 > {SYSCTL}", f"echo 0 > {SYSCTL}"
NO_CONNTRACK = f"mount -t tmpfs none {SYSCTL.parent}"


def configuration(folder: Path, keys: str) -> Path:
    path = folder / "nfqguard.toml"
    path.write_text(f'policy = "p"\n[policies.p]\nextends = "ios-esmtp"\n{SILENT}{keys}')
    return path


def inside(first: str, words: list[str]) -> list[str]:
    """A command of ours in a network and a mount namespace of its own, behind a shell command."""
    return ["unshare", "--net", "--mount", "sh", "-c", f'set -e; {first}; exec "$@"', "sh", sys.executable, "-m",
            "nfqguard", *words]


def warnings(path: Path, first: str) -> list[dict[str, str]]:
    done = subprocess.run(inside(first, ["check", "--json", "-c", str(path)]), stdout=subprocess.PIPE, timeout=30,
                          check=True)
    return list(json.loads(done.stdout)["warnings"])


def run(path: Path, first: str) -> tuple[int | None, str]:
    """What the daemon said until it inspected, or its exit status and what it said until it ended."""
    words = ["timeout", "30", *inside(first, ["run", "--events", "-", "-c", str(path)])]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        said = ""
        assert process.stderr is not None
        for line in process.stderr:
            said += line
            if "inspecting on" in line:
                process.terminate()
                return None, said
    return process.returncode, said


@pytest.mark.skipif(not SYSCTL.exists(), reason="this kernel has no connection tracking")
@pytest.mark.parametrize("key", CHANGES)
def test_a_strict_conntrack_is_told_with_its_remedy(tmp_path: Path, key: str) -> None:
    path = configuration(tmp_path, CHANGES[key])
    told = warnings(path, STRICT)
    assert [warning["key"] for warning in told] == [f"policies.p.{key}"]
    assert f"sysctl -w {CONNTRACK_LIBERAL}=1" in told[0]["remedy"]
    status, said = run(path, STRICT)
    assert status == 1
    assert f"{path}: policies.p.{key}: {told[0]['text']}: {told[0]['remedy']}" in said


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("first", [
    pytest.param(LIBERAL, marks=pytest.mark.skipif(not SYSCTL.exists(), reason="no connection tracking")),
    NO_CONNTRACK,
], ids=["liberal", "no-conntrack"])
def test_nothing_is_told_where_nothing_is_missing(tmp_path: Path, key: str, first: str) -> None:
    path = configuration(tmp_path, CHANGES[key])
    assert warnings(path, first) == []
    assert run(path, first)[0] is None


def test_a_policy_that_keeps_lengths_needs_nothing(tmp_path: Path) -> None:
    path = configuration(tmp_path, 'mask-ehlo = true\nmask-banner = "asa"\n')
    assert not any("sysctl" in warning["remedy"] for warning in warnings(path, STRICT))
    assert run(path, STRICT)[0] is None


@pytest.mark.parametrize("key", [*CHANGES, None])
def test_the_keys_are_those_that_the_engine_changes_lengths_for(tmp_path: Path, key: str | None) -> None:
    found = load(configuration(tmp_path, CHANGES.get(key or "", "")))
    assert compile_policy("p", found.policy_in_force).changes_length is (key is not None)
