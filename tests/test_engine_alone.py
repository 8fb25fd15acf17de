"""The benchmark of the engine alone: what it counts has passed as mail passes, and else there is no figure."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.engine_alone import (
    CLIENT,
    CUTS,
    SERVER,
    Cut,
    RunError,
    Session,
    commands,
    message,
    message_data,
    program,
    shipped,
)
from bench.engine_alone import session as laid_out
from bench.programs import CHECKOUT

from nfqguard.engine import PacketFlag

OCTETS = 1 << 20


def test_the_message_is_well_formed() -> None:
    text = message(OCTETS)
    lines = text.split(b"\r\n")
    assert 0.9 * OCTETS < len(text) < 1.1 * OCTETS
    assert lines[-2:] == [b".", b""] and not any(line.startswith(b".") for line in lines[:-2])
    assert text.count(b"\n") == text.count(b"\r") == len(lines) - 1
    assert sum(len(line) == 76 for line in lines) > 0.95 * len(lines)
    assert b"multipart/mixed" in text and text.count(b"Content-Transfer-Encoding: base64") == 4


@pytest.mark.parametrize("cut", CUTS, ids=[cut.name for cut in CUTS])
@pytest.mark.parametrize("preset", shipped())
def test_message_data_has_a_figure(preset: str, cut: Cut) -> None:
    figure = message_data(program(), preset, cut, OCTETS, rounds=3)
    assert (figure.preset, figure.unit, figure.rounds) == (preset, "GB/s", 3)
    for middle, least, most in (figure.engine, figure.yardstick, figure.ratio):
        assert 0 < least <= middle <= most
    assert figure.engine[1] / figure.yardstick[2] <= figure.ratio[0] <= figure.engine[2] / figure.yardstick[1]


def test_commands_have_a_figure() -> None:
    figure = commands(program(), "ios-esmtp", 600, rounds=3)
    assert figure.unit == "ns a packet" and 0 < figure.yardstick[0] < figure.engine[0]


def test_what_is_masked_or_dropped_gets_no_figure() -> None:
    with laid_out(program(), "asa", 100, 1 << 16, PacketFlag.NONE) as laid:
        laid.lay_out([lambda session: session.say(CLIENT, b"TURN\r\n")])
        laid.run()
        with pytest.raises(RunError, match=r"\(0, 3, 1\), and \(0, 3, 0\)"):
            laid.check(0, 3)
    with laid_out(program(), "asa", 100, 1 << 16, PacketFlag.NONE) as laid:
        laid.lay_out([lambda session: session.say(CLIENT, b"TURN " + b"x" * 400 + b"\r\n")])
        with pytest.raises(RunError, match="407 octets was edited"):
            laid.run()


def test_each_run_is_like_the_first() -> None:
    """What the engine edited in place is as it was: replies are masked anew."""

    def load(session: Session) -> None:
        session.say(CLIENT, b"EHLO again\r\n")
        session.say(SERVER, b"250-mail\r\n250-STARTTLS\r\n250 XCLIENT\r\n")

    with laid_out(program(), "asa", 100, 1 << 16, PacketFlag.NONE) as laid:
        laid.lay_out([load, load])
        seen = []
        for _ in range(3):
            laid.run()
            seen.append(laid.counter("keywords-masked"))
        assert seen[0] > 0 and seen == [seen[0], 2 * seen[0], 3 * seen[0]]
        assert laid.counter("flows-opened") == 6


def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.engine_alone", "--preset", "asa", "--rounds", "1", "--mebibytes", "1",
         "--output", output], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert {"cpu", "cores", "kernel"} <= found["machine"].keys() and found["mebibytes"] == 1
    assert [figure["load"] for figure in found["figures"]] == [*(f"data, {cut.name}" for cut in CUTS), "commands"]
