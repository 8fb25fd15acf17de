"""The rules of the house, for which ARCHITECTURE.md gives the reasons: who may import or call whom, how long a function
may be, what files are called and where they lie. A new module or C file needs its place in a table here first."""
from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import lizard
import pytest
import sanitized

ROOT = sanitized.ROOT
LONGEST = 80
MEDIAN = 15


def tracked() -> list[str]:
    """Files that git knows, or all there are where the project came as an archive."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository: nobody can say which files belong here")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def sources(folder: str, suffix: str) -> list[Path]:
    return sorted((ROOT / folder).rglob(f"*{suffix}"))


# ---- imports in Python: a module imports its own folder and what has a lower rank, and these exceptions

RANKS = {
    "__main__": 5,
    "cli": 4,
    "daemon": 3, "lab": 3, "replay": 3,
    "engine": 2, "deploy": 2, "report": 2, "control": 2, "cisco": 2,
    "nfqueue": 2, "notify": 2, "capture": 2, "divert": 2,
    "policy": 1,
    "": 0, "_engine": 0,
}
SIDEWAYS = {("engine", "report")}   # the engine's structs become report's events


def group_of(module: str) -> str:
    """nfqguard.deploy.plan -> deploy; nfqguard -> the empty string."""
    return [*module.split("."), ""][1]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, anywhere in it: imports inside functions count."""
    package = module_of(path).split(".")
    if path.stem != "__init__":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if group_of(f"{base}.{alias.name}") in RANKS)


def edges() -> set[tuple[str, str, str]]:
    """(file, importing group, imported group)"""
    return {
        (str(path.relative_to(ROOT)), group_of(module_of(path)), group_of(name))
        for path in sources("nfqguard", ".py")
        for name in imported(path)
        if name.split(".")[0] == "nfqguard"
    }


def test_every_module_has_a_rank() -> None:
    assert {group_of(module_of(path)) for path in sources("nfqguard", ".py")} - RANKS.keys() == set()


def test_imports_point_one_way() -> None:
    assert [
        f"{file}: {importer} imports {name}"
        for file, importer, name in sorted(edges())
        if importer != name and (importer, name) not in SIDEWAYS and RANKS[importer] <= RANKS[name]
    ] == []


def test_only_the_binding_imports_the_c_module() -> None:
    assert {file for file, _, name in edges() if name == "_engine"} == {"nfqguard/engine.py"}


def test_imports_inside_functions_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "nfqguard" / "policy").mkdir(parents=True)
    lazy = tmp_path / "nfqguard" / "policy" / "lazy.py"
    lines = ["def f():", "    from nfqguard import daemon", "    from ..cli import run", "    import nfqguard.engine"]
    lazy.write_text("\n".join(lines))
    assert {group_of(name) for name in imported(lazy)} >= {"daemon", "cli", "engine"}
    with pytest.raises(AssertionError):
        test_imports_point_one_way()


# ---- calls in C. A stage calls those behind it. Those before it, it may ask (a prototype whose pointers to state are
# all const) but not tell: the session lends itself to the command or message that it is hearing, which may ask it back.
# A view, a cursor or a line is no state in this sense: it is the caller's own, lent for the call, as the session lends
# its lines to the scanner. What serves them all calls no stage.

STAGES = [
    "packet", "icmp", "flow", "stream", "smtp_scan", "smtp_data", "tls_hello", "smtp_path", "mime", "smtp_session",
    "smtp_command", "smtp_message", "inspect", "edit", "refuse",
]
SERVICES = {"pool", "event", "policy", "classes", "inject", "conntrack", "edit_log", "regex", "limits"}
DRIVERS = {path.stem for path in sanitized.engine_sources() if path.stem.startswith("engine")} | {"queue"}
STATE = r"struct nq_(?:flow|flow_table|stream|session|client|engine|pool)\b"


@cache
def symbols() -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Who defines each name, and (file, name) for each use of one, from the object files."""
    defined, used = {}, set()
    parts = sanitized.objects(sanitized.COMPILERS[0], sanitized.engine_sources(), "c_tests", sanitized.SANITIZERS)
    for part in parts:
        for line in subprocess.run(["nm", part], capture_output=True, text=True, check=True).stdout.splitlines():
            kind, name = line.split()[-2:]
            if kind == "U":
                used.add((part.stem, name))
            elif kind in "TDBR":
                defined[name] = part.stem
    return defined, used


def calls() -> list[tuple[str, str, str]]:
    """(caller's file, callee's file, function)"""
    defined, used = symbols()
    return sorted((user, defined[name], name) for user, name in used if name in defined)


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)


def tells(function: str) -> bool:
    """Does the prototype in nq.h take state that it may change?"""
    header = without_comments((ROOT / "csrc" / "nq.h").read_text())
    prototype = re.search(rf"\b{function}\(([^;]*)\);", header)
    assert prototype, f"{function} has no prototype in nq.h"
    return any(re.search(STATE, part) and not part.strip().startswith("const") for part in prototype[1].split(","))


def test_every_c_file_has_its_place() -> None:
    assert {path.stem for path in sanitized.engine_sources()} - {*STAGES, *SERVICES, *DRIVERS} == set()


def test_the_object_files_show_calls() -> None:
    assert {("engine", "flow", "flow_segment"), ("flow", "stream", "stream_begin")} <= set(calls())


def test_no_stage_tells_an_earlier_one() -> None:
    assert [
        f"{user}.c calls {name}() of {owner}.c"
        for user, owner, name in calls()
        if user in STAGES and owner in STAGES and STAGES.index(owner) < STAGES.index(user) and tells(name)
    ] == []


def test_nobody_but_the_drivers_calls_the_engine_or_the_queue() -> None:
    wrong = [call for call in calls() if call[1] in DRIVERS and call[0] not in DRIVERS]
    assert wrong == []
    assert [call for call in calls() if call[1] == "queue"] == []


def test_services_call_no_stage() -> None:
    assert [call for call in calls() if call[0] in SERVICES and call[1] in STAGES] == []


def test_smtp_knows_no_tcp() -> None:
    below = {"queue", "packet", "flow", "stream", "edit_log", "inject", "pool", "engine"}
    assert [call for call in calls() if call[0].startswith("smtp_") and call[1] in below] == []
    for path in sources("csrc", ".c"):
        if path.stem.startswith("smtp_"):
            named = re.findall(r"nq_(?:stream|flow|packet|view|tcp)\b", without_comments(path.read_text()))
            assert named == [], path.name


def test_only_the_queue_knows_nfqueue() -> None:
    naming = {
        path.name
        for suffix in (".c", ".h", ".def")
        for path in sources("csrc", suffix)
        if re.search(r"NFQNL_|NFQA_|nfnetlink_queue", without_comments(path.read_text()))
    }
    assert naming == {"queue.c"}


# ---- sizes and names

def python_functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def c_functions(path: Path) -> Iterator[tuple[str, int]]:
    for found in lizard.analyze_file(str(path)).function_list:
        yield f"{path.relative_to(ROOT)}:{found.start_line} {found.name}", found.end_line - found.start_line + 1


def functions(folder: str) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for path in sources(folder, ".py"):
        lengths.update(python_functions(path))
    for path in sources(folder, ".c"):
        lengths.update(c_functions(path))
    return lengths


@pytest.mark.parametrize("folder", ["nfqguard", "csrc", "tests"])
def test_functions_are_short(folder: str) -> None:
    lengths = functions(folder)
    assert len(lengths) > 50
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
    assert statistics.median(lengths.values()) <= MEDIAN


def test_functions_are_counted_whole() -> None:
    found = {name.split()[-1]: length for name, length in functions("csrc").items()}
    text = (ROOT / "csrc" / "flow.c").read_text().splitlines()
    begin = next(number for number, line in enumerate(text) if line.startswith("enum nq_reason flow_segment("))
    end = next(number for number, line in enumerate(text) if number > begin and line == "}")
    assert found["flow_segment"] == end - begin + 1


BANNED = {"util", "utils", "helper", "helpers", "common", "misc", "manager", "stuff", "tools"}


def test_every_file_is_named_after_what_it_holds() -> None:
    named = [name for name in tracked() if BANNED & set(re.split(r"[_\-.]", Path(name).stem.lower()))]
    assert named == []


TOP = {
    "nfqguard", "csrc", "systemd", "tests", "vagrant", "docs", "packaging",
    "setup.py", "Makefile", "pyproject.toml", "README.md", "ARCHITECTURE.md", "CHANGELOG.md",
}


def test_the_top_level_holds_what_it_may() -> None:
    assert {name.split("/")[0] for name in tracked()} - TOP - {".ci", ".gitignore", ".github"} == set()


FOREIGN = {
    "a path of one machine": r"/(?:home|Users|root)/\w|/work\b|\.\./shared",
    "a package registry's host": r"\b(?:pypi\.org|files\.pythonhosted|deb\.debian\.org|crates\.io|registry\.npmjs)",
    "a private host": r"\b[\w-]+\.(?:internal|corp|intranet)\b",
}


def test_no_host_names_or_foreign_paths() -> None:
    found = defaultdict(list)
    for name in tracked():
        if name == "tests/test_house.py":
            continue
        text = (ROOT / name).read_bytes().decode(errors="replace")
        for what, pattern in FOREIGN.items():
            found[what] += [f"{name}: {match[0]}" for match in re.finditer(pattern, text)]
    assert {what: places for what, places in found.items() if places} == {}


# ---- the checkers

def checked(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    checked("ruff", "check", ".")


def test_mypy_finds_nothing() -> None:
    checked("mypy")
