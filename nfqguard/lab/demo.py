"""The demonstration: a real message and a dialogue through a gateway that runs nfqguard, everything compared.

Each step looks at what really came out: the mailbox, what the server's interface received, what the client read, the
events. Printing is for the reader; the exit status is for whoever wants to rely on it.
"""
from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nfqguard.lab import roots, script, side_by_side
from nfqguard.lab.checks import Checks
from nfqguard.lab.dialogue import Dialogue
from nfqguard.lab.guard import Guard
from nfqguard.lab.postfix import Postfix
from nfqguard.lab.recorder import Conversation, Recorder
from nfqguard.lab.roots import RootError
from nfqguard.lab.topology import Lab, LabError
from nfqguard.report.readable import readable

POLICY = "asa"
"""Of the presets the one whose masks are seen in all three places: commands, greeting, EHLO reply."""
WIDTH = 120
"""Columns where the output is no terminal."""
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal asks for the end."""


class Demo:
    """One demonstration in a lab of its own, which is made and taken down by run()."""

    def __init__(self, lab: Lab, console: Console | None = None) -> None:
        self.lab = lab
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console.width = WIDTH
        self.checks = Checks()
        self.postfix = Postfix(lab, progress=self._detail)
        self.guard = Guard(lab, POLICY)

    def run(self) -> bool:
        """Show everything, clean up whatever happens, print the verdict. Returns whether all was as it must be."""
        ended = ""
        try:
            with _interruptible():
                try:
                    self._show()
                finally:
                    _ignore_interruptions()
                    self._step("Cleaning up")
                    self.lab.down()
        except (LabError, RootError, OSError) as error:
            ended = str(error)
        except Interrupted as error:
            ended = f"ended by {error}"
        self._gone()
        return self._verdict(ended)

    def _show(self) -> None:
        self._step("Fetching Postfix and swaks into private roots (once; nothing is installed)")
        swaks = roots.fetch("swaks", self._detail)
        roots.fetch("postfix", self._detail)
        self._step("Setting up three hosts in network namespaces: client, gateway, mail server")
        self.lab.down()
        self.lab.up()
        self.postfix.start()
        self._detail(f"Postfix answers on {self.lab.server.ipv4}; outside it is {self.lab.public_ipv4}")
        before = self._deploy()
        for address in (self.lab.public_ipv4, self.lab.public_ipv6):
            self._message(swaks, address)
        self._show_mailbox()
        self._dialogue()
        self._stop()
        self._events()
        self._counters()
        self._step("Removing the deployment")
        self.guard.rules("remove")
        self.checks.equal("Netfilter of the gateway after `rules remove`", self.guard.steps(), before)

    def _deploy(self) -> list[str]:
        self._step(f"Deploying nfqguard on the gateway, policy {POLICY}")
        self.guard.write_config()
        before = self.guard.steps()
        for action in ("apply", "check"):
            for line in self.guard.rules(action).splitlines():
                self._detail(f"nfqguard rules {action}: {line}")
        self.guard.start()
        self._detail("nfqguard run: the queue is bound")
        return before

    def _message(self, swaks: roots.Root, address: str) -> None:
        self._step(f"Sending a real message by swaks from the client to {address}")
        file = self.guard.folder / "message"
        file.write_text(script.MESSAGE.removesuffix("\n"))      # swaks ends the last line itself
        argv = ["swaks", "--server", address, "--helo", "client.outside.example", "--from", "carol@outside.example",
                "--to", "alice@inside.example", "--data", f"@{file}", "--timeout", "20", "--hide-informational"]
        sent = self.lab.client.run(swaks.argv(argv), check=False)
        said = [line for line in str(sent.stdout).splitlines() if line.lstrip().startswith(("<-", "<**"))]
        self.checks.true(f"swaks to {address}", sent.returncode == 0, f"status {sent.returncode}: {sent.stderr} {said}")
        for line in said[:1] + said[-2:]:
            self._detail(line.strip())

    def _show_mailbox(self) -> None:
        wanted = script.MESSAGE.encode()
        for number, path in enumerate(self.postfix.await_messages(2), 1):
            stored = path.read_bytes()
            found = stored[-len(wanted):]
            sums = [hashlib.sha256(octets).hexdigest() for octets in (wanted, found)]
            self.checks.equal(f"SHA-256 of message {number} in the mailbox", sums[1], sums[0])
            lines = stored.decode(errors="replace").splitlines()
            shown = [*lines[:lines.index("EXPN root") + 4], f"... ({len(lines)} lines)"]
            self.console.print(Panel(Text("\n".join(shown)), title=f"alice's mailbox, message {number} of 2",
                                     subtitle=f"sent and stored: SHA-256 {sums[0][:16]}, {sums[1][:16]}", width=100))

    def _dialogue(self) -> None:
        self._step("A dialogue of permitted and forbidden commands, octet for octet")
        with Recorder(self.lab.server) as recorder:
            with Dialogue(self.lab.client, self.lab.public_ipv4) as client:
                port = client.port
                replies = [client.reply(), *self._say(client)]
                client.read_to_end()
            seen = recorder.wait(port)
        self._compare_commands(seen)
        self._compare_replies(seen, bytes(client.received), replies)
        self.postfix.await_messages(1, "bob")

    def _say(self, client: Dialogue) -> Iterator[bytes]:
        for turn in script.DIALOGUE:
            (client.type if turn.typed else client.send)(turn.sent)
            for wanted in turn.replies:
                reply = client.reply()
                self.checks.true(f"reply to {turn.sent!r}", reply.startswith(wanted), f"{reply!r} and not {wanted!r}")
                yield reply

    def _compare_commands(self, seen: Conversation) -> None:
        received = bytes(seen.to_server.octets)
        rows = []
        for turn in script.DIALOGUE:
            part, received = received[:len(turn.sent)], received[len(turn.sent):]
            self.checks.equal(f"what the server received for {turn.sent!r}", part, turn.received)
            rows.append((turn.note, turn.sent, part))
        self.checks.equal("what the server received beyond the dialogue", received, b"")
        self.checks.equal("octets that came to the server twice, differing", seen.to_server.conflicts, 0)
        self.console.print(side_by_side.table(
            "What the client sent, and what the server received", ("", "the client sent", "the server received"), rows))

    def _compare_replies(self, seen: Conversation, read: bytes, replies: list[bytes]) -> None:
        said = bytes(seen.to_client.octets)
        self.checks.equal("what the client read of all that the server said", read, script.client_view(said))
        self.checks.equal("the greeting as the client read it", replies[0], script.GREETING_MASKED)
        masked = set(script.KEYWORDS_MASKED)
        self.checks.true("the server's reply to EHLO", masked <= set(said.splitlines(keepends=True)),
                         f"{masked} are not all in it, so masking them cannot be shown: {said!r}")
        rows, place = [], 0
        for note, reply in zip(("greeting", "reply to EHLO", "reply to the masked EXPN"), replies, strict=False):
            rows.append((note, said[place:place + len(reply)], reply))
            place += len(reply)
        self.console.print(side_by_side.table(
            "What the server said, and what the client read", ("", "the server said", "the client read"), rows))

    def _stop(self) -> None:
        self._step("Stopping nfqguard")
        self.checks.equal("exit status of nfqguard", self.guard.stop(), 0)
        lines = str(self.lab.server.run(["cat", "/proc/net/snmp"]).stdout).splitlines()
        names, values = (line.split()[1:] for line in lines if line.startswith("Tcp:"))
        errors = dict(zip(names, values, strict=True))["InCsumErrors"]
        self.checks.equal("segments with a wrong checksum that reached the server (TcpInCsumErrors)", errors, "0")

    def _events(self) -> None:
        self._step("Events (EVE JSON), as `nfqguard events` shows them")
        records = self.guard.events()
        for record in records:
            if record["event_type"] != "stats":
                self.console.print(Text.assemble(*readable(record)), soft_wrap=True, highlight=False)
        smtp = [record for record in records if record["event_type"] == "smtp"]
        told = [_told(record) for record in smtp if record["nfqguard"]["action"] == "mask"]
        greeting = ("server", "mask-banner", script.GREETING.decode().strip())
        keywords = [("server", "ehlo-reply-parameter", line.decode().strip()) for line in script.KEYWORDS_MASKED]
        commands = [("client", "cmd verb", line) for turn in script.DIALOGUE for line in turn.masked]
        self.checks.equal("masks told", told, [greeting, *keywords] * 3 + commands)
        answers = [record["nfqguard"]["code"] for record in smtp if record["nfqguard"]["action"] == "answer"]
        self.checks.equal("replies to masked commands", answers, [500] * len(commands))
        logged = {record["nfqguard"]["match"] for record in smtp if record["nfqguard"]["action"] == "log"}
        self.checks.equal("matches told", logged, {"pipelined command"})
        self.checks.equal("events that are no masks and no flows",
                          {record["event_type"] for record in records}, {"smtp", "flow", "stats"})
        self.checks.equal("records of flows", len([each for each in records if each["event_type"] == "flow"]), 3)

    def _counters(self) -> None:
        self._step("Counters")
        stats = next(record["stats"] for record in reversed(self.guard.events()) if record["event_type"] == "stats")
        shown = Table(box=None, show_header=False)
        for name, value in stats.items():
            if isinstance(value, int) and value:
                shown.add_row(name, str(value))
        self.console.print(shown)
        wanted = {
            "flows-opened": 3, "messages": 3, "banners-masked": 3, "keywords-masked": 3 * len(script.KEYWORDS_MASKED),
            "commands-masked": sum(len(turn.masked) for turn in script.DIALOGUE),
            "dropped": 0, "resets": 0, "events-lost": 0, "edits-lost": 0, "verdicts-lost": 0,
        }
        self.checks.equal("counters", {name: stats.get(name) for name in wanted}, wanted)
        self.checks.equal("packets dropped by the kernel's queue", stats["kernel"]["dropped"], 0)

    def _gone(self) -> None:
        hosts = [host.name for host in self.lab.hosts if host.exists()]
        self.checks.equal("namespaces left behind", hosts, [])
        self.checks.equal("run directory left behind", self.lab.run_dir.exists(), False)

    def _verdict(self, ended: str) -> bool:
        good = not self.checks.failed and not ended
        for line in self.checks.failed:
            self.console.print(Text(f"NOT AS IT MUST BE: {line}", style="bold red"))
        if ended:
            self.console.print(Text(f"Ended early: {ended}", style="bold red"))
        if good:
            line = f"DEMO PASSED: all {self.checks.done} checks were as they must be, and nothing was left behind."
        else:
            line = (f"DEMO FAILED: {len(self.checks.failed)} of {self.checks.done} checks were not as they must be"
                    f"{', and it ended early' if ended else ''}.")
        self.console.print(Text(line, style="bold green" if good else "bold red"))
        return good

    def _step(self, text: str) -> None:
        self.console.print(Text(f"\n==> {text}", style="bold cyan"))

    def _detail(self, text: str) -> None:
        self.console.print(Text(f"    {text}"), soft_wrap=True)


def _told(record: dict[str, Any]) -> tuple[str, str, str]:
    ours = record["nfqguard"]
    return ours["direction"], ours.get("match", ours["action"]), ours.get("text", "")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Within, the signals that ask for the end raise Interrupted, so that all is cleaned up on the way out."""
    def interrupt(number: int, _: object) -> None:
        _ignore_interruptions()
        raise Interrupted(signal.Signals(number).name)

    before = {number: signal.signal(number, interrupt) for number in INTERRUPTIONS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_interruptions() -> None:
    """Cleaning up is not interrupted."""
    for number in INTERRUPTIONS:
        signal.signal(number, signal.SIG_IGN)
