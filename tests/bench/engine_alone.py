"""`python -m tests.bench.engine_alone`: what the engine itself costs, without the kernel, against memcpy().

Two figures for each preset. Message data: a session delivers well-formed messages (header fields, text, base64 parts in
lines of 76) until its packets fill a working set larger than the processor's caches; GB/s of message data through the
engine, and the same as a ratio to memcpy() of just these octets elsewhere, in turn with it. Commands: nanoseconds for a
packet with a short command or its reply, beside those for only parsing it and summing its checksum.

Exit status: 0 measured; 1 a packet did not pass as it should, or the program cannot be built; 2 wrong arguments.
"""
from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from statistics import median
from typing import Any

import click
from cffi import FFI
from rich.console import Console
from rich.table import Table

from nfqguard.engine import Engine, PacketFlag, Policy, Settings, ffi, lib
from nfqguard.policy.compile import compile_policy
from nfqguard.policy.load import load_preset

from .machine import describe, line
from .programs import BUILD, CHECKOUT, SOURCES, ProgramError

BORDER = FFI()
BORDER.cdef("""
struct alone;
struct alone *alone_new(uintptr_t packet, uintptr_t tick, uintptr_t engine, uint32_t room, size_t octets,
                        uint32_t flags);
void alone_free(struct alone *alone);
bool alone_packet(struct alone *alone, uint32_t side, uint8_t flags, const uint8_t *payload, uint32_t len);
bool alone_say(struct alone *alone, uint32_t side, const uint8_t *octets, uint32_t len, uint32_t cut, uint32_t every);
uint32_t alone_count(const struct alone *alone);
uint64_t alone_octets(const struct alone *alone, uint32_t from, uint32_t to, uint32_t side);
void alone_restore(struct alone *alone);
uint64_t alone_run(struct alone *alone, uint32_t from, uint32_t to);
const char *alone_error(const struct alone *alone);
uint64_t alone_copy(struct alone *alone, uint32_t from, uint32_t to);
uint64_t alone_sum(struct alone *alone, uint32_t from, uint32_t to);
""")
FLAGS = ("-O3", "-std=gnu11", "-Wall", "-Wextra", "-fno-strict-aliasing", "-shared", "-fPIC")
"""As the engine's own; see csrc/build_engine.py."""

CLIENT, SERVER = 0, 1
FIN, SYN, ACK = 1, 2, 16
WHOLE = 1 << 16
SEGMENT = 1448
GSO = 45 * SEGMENT
MESSAGE_OCTETS = 4 << 20
PER_SESSION = 4
"""Messages: together below the 20,000,000 octets that some presets grant a session."""
PRESETS = ("ios-smtp", "ios-esmtp", "mailguard", "asa", "modern")
EHLO = (b"250-mail.example.net\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n"
        b"250-STARTTLS\r\n250 DSN\r\n")
HELLOS = {
    True: ((CLIENT, b"EHLO client.example.org\r\n"), (SERVER, EHLO)),
    False: ((CLIENT, b"HELO client.example.org\r\n"), (SERVER, b"250 mail.example.net\r\n")),
}
"""What a client says that knows the policy: does it let EHLO pass?"""
ENVELOPE = (
    (CLIENT, b"MAIL FROM:<joe@example.org>\r\n"), (SERVER, b"250 2.1.0 Ok\r\n"),
    (CLIENT, b"RCPT TO:<ann@example.net>\r\n"), (SERVER, b"250 2.1.5 Ok\r\n"),
)


class RunError(RuntimeError):
    """A packet did not pass as well-formed mail passes, so there is no figure."""


@dataclass(frozen=True)
class Cut:
    """How message data is cut into packets. `every`: packets that one acknowledgement answers. `flags`: what is known
    of their checksums."""

    name: str
    octets: int
    every: int
    flags: PacketFlag


CUTS = (
    Cut("GSO, checksum known", GSO, 1, PacketFlag.CSUM_VERIFIED),
    Cut("1448, checksum known", SEGMENT, 2, PacketFlag.CSUM_VERIFIED),
    Cut("GSO, checksum summed", GSO, 1, PacketFlag.NONE),
    Cut("1448, checksum summed", SEGMENT, 2, PacketFlag.NONE),
)


@dataclass(frozen=True)
class Figure:
    """Medians with least and most: of the engine, of its yardstick, and of the first by the second, round for round."""

    preset: str
    load: str
    unit: str
    engine: tuple[float, float, float]
    yardstick: tuple[float, float, float]
    ratio: tuple[float, float, float]
    rounds: int


# ---- what is said

def message(octets: int) -> bytes:
    """A message of about so many octets as it goes over the wire, its end included."""
    chance = random.Random(1)
    made = EmailMessage(policy=SMTP)
    made["From"], made["To"] = "Joe <joe@example.org>", "Ann <ann@example.net>"
    made["Subject"], made["Date"] = "The figures of last week", "Mon, 02 Jun 2025 10:00:00 +0000"
    made["Message-ID"] = "<1@example.org>"
    made.set_content("Ann,\n\nthe figures are attached.\n\n" + "All of them are as we thought they would be. \n" * 20)
    for number in range(4):
        made.add_attachment(chance.randbytes(octets // 4 * 57 // 78), "application", "octet-stream",
                            filename=f"part{number}.bin")
    text = made.as_bytes()
    assert b"\n." not in text and max(map(len, text.split(b"\r\n"))) <= 998
    return text + b".\r\n"


class Session:
    """Connections laid out in memory, and the engine that they go through.

    start, end  numbers of the packets that count
    runs        how often it went through
    """

    def __init__(self, alone: Any, pointer: Any, engine: Engine, extended: bool) -> None:
        self._alone = alone
        self._pointer = pointer
        self._engine = engine
        self._hello = HELLOS[extended]
        self.start = self.end = self.runs = 0

    def say(self, side: int, octets: bytes, cut: int = WHOLE, every: int = 0) -> None:
        if not self._alone.alone_say(self._pointer, side, octets, len(octets), cut, every):
            raise RunError("the session does not fit the memory that was meant for it")

    def packet(self, side: int, flags: int) -> None:
        if not self._alone.alone_packet(self._pointer, side, flags, b"", 0):
            raise RunError("the session does not fit the memory that was meant for it")

    def begin(self) -> None:
        """A connection, and a session as far as the reply to EHLO."""
        for side, flags in ((CLIENT, SYN), (SERVER, SYN | ACK), (CLIENT, ACK)):
            self.packet(side, flags)
        for side, octets in ((SERVER, b"220 mail.example.net ESMTP ready\r\n"), *self._hello):
            self.say(side, octets)

    def finish(self) -> None:
        self.say(CLIENT, b"QUIT\r\n")
        self.say(SERVER, b"221 2.0.0 Bye\r\n")
        for side, flags in ((CLIENT, FIN | ACK), (SERVER, FIN | ACK), (CLIENT, ACK)):
            self.packet(side, flags)

    def lay_out(self, loads: Sequence[Callable[[Session], None]]) -> None:
        """A session around each load. What the first and the last have around them does not count."""
        for load in loads:
            self.begin()
            self.start = self.start or self.count
            load(self)
            self.end = self.count
            self.finish()

    @property
    def count(self) -> int:
        return int(self._alone.alone_count(self._pointer))

    @property
    def octets(self) -> int:
        """What the client says in the packets that count."""
        return int(self._alone.alone_octets(self._pointer, self.start, self.end, CLIENT))

    def run(self) -> int:
        """All of it through the engine: nanoseconds for the packets that count. Raises RunError."""
        self._alone.alone_restore(self._pointer)
        times = [self._part(*part) for part in ((0, self.start), (self.start, self.end), (self.end, self.count))]
        self.runs += 1
        return times[1]

    def counter(self, name: str) -> int:
        """One of the engine's counters."""
        return self._engine.counters()[name]

    def check(self, messages: int, commands: int) -> None:
        """Each run was heard as so many messages and commands, none of them masked. Raises RunError."""
        found = self.counter("messages"), self.counter("commands"), self.counter("commands-masked")
        wanted = messages * self.runs, commands * self.runs, 0
        if found != wanted:
            raise RunError(f"the engine heard (messages, commands, masked) {found}, and {wanted} were said")

    def _part(self, first: int, last: int) -> int:
        took = int(self._alone.alone_run(self._pointer, first, last))
        if not took:
            raise RunError(BORDER.string(self._alone.alone_error(self._pointer)).decode())
        return took

    def copy(self) -> int:
        return int(self._alone.alone_copy(self._pointer, self.start, self.end))

    def sum(self) -> int:
        self._alone.alone_restore(self._pointer)
        took = int(self._alone.alone_sum(self._pointer, self.start, self.end))
        if not took:
            raise RunError("a packet was laid out wrongly")
        return took


# ---- the program

def program() -> Any:
    """engine_alone.c as a loaded library. It brings packet.c for the yardstick; the engine itself is the one in use."""
    sources = [SOURCES / "engine_alone.c", CHECKOUT / "csrc" / "packet.c"]
    made = BUILD / "engine_alone.so"
    BUILD.mkdir(parents=True, exist_ok=True)
    command = ["gcc", *FLAGS, f"-I{CHECKOUT / 'csrc'}", *map(str, sources), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProgramError(done.stderr)
    return BORDER.dlopen(str(made))


def address(name: str) -> int:
    """Where a function of the engine's border is."""
    return int(ffi.cast("uintptr_t", ffi.addressof(lib, name)))


@contextmanager
def session(alone: Any, preset: str, packets: int, octets: int, flags: PacketFlag) -> Iterator[Session]:
    """Room for so many packets, whose payload has so many octets, through an engine of its own."""
    configuration = load_preset(preset)
    spec = compile_policy(preset, configuration.policies[preset])
    engine = Engine(Settings.default(hash_key=bytes(16)), Policy(spec))
    room = octets + packets * 512
    pointer = alone.alone_new(address("nq_engine_packet"), address("nq_engine_tick"),
                              int(ffi.cast("uintptr_t", engine.pointer)), packets, room, int(flags))
    if pointer == BORDER.NULL:
        raise RunError(f"no memory for twice {room} octets of packets")
    try:
        yield Session(alone, pointer, engine, "EHLO" in spec.verbs or not spec.mask_verbs)
    finally:
        alone.alone_free(pointer)
        engine.close()


# ---- the measurements

def spread(values: list[float]) -> tuple[float, float, float]:
    return median(values), min(values), max(values)


def measure(rounds: int, engine: Callable[[], int], yardstick: Callable[[], int], scale: Callable[[int], float],
            names: tuple[str, str, str]) -> Figure:
    """In turn, `rounds` times, after one round that warms up. `scale`: of nanoseconds, the figure."""
    pairs = [(scale(yardstick()), scale(engine())) for _ in range(rounds + 1)][1:]
    return Figure(*names, spread([pair[1] for pair in pairs]), spread([pair[0] for pair in pairs]),
                  spread([pair[1] / pair[0] for pair in pairs]), rounds)


def message_data(alone: Any, preset: str, cut: Cut, octets: int, rounds: int) -> Figure:
    """GB/s of message data, commands between the messages included, against memcpy()."""
    body = message(min(MESSAGE_OCTETS, octets // PER_SESSION))
    sessions = -(-octets // (PER_SESSION * len(body)))
    messages = sessions * PER_SESSION

    def load(laid: Session) -> None:
        for _ in range(PER_SESSION):
            for side, said in (*ENVELOPE, (CLIENT, b"DATA\r\n"), (SERVER, b"354 Go on\r\n")):
                laid.say(side, said)
            laid.say(CLIENT, body, cut.octets, cut.every)
            laid.say(SERVER, b"250 2.0.0 Ok: queued\r\n")

    packets = messages * (2 * len(body) // cut.octets + 40)
    with session(alone, preset, packets, messages * (len(body) + 1024) + 4096, cut.flags) as laid:
        laid.lay_out([load] * sessions)
        said = laid.octets
        names = preset, f"data, {cut.name}", "GB/s"
        figure = measure(rounds, laid.run, laid.copy, lambda took: said / took, names)
        laid.check(messages, 3 * messages + 2 * sessions)
        return figure


def commands(alone: Any, preset: str, count: int, rounds: int) -> Figure:
    """Nanoseconds a packet of short commands and replies, against parsing and checksumming them."""

    def load(laid: Session) -> None:
        for _ in range(count // 6):
            for side, said in (*ENVELOPE, (CLIENT, b"RSET\r\n"), (SERVER, b"250 2.0.0 Ok\r\n")):
                laid.say(side, said)

    with session(alone, preset, count + 20, count * 64 + 4096, PacketFlag.NONE) as laid:
        laid.lay_out([load])
        packets = laid.end - laid.start
        names = preset, "commands", "ns a packet"
        figure = measure(rounds, laid.run, laid.sum, lambda took: took / packets, names)
        laid.check(0, packets // 2 + 2)
        return figure


def measured(presets: tuple[str, ...], octets: int, rounds: int, console: Console) -> Iterator[Figure]:
    alone = program()
    for preset in presets:
        for cut in CUTS:
            yield message_data(alone, preset, cut, octets, rounds)
            console.print(f"{preset}: {cut.name}: done")
        yield commands(alone, preset, max(octets // 640, 600), rounds)
        console.print(f"{preset}: commands: done")


def shipped() -> tuple[str, ...]:
    folder = CHECKOUT / "nfqguard" / "policy" / "presets"
    return tuple(name for name in PRESETS if (folder / f"{name}.toml").exists())


def table(figures: list[Figure], megabytes: int) -> Table:
    made = Table(title=f"The engine alone, {megabytes} MiB of message data; median (least to most)")
    for name in ("preset", "load"):
        made.add_column(name, no_wrap=True)
    for name in ("engine", "memcpy, or parse and sum", "ratio"):
        made.add_column(name, justify="right", no_wrap=True)
    for figure in figures:
        cells = [f"{middle:.3g} ({least:.3g} to {most:.3g})"
                 for middle, least, most in (figure.engine, figure.yardstick, figure.ratio)]
        made.add_row(figure.preset, figure.load, f"{cells[0]} {figure.unit}", *cells[1:])
    return made


@click.command()
@click.option("--preset", "presets", type=click.Choice(PRESETS), multiple=True, help="Only this; repeatable.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=7, show_default=True)
@click.option("--mebibytes", type=click.IntRange(1, 4096), default=64, show_default=True,
              help="Of message data; below 64 it stays in caches, and the figures mean little.")
@click.option("--output", type=click.Path(path_type=Path), default=BUILD / "engine_alone.json", help="Figures as JSON.")
def main(presets: tuple[str, ...], rounds: int, mebibytes: int, output: Path) -> None:
    """Measure the engine without the kernel: message data against memcpy(), commands against parsing alone."""
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 130)
    machine = describe()
    console.print(line(machine))
    try:
        figures = list(measured(presets or shipped(), mebibytes << 20, rounds, console))
    except (RunError, ProgramError) as error:
        console.print(f"cannot measure: {error}")
        sys.exit(1)
    console.print(table(figures, mebibytes))
    output.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine, "mebibytes": mebibytes, "figures": [asdict(figure) for figure in figures]}
    output.write_text(json.dumps(found, indent=2) + "\n")
    console.print(f"the same as JSON: {output}")


if __name__ == "__main__":
    main(prog_name="python -m tests.bench.engine_alone")
