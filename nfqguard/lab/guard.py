"""nfqguard on the lab's gateway: deployed and run there as an operator would, by its own commands."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nfqguard.lab.topology import Lab, LabError

PACKAGE = Path(__file__).resolve().parents[1]
START_SECONDS = 15.0
STOP_SECONDS = 15.0


@dataclass
class Guard:
    """The deployment and the daemon on the gateway of a lab that is up.

    policy  the preset or policy in force
    extra   more of the configuration, TOML; goes before the tables that are written here
    """

    lab: Lab
    policy: str = "asa"
    extra: str = ""
    process: subprocess.Popen[Any] | None = field(default=None, init=False)

    @property
    def folder(self) -> Path:
        return self.lab.run_dir / "nfqguard"

    @property
    def config(self) -> Path:
        return self.folder / "nfqguard.toml"

    @property
    def events_file(self) -> Path:
        return self.folder / "eve.json"

    @property
    def log(self) -> Path:
        """What the daemon said."""
        return self.folder / "log"

    def write_config(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.config.write_text(f'policy = "{self.policy}"\n{self.extra}\n[events]\nfile = "{self.events_file}"\n')

    def rules(self, action: str) -> str:
        """`nfqguard rules apply`, `check` or `remove`; returns what it printed. LabError quotes what went wrong."""
        return self._command(["rules", action, "--config", str(self.config)])

    def steps(self) -> list[str]:
        """What is in the gateway's Netfilter, both families: its steps and its chains beyond the built-in ones, in
        order, each with its program and table. Counters are left out, and so are tables that hold nothing."""
        found = []
        for program in ("iptables-save", "ip6tables-save"):
            table = ""
            for line in str(self.lab.gateway.run([program]).stdout).splitlines():
                if line.startswith("*"):
                    table = line
                elif line.startswith("-A") or (line.startswith(":") and line.split()[1] == "-"):
                    found.append(f"{program} {table} {line.partition(' [')[0]}")
        return found

    def start(self) -> None:
        """Run the daemon and wait until its queue is bound. LabError quotes its log."""
        with self.log.open("ab") as log:
            self.process = self.lab.gateway.popen([*self._program(), "run", "--config", str(self.config)],
                                                  env=_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self.bound():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"nfqguard did not bind its queue:\n{self.log.read_text(errors='replace')}")
            time.sleep(0.02)

    def bound(self) -> bool:
        """Whether a process has bound a queue on the gateway."""
        # /proc/net is the namespace of the process; the thread's own is under thread-self.
        table = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")
        return bool(self.lab.gateway.call(lambda: table.read_text().strip() if table.exists() else ""))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the daemon by a signal and return its exit status, negative for a signal. LabError if it does not end."""
        if self.process is None:
            raise LabError("nfqguard was not started here")
        self.process.send_signal(number)
        try:
            return int(self.process.wait(STOP_SECONDS))
        except subprocess.TimeoutExpired:
            raise LabError(f"nfqguard did not end within {STOP_SECONDS:.0f} s of signal {number}") from None

    def events(self) -> list[dict[str, Any]]:
        """The EVE records so far."""
        if not self.events_file.exists():
            return []
        return [json.loads(line) for line in self.events_file.read_text().splitlines() if line]

    def _command(self, words: Sequence[str]) -> str:
        done = self.lab.gateway.run([*self._program(), *words], check=False, env=_environment())
        if done.returncode != 0:
            raise LabError(f"`nfqguard {' '.join(words)}` failed with status {done.returncode}: "
                           f"{(done.stderr or done.stdout).strip()}")
        return str(done.stdout)

    def _program(self) -> list[str]:
        return [sys.executable, "-m", "nfqguard"]


def _environment() -> dict[str, str]:
    """Ours, and the package found where this one was, from any folder."""
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
