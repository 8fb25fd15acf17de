"""`nfqguard check` and `nfqguard preset`: what the operator sees, and the exit status."""
from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from nfqguard.cli import main
from nfqguard.policy.load import load, preset_names

GOOD = 'policy = "mail"\n[policies.mail]\nextends = "ios-smtp"\n'


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "nfqguard.toml"
    path.write_text(GOOD)
    return path


def test_a_good_configuration(file):
    result = run("check", "-c", file)
    assert result.exit_code == 0
    assert result.output == f"{file}: this configuration can be used; policy in force: mail\n"


def test_warnings_do_not_fail(file):
    file.write_text(GOOD + "[deployment]\nports = [465]\n")
    result = run("check", "-c", file)
    assert result.exit_code == 0
    warning, verdict = result.output.splitlines()
    assert warning.startswith(f"warning: {file}: deployment.ports: on port 465 TLS begins with the first octet")
    assert verdict == f"{file}: this configuration can be used; policy in force: mail"


def test_every_error_and_every_warning_at_once(file):
    file.write_text(GOOD + "[deployment]\nports = [465]\n[engine]\nflows = 1\nidel = 3\n")
    result = run("check", "-c", file)
    assert result.exit_code == 1
    assert [line.split(": ")[0] for line in result.output.splitlines()] == ["error", "error", "warning", str(file)]
    assert f"error: {file}: engine.flows: 1 is too small: give at least 16\n" in result.output
    assert f"error: {file}: engine.idel: there is no such key: did you mean 'idle'?\n" in result.output
    assert result.output.endswith(f"{file}: this configuration cannot be used\n")


def test_json(file):
    result = run("check", "--json", "-c", file)
    assert result.exit_code == 0
    assert json.loads(result.output) == {"usable": True, "policy": "mail", "files": [str(file)], "errors": [],
                                         "warnings": []}
    file.write_text("nonsense = 1\n")
    result = run("check", "--json", "-c", file)
    assert result.exit_code == 1
    data = json.loads(result.output)
    assert (data["usable"], data["policy"], data["files"]) == (False, None, [])
    assert data["errors"] == [{
        "file": str(file), "key": "nonsense", "text": "there is no such key",
        "remedy": "known are classes, deployment, engine, events, network, policies, policy"}]
    assert {warning["key"] for warning in data["warnings"]} == {"policies.modern.verbs"}


def test_no_file(tmp_path):
    result = run("check", "-c", tmp_path / "none")
    assert result.exit_code == 1
    assert result.output == (
        f"error: {tmp_path}/none: cannot be read (No such file or directory): give a file that can be read\n"
        f"{tmp_path}/none: this configuration cannot be used\n")


def test_check_needs_neither_engine_nor_scapy(file):
    """An operator checks a configuration where nothing else runs."""
    program = ("import sys\nsys.modules['nfqguard._engine'] = sys.modules['scapy'] = None\n"
               f"from nfqguard.cli import main\nmain(['check', '-c', {str(file)!r}])\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_presets_are_listed_and_shown(tmp_path):
    result = run("preset", "list")
    assert (result.exit_code, result.output) == (0, "".join(f"{name}\n" for name in preset_names()))
    for name in preset_names():
        shown = run("preset", "show", name)
        assert shown.exit_code == 0
        path = tmp_path / f"{name}.toml"
        path.write_text(shown.output)
        assert load(path).policy == name, "what is shown can be used as a configuration"


def test_a_preset_that_is_not_there():
    result = run("preset", "show", "assa")
    assert result.exit_code == 1
    assert result.output == "preset assa: there is no such preset: did you mean 'asa'?\n"
