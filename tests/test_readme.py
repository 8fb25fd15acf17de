"""README.md and ARCHITECTURE.md: their examples can be used, what they name is there, and what is there is named."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from nfqguard.policy.load import default_policy, load, load_preset, preset_names

ROOT = Path(__file__).resolve().parent.parent
README, ARCHITECTURE = (ROOT / name for name in ("README.md", "ARCHITECTURE.md"))
WITHOUT_A_ROW = {"__init__.py", "__main__.py"}


def examples() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_can_be_used_and_means_what_its_comments_say(tmp_path: Path) -> None:
    (example,) = examples()
    path = tmp_path / "nfqguard.toml"
    path.write_text(example)
    configuration = load(path)
    policies = configuration.policies
    done = {match.name: match for match in configuration.policy_in_force.matches}
    assert (done["auth-in-clear"].action, done["auth-in-clear"].match) == ("mask", "auth in clear")
    assert (done["executables"].action, done["executables"].dry_run) == ("reject", True)
    assert next(iter(done)) == "executables", "a new match comes before those inherited"
    assert done["long-body-line"].action == "none"
    assert policies["outgoing"].mask_banner == "none" and policies["trial"].dry_run
    assert [(one.name, one.exempt, one.policy) for one in configuration.classes] == [
        ("spam-filter", True, None), ("outgoing", False, "outgoing"), ("test-network", False, "trial")]


def test_the_first_deployment_writes_a_configuration_that_can_be_used(tmp_path: Path) -> None:
    (line,) = re.findall(r"^echo '(.*)' > /etc/nfqguard/nfqguard.toml$", README.read_text(), re.MULTILINE)
    path = tmp_path / "nfqguard.toml"
    path.write_text(line)
    assert load(path).policy == default_policy()


def test_every_preset_has_its_row_and_one_is_the_default() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)`( \(the default\))? \| .*\| .*\|$", README.read_text(), re.MULTILINE))
    presets = {name: rows[name] for name in preset_names()}
    assert [name for name, default in presets.items() if default] == [default_policy()]


def test_what_is_said_of_modern_and_mailguard_is_so() -> None:
    cells = dict(re.findall(r"^\| `(modern|mailguard)`[^|]*\|[^|]*\| ([^|]*) \|", README.read_text(), re.MULTILINE))
    for name, verbs in cells.items():
        assert set(verbs.split()) == set(load_preset(name).policies[name].verbs)
    modern = load_preset("modern").policies["modern"]
    assert f"{len(modern.ehlo_keywords)} keywords pass" in README.read_text()


@pytest.mark.parametrize("page", [README, ARCHITECTURE], ids=lambda page: page.name)
def test_every_page_that_is_linked_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert [link for link in links if not (ROOT / link).is_file()] == []


def named_files() -> set[str]:
    """What the tables of files name in backquotes, as the tail of a path: `policy/load.py`, `smtp_data.c`."""
    text = ARCHITECTURE.read_text()
    tables = text[text.index("## Files"):text.index("## Where we left")]
    return {name for name in re.findall(r"`([\w./*-]+)`", tables) if "." in name or "/" in name}


@pytest.mark.parametrize("folder", ["csrc", "nfqguard"])
def test_every_file_has_its_row(folder: str) -> None:
    """A row may name a file by its folder (`cli/*.py`), or, behind another, by its name alone."""
    named = named_files()
    folders = {name.removesuffix("/*.py") for name in named if name.endswith("/*.py")}
    missing = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".c", ".h", ".def", ".py") and path.name not in WITHOUT_A_ROW
        and path.parent.relative_to(ROOT / folder).as_posix() not in folders
        and not {path.name, path.relative_to(ROOT / folder).as_posix()} & named
    ]
    assert missing == []


def test_no_row_names_a_file_that_is_gone() -> None:
    there = [path.relative_to(ROOT).as_posix() for folder in ("csrc", "nfqguard", "tests", "docs")
             for path in (ROOT / folder).rglob("*")]
    gone = [name for name in named_files() if re.search(r"\.(c|h|def|py|md)$", name) and "*" not in name
            and not any(path == name or path.endswith(f"/{name}") for path in there) and not (ROOT / name).is_file()]
    assert gone == []
