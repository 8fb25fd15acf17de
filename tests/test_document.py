"""docs/inspection.md: its tables are those of the program, they leave nothing out, and its examples can be used."""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nfqguard.policy.criterion import CRITERIA
from nfqguard.policy.document import TABLES, rewritten
from nfqguard.policy.load import load, preset_names
from nfqguard.policy.match import ACTIONS, Match
from nfqguard.policy.model import Exceptions, Policy
from nfqguard.policy.traffic_class import TrafficClass

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/inspection.md"
REMAKE = "run: python -m nfqguard.policy.document docs/inspection.md"


def cells(name: str) -> list[list[str]]:
    """The rows of a table behind its head."""
    lines = TABLES[name]().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def first(name: str) -> set[str]:
    return {row[0].strip("`") for row in cells(name)}


def test_the_page_is_current():
    text = PAGE.read_text()
    assert set(re.findall(r"<!-- table ([a-z-]+) -->", text)) == set(TABLES), "the page has every table"
    assert rewritten(text) == text, REMAKE


def test_the_command_rewrites_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# mine\n<!-- table actions -->\nold\n<!-- end -->\nkept\n")
    subprocess.run([sys.executable, "-m", "nfqguard.policy.document", str(page)], check=True, cwd=ROOT, timeout=60)
    text = page.read_text()
    assert text.startswith("# mine\n<!-- table actions -->\n\n| action |") and text.endswith("<!-- end -->\nkept\n")
    assert "\nold\n" not in text
    assert rewritten(text) == text
    with pytest.raises(KeyError):
        rewritten("<!-- table nonsense -->\n<!-- end -->\n")


def test_no_match_action_or_key_is_left_out():
    assert first("matches") == first("presets-matches") == set(CRITERIA)
    assert first("actions") == set(ACTIONS)
    assert first("match-keys") == set(Match.spellings())
    assert first("class-keys") == set(TrafficClass.spellings())
    assert first("exceptions") == set(Exceptions.spellings())
    in_text = {"extends", "inspect", "exceptions", "matches", "verbs", "ehlo-keywords"}
    assert first("parameters") == set(Policy.spellings()) - in_text
    for key in in_text:
        assert f"`{key}`" in PAGE.read_text() or f"| {key} |" in PAGE.read_text()


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_whole_and_says_something(name):
    head = [cell.strip() for cell in TABLES[name]().splitlines()[0].split("|")[1:-1]]
    for row in cells(name):
        assert len(row) == len(head) and all(row), row
    if set(preset_names()) & set(head):
        assert set(preset_names()) <= set(head), "each preset has its column"


def test_what_modern_does_stands_in_the_table():
    rows = {row[0].strip("`"): row[-1] for row in cells("presets-matches")}
    assert rows["cmd RCPT count"] == "> 1000: reject, log (452 4.5.3 Too many recipients); > 100: log"
    assert rows["smuggling"] == "replace, log"
    assert rows["cmd verb"] == "-"


@pytest.mark.parametrize("number", range(2))
def test_the_examples_can_be_used(tmp_path, number):
    examples = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 2
    path = tmp_path / "nfqguard.toml"
    path.write_text(examples[number])
    configuration = load(path)
    if number == 0:
        done = {match.name: match.action for match in configuration.policy_in_force.matches}
        assert (done["auth-in-clear"], done["executables"], done["smuggling"]) == ("mask", "reject", "replace")
    else:
        assert [one.name for one in configuration.classes] == ["outgoing", "mail-gateways"]
