"""A real Postfix inside the lab: its own configuration, queue and mailboxes under the lab's run directory.

It is Debian's Postfix out of a private root. Only what a lab must have differs from its defaults: no DNS, no syslog, no
limit on a client's connections, and mailboxes (maildir, virtual delivery) for a few users of one domain.
"""
from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfqguard.lab import roots
from nfqguard.lab.topology import Host, Lab, LabError

DOMAIN = "inside.example"
USERS = ("alice", "bob", "postmaster")
"""Who has a mailbox: alice@inside.example and so on."""
MESSAGE_SIZE_LIMIT = 100_000_000
START_SECONDS = 20.0
STOP_SECONDS = 10.0

MASTER = """\
smtp      inet  n - n - -    smtpd
pickup    unix  n - n 60 1   pickup
cleanup   unix  n - n - 0    cleanup
qmgr      unix  n - n 300 1  qmgr
rewrite   unix  - - n - -    trivial-rewrite
bounce    unix  - - n - 0    bounce
defer     unix  - - n - 0    bounce
trace     unix  - - n - 0    bounce
verify    unix  - - n - 1    verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - -    proxymap
proxywrite unix - - n - 1    proxymap
smtp      unix  - - n - -    smtp
relay     unix  - - n - -    smtp
showq     unix  n - n - -    showq
error     unix  - - n - -    error
retry     unix  - - n - -    error
discard   unix  - - n - -    discard
local     unix  - n n - -    local
virtual   unix  - n n - -    virtual
tlsmgr    unix  - - n 1000? 1 tlsmgr
lmtp      unix  - - n - -    lmtp
anvil     unix  - - n - 1    anvil
scache    unix  - - n - 1    scache
postlog   unix-dgram n - n - 1 postlogd
"""
"""Debian's master.cf without chroot, and with postlogd, which logs where no syslog is."""


@dataclass(frozen=True)
class Postfix:
    """A mail server in a namespace of the lab, running or not.

    lab       must be up before start()
    host      where it runs; None: the lab's server
    settings  parameters of main.cf that are to differ, by name
    """

    lab: Lab
    host: Host | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    progress: roots.Progress = lambda line: None

    @property
    def home(self) -> Host:
        return self.host or self.lab.server

    @property
    def folder(self) -> Path:
        """Where all of it lies: etc, queue, data, mail and maillog."""
        return self.lab.run_dir / f"postfix-{self.home.name.removeprefix(self.lab.prefix + '-')}"

    @property
    def name(self) -> str:
        """What it calls itself in banner and EHLO reply."""
        return f"{'mail' if self.home == self.lab.server else 'mail2'}.{DOMAIN}"

    @property
    def log(self) -> Path:
        return self.folder / "maillog"

    def start(self) -> None:
        """Start it and wait until it greets on both addresses. Running already is fine. LabError quotes its log."""
        if self.pid() is None:
            root = roots.fetch("postfix", self.progress)
            if not (self.folder / "etc/postfix/main.cf").exists():
                self._configure(root)
            done = self._command(root, ["postfix", "start"])
            if done.returncode != 0:
                raise LabError(f"Postfix did not start: {done.stderr.strip()}\n{self._last_words()}")
        for address in (self.home.ipv4, self.home.ipv6):
            self._await_greeting(address)

    def stop(self) -> None:
        """End it and wait until it is gone. Not running is fine. Mailboxes stay until the lab goes down."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while self.pid() is not None:
            if time.monotonic() > deadline:
                raise LabError(f"Postfix (process {pid}) did not end within {STOP_SECONDS:.0f} s of SIGTERM")
            time.sleep(0.02)

    def pid(self) -> int | None:
        """The process number of its master; None where it does not run. A number left in the file by a master that is
        gone may be anybody's by now: only a process inside the server's namespace counts."""
        try:
            pid = int((self.folder / "queue/pid/master.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if self.home.exists() and pid in self.home.pids() else None

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run one of Postfix's own commands (postqueue, sendmail, postcat) for this instance; see Host.run()."""
        root = roots.fetch("postfix", self.progress)
        return self.home.run(root.argv(["env", f"MAIL_CONFIG={self.folder}/etc/postfix", *argv], self.folder / "etc"),
                             **options)

    def mailbox(self, user: str = "alice") -> Path:
        """The maildir of a user."""
        return self.folder / "mail" / user

    def messages(self, user: str = "alice") -> list[Path]:
        """What lies in a user's mailbox, oldest first."""
        new = self.mailbox(user) / "new"
        return sorted(new.iterdir(), key=lambda path: path.stat().st_mtime_ns) if new.is_dir() else []

    def await_messages(self, count: int, user: str = "alice", seconds: float = 20.0) -> list[Path]:
        """Wait until a mailbox holds that many messages, and return them. LabError after that many seconds."""
        deadline = time.monotonic() + seconds
        while len(found := self.messages(user)) < count:
            if time.monotonic() > deadline:
                raise LabError(f"{user}'s mailbox holds {len(found)} of {count} messages after {seconds:.0f} s\n"
                               f"{self._last_words()}")
            time.sleep(0.02)
        return found

    def _configure(self, root: roots.Root) -> None:
        """Write all that it needs, main.cf last: where that is, the rest is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("queue", "data", "mail"):
            (self.folder / name).mkdir(parents=True)
        root.write_etc(self.folder / "etc")
        owner = root.users()["postfix"]
        for name in ("data", "mail"):
            os.chown(self.folder / name, owner, owner)
        boxes = "".join(f"{user}@{DOMAIN} {user}/\n" for user in USERS)
        etc = self.folder / "etc/postfix"
        (etc / "mailboxes").write_text(boxes)
        (etc / "master.cf").write_text(MASTER)
        (etc / "main.cf").write_text("".join(f"{key} = {value}\n" for key, value in self._parameters(owner).items()))

    def _parameters(self, owner: int) -> dict[str, str]:
        parameters = {
            "compatibility_level": "3.6",
            "queue_directory": f"{self.folder}/queue",
            "data_directory": f"{self.folder}/data",
            "maillog_file": str(self.log),
            "maillog_file_prefixes": str(self.folder),
            "myhostname": self.name,
            "mydestination": "",
            "inet_interfaces": f"{self.home.ipv4}, [{self.home.ipv6}]",
            "inet_protocols": "all",
            "mynetworks": "10.10.10.0/24, [fd00:10::]/64",
            "disable_dns_lookups": "yes",
            "smtpd_peername_lookup": "no",
            "smtpd_client_connection_count_limit": "0",
            "alias_maps": "",
            "alias_database": "",
            "virtual_mailbox_domains": DOMAIN,
            "virtual_mailbox_base": f"{self.folder}/mail",
            "virtual_mailbox_maps": "texthash:/etc/postfix/mailboxes",
            "virtual_uid_maps": f"static:{owner}",
            "virtual_gid_maps": f"static:{owner}",
            "virtual_mailbox_limit": "0",
            "mailbox_size_limit": "0",
            "message_size_limit": str(MESSAGE_SIZE_LIMIT),
        }
        return parameters | dict(self.settings)

    def _command(self, root: roots.Root, argv: Sequence[str]) -> subprocess.CompletedProcess[Any]:
        # Whoever runs us may have MAIL_CONFIG set for a Postfix of the machine.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MAIL_")}
        return self.home.run(root.argv(argv, self.folder / "etc"), check=False, env=environment)

    def _await_greeting(self, address: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with self.home.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as connection:
                    connection.settimeout(START_SECONDS)
                    connection.connect((address, 25))
                    if connection.recv(512).startswith(b"220 "):
                        connection.sendall(b"QUIT\r\n")
                        return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise LabError(f"Postfix does not greet on {address} port 25\n{self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        if not self.log.exists():
            return "it has logged nothing"
        return "its log ends:\n  " + "\n  ".join(self.log.read_text(errors="replace").splitlines()[-5:])
