"""Programs from private roots: Debian packages fetched and unpacked, never installed.

Debian's mail servers conflict with each other and start themselves when installed; a lab must do neither to a machine.
So each has a root of its own: its package and those of its dependencies that the machine lacks. A program is run in a
private mount namespace where the root's /usr and /etc lie, read-only, over the machine's. Absolute paths inside the
program hold, the users it insists on exist there alone, and nothing is seen or left outside.

Rejected: a chroot with a whole system (hundreds of megabytes for one daemon), and LD_LIBRARY_PATH with relocated paths
(every mail server clears its environment, and each has other paths compiled in).
"""
from __future__ import annotations

import fcntl
import grp
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[str], None]

PACKAGES = {
    "postfix": ("postfix", "libsasl2-modules", "libsasl2-modules-db", "sasl2-bin"),
    "swaks": ("swaks", "libio-socket-inet6-perl", "libnet-ssleay-perl"),
    "curl": ("curl",),
    "exim4": ("exim4-daemon-light", "exim4-base", "exim4-config"),
    "opensmtpd": ("opensmtpd",),
}
"""The roots that can be had, and the packages asked for; what these need comes with them."""

USERS = {
    "postfix": ("postfix", "postdrop"),
    "exim4": ("Debian-exim",),
    "opensmtpd": ("opensmtpd", "opensmtpq"),
}
"""The users, each with a group of its name, that the programs of a root insist on."""

FIRST_UID = 60600
"""From here on users are numbered: neither Debian nor systemd gives numbers between 60578 and 61183 to anybody."""

STAMP = "root.json"
LAYOUT = 1
"""To be raised when unpacking changes: older roots are then made anew."""

ENTER = """\
set -eu
root=$1 etc=$2; shift 2
cd "$root/usr"
mount -t overlay -o ro,lowerdir=.:/usr nfqguard-lab /usr
cd "$etc"
mount -t overlay -o ro,lowerdir=.:/etc nfqguard-lab /etc
cd /
exec "$@"
"""


class RootError(RuntimeError):
    """A root cannot be had; the text says why and what to do."""


@dataclass(frozen=True)
class Root:
    """A root that is there. Get one from fetch().

    name  one of PACKAGES
    path  the folder that holds its usr and etc
    """

    name: str
    path: Path

    def argv(self, argv: Sequence[str | os.PathLike[str]], etc: Path | None = None) -> list[str]:
        """The command that runs `argv` with this root in view, in the network namespace of whoever starts it.

        etc  the folder that lies over /etc, made by write_etc(); None: the root's own, which lacks its users
        """
        over = self.path / "etc" if etc is None else etc
        return ["unshare", "--mount", "--", "sh", "-c", ENTER, "sh", str(self.path), str(over),
                *(os.fspath(word) for word in argv)]

    def users(self) -> dict[str, int]:
        """The users of this root and their numbers, which nobody on the machine has."""
        return _free_numbers(USERS.get(self.name, ()))

    def write_etc(self, etc: Path) -> None:
        """Make a folder for argv(): the root's /etc, and the machine's passwd and group with the root's users added."""
        shutil.copytree(self.path / "etc", etc, symlinks=True)
        users = self.users()
        passwd = [f"{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n" for name, number in users.items()]
        group = [f"{name}:x:{number}:\n" for name, number in users.items()]
        (etc / "passwd").write_text(_without("/etc/passwd", users) + "".join(passwd))
        (etc / "group").write_text(_without("/etc/group", users) + "".join(group))


def _without(path: str, users: dict[str, int]) -> str:
    """A database of the machine without lines of these names: a machine with a mail server of its own has them."""
    lines = Path(path).read_text().splitlines(keepends=True)
    return "".join(line for line in lines if line.partition(":")[0] not in users)


def _free_numbers(names: Sequence[str]) -> dict[str, int]:
    taken = {entry.pw_uid for entry in pwd.getpwall()} | {entry.gr_gid for entry in grp.getgrall()}
    free = (number for number in range(FIRST_UID, FIRST_UID + 500) if number not in taken)
    return dict(zip(names, free, strict=False))


def default_folder() -> Path:
    """Where roots are kept: $NFQGUARD_ROOTS, else build/roots of the checkout this runs from, else /var/cache."""
    if given := os.environ.get("NFQGUARD_ROOTS"):
        return Path(given).absolute()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "csrc").is_dir():
        return checkout / "build" / "roots"
    return Path("/var/cache/nfqguard/roots")


def fetch(name: str, progress: Progress = lambda line: None, folder: Path | None = None) -> Root:
    """The root of that name, fetched and unpacked unless it is there already.

    Raises RootError where apt cannot give the packages; a half-made root of an earlier run is begun anew.
    """
    folder = default_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    root = Root(name, folder / name)
    with _lock(folder):
        if _stamp(root.path) == _wanted(name):
            return root
        partial = folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for package in _download(name, partial / "packages", folder / "apt", progress):
            progress(f"{name}: unpacking {package.name}")
            _apt(["dpkg-deb", "-x", str(package), str(partial)])
        _tidy(partial)
        (partial / STAMP).write_text(json.dumps(_wanted(name)))
        shutil.rmtree(root.path, ignore_errors=True)
        partial.rename(root.path)
    progress(f"{name}: ready in {root.path}")
    return root


def _wanted(name: str) -> dict[str, object]:
    debian = Path("/etc/debian_version").read_text().strip()
    return {"layout": LAYOUT, "packages": list(PACKAGES[name]), "debian": debian}


def _stamp(path: Path) -> object:
    try:
        return json.loads((path / STAMP).read_text())
    except (OSError, ValueError):
        return None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _download(name: str, into: Path, state: Path, progress: Progress) -> list[Path]:
    """Fetch the packages; where the machine's index is missing or too old, by an index of our own."""
    into.mkdir()
    try:
        _download_by([], name, into, progress)
    except RootError:
        progress(f"{name}: the machine's package index does not serve; fetching one for us alone")
        private = _private_index(state)
        _apt(["apt-get", *private, "update"])
        _download_by(private, name, into, progress)
    return sorted(into.glob("*.deb"))


def _private_index(state: Path) -> list[str]:
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    settings = (f"Dir::State::Lists={state}/lists", f"Dir::Cache={state}/cache", "APT::Sandbox::User=root")
    return [word for setting in settings for word in ("-o", setting)]


def _download_by(options: list[str], name: str, into: Path, progress: Progress) -> None:
    """Ask apt what an installation would bring, and fetch that; apt verifies it against the signed index."""
    answer = _apt(["apt-get", *options, "install", "--simulate", "--no-install-recommends", "--ignore-hold",
                   "--reinstall", *PACKAGES[name]])
    brought = {line.split()[1] for line in answer.splitlines() if line.startswith("Inst ")}
    wanted = sorted(brought | set(PACKAGES[name]))
    progress(f"{name}: fetching {len(wanted)} package{'s' if len(wanted) > 1 else ''}: {', '.join(wanted)}")
    _apt(["apt-get", *options, "-o", "APT::Sandbox::User=root", "download", *wanted], into)


def _apt(argv: list[str], folder: Path | None = None) -> str:
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        said = "; ".join(line for line in words if line.startswith(("E:", "dpkg-deb: error"))) or "\n".join(words[-3:])
        raise RootError(f"{' '.join(argv)} failed: {said}. Is the network reachable, and are the sources of apt right?")
    return done.stdout


def _tidy(path: Path) -> None:
    """Remove the archives, and put what lies in /lib, /bin and /sbin where it is on every Debian 12: below /usr."""
    shutil.rmtree(path / "packages")
    for name in ("bin", "sbin", "lib", "lib64"):
        if (path / name).is_dir():
            shutil.copytree(path / name, path / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(path / name)
    for name in ("usr", "etc"):
        (path / name).mkdir(exist_ok=True)
