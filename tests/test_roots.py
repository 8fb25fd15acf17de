"""Private roots: fetched once, begun anew when broken, seen by nobody else."""
from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from nfqguard.lab import roots

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for mount namespaces"),
]


def output(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_broken_root_is_made_anew_and_a_whole_one_kept(tmp_path: Path) -> None:
    (tmp_path / "swaks.partial/packages").mkdir(parents=True)
    (tmp_path / "swaks.partial/packages/swaks_0_all.deb").write_text("half a package")
    (tmp_path / "swaks").mkdir()
    (tmp_path / "swaks" / roots.STAMP).write_text('{"layout"')
    said: list[str] = []
    root = roots.fetch("swaks", said.append, tmp_path)
    assert not (tmp_path / "swaks.partial").exists()
    assert any("fetching" in line for line in said)
    assert "swaks version" in output(root.argv(["swaks", "--version"]))
    said.clear()
    assert roots.fetch("swaks", said.append, tmp_path) == root
    assert said == []


def test_a_package_that_cannot_be_had_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roots.PACKAGES, "swaks", ("no-such-package-anywhere",))
    monkeypatch.setattr(roots, "_private_index", lambda state: [])
    real = roots._apt
    monkeypatch.setattr(roots, "_apt", lambda argv, folder=None: "" if argv[-1] == "update" else real(argv, folder))
    with pytest.raises(roots.RootError, match="no-such-package-anywhere"):
        roots.fetch("swaks", folder=tmp_path)
    assert not (tmp_path / "swaks").exists()


def test_programs_and_users_of_a_root_are_seen_inside_alone(tmp_path: Path) -> None:
    root = roots.fetch("postfix")
    root.write_etc(tmp_path / "etc")
    mounts = Path("/proc/self/mountinfo").read_text()
    shown = output(root.argv(["sh", "-c", "postconf -dh mail_version; getent passwd postfix; getent group postdrop"],
                             tmp_path / "etc")).splitlines()
    assert shown[0].startswith("3.")
    numbers = root.users()
    assert shown[1].startswith(f"postfix:x:{numbers['postfix']}:") and shown[2] == f"postdrop:x:{numbers['postdrop']}:"
    assert not {entry.pw_uid for entry in pwd.getpwall()} & set(numbers.values())
    assert Path("/proc/self/mountinfo").read_text() == mounts
    if shutil.which("postfix") is None:
        assert "postfix:" not in Path("/etc/passwd").read_text()


def test_the_view_is_read_only(tmp_path: Path) -> None:
    root = roots.fetch("postfix")
    done = subprocess.run(root.argv(["touch", "/usr/sbin/left-behind"]), capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "Read-only" in done.stderr
    assert not Path("/usr/sbin/left-behind").exists()


def test_the_folder_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFQGUARD_ROOTS", str(tmp_path))
    assert roots.default_folder() == tmp_path
    monkeypatch.delenv("NFQGUARD_ROOTS")
    assert roots.default_folder() == Path(roots.__file__).parents[2] / "build/roots"


def test_the_stamp_names_what_is_in_the_root() -> None:
    root = roots.fetch("postfix")
    stamp = json.loads((root.path / roots.STAMP).read_text())
    assert stamp["packages"] == list(roots.PACKAGES["postfix"]) and stamp["layout"] == roots.LAYOUT
