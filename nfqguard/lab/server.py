"""What every mail server of the lab has: a folder of its own, a domain, users with mailboxes, and a greeting."""
from __future__ import annotations

import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

from nfqguard.lab import roots
from nfqguard.lab.topology import Host, Lab, LabError

DOMAIN = "inside.example"
USERS = ("alice", "bob", "postmaster")
"""Who has a mailbox: alice@inside.example and so on."""
PASSWORD = "open-sesame"
"""Of every user, where a server is `secure`."""
MESSAGE_SIZE_LIMIT = 100_000_000
START_SECONDS = 20.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class MailServer(ABC):
    """A mail server in a namespace of the lab, running or not.

    lab       must be up before start()
    host      where it runs; None: the lab's server
    settings  what is to differ from its configuration here, by name
    secure    offers STARTTLS with a certificate of its own, and AUTH for the users
    """

    lab: Lab
    host: Host | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    progress: roots.Progress = lambda line: None
    secure: bool = False
    root_name: ClassVar[str]
    """The private root its programs come from."""

    @property
    def home(self) -> Host:
        return self.host or self.lab.server

    @property
    def folder(self) -> Path:
        """Where all of it lies: etc, queue, mail and maillog."""
        return self.lab.run_dir / f"{self.root_name}-{self.home.name.removeprefix(self.lab.prefix + '-')}"

    @property
    def name(self) -> str:
        """What it calls itself in banner and EHLO reply."""
        return f"{'mail' if self.home == self.lab.server else 'mail2'}.{DOMAIN}"

    @property
    def log(self) -> Path:
        return self.folder / "maillog"

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    def root(self) -> roots.Root:
        return roots.fetch(self.root_name, self.progress)

    def start(self) -> None:
        """Start it and wait until it greets on both addresses. Running already is fine. LabError quotes its log."""
        self.configure()
        if self.pid() is None:
            done = self._begin()
            if done.returncode != 0:
                raise LabError(f"{self.root_name} did not start: {done.stderr.strip()}\n{self.last_words()}")
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
                raise LabError(f"{self.root_name} (process {pid}) did not end within {STOP_SECONDS:.0f} s of SIGTERM")
            time.sleep(0.02)

    def pid(self) -> int | None:
        """The process number of its master; None where it does not run. A number left in the file by a master that is
        gone may be anybody's by now: only a process inside the server's namespace counts."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if self.home.exists() and pid in self.home.pids() else None

    @abstractmethod
    def configure(self) -> None:
        """Write all that it needs, unless that was done."""

    @abstractmethod
    def _begin(self) -> CompletedProcess[Any]:
        """Bring it into the background."""

    def run(self, argv: Sequence[str], **options: Any) -> CompletedProcess[Any]:
        """Run one of its own commands for this instance; see Host.run()."""
        return self.home.run(self.root().argv(argv, self.folder / "etc"), **options)

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
                               f"{self.last_words()}")
            time.sleep(0.02)
        return found

    def last_words(self) -> str:
        """The end of its log, for people."""
        if not self.log.exists():
            return "it has logged nothing"
        return "its log ends:\n  " + "\n  ".join(self.log.read_text(errors="replace").splitlines()[-5:])

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
                raise LabError(f"{self.root_name} does not greet on {address} port 25\n{self.last_words()}")
            time.sleep(0.05)
