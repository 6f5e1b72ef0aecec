"""The error boundary of the command line: exit codes, words, and what never reaches the terminal."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest
import typer

import fedethos
from fedethos import cli
from fedethos.errors import EXIT_CODES, FedethosError

SECRET = "patient=JANE DOE"


@pytest.fixture
def fail(monkeypatch, tmp_path):
    """Run the command line with a verb that raises; return its exit code."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def run(error: BaseException) -> int:
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def verb() -> None:
            local_value = SECRET  # noqa: F841  a local variable that a careless traceback would print
            raise error

        monkeypatch.setattr(cli, "app", app)
        return cli.run([])

    return run


@pytest.mark.parametrize(("prefix", "code"), EXIT_CODES.items())
def test_a_refusal_has_the_exit_code_of_its_kind(fail, prefix, code):
    assert fail(FedethosError(f"{prefix}-999", "Refused.")) == code


def test_a_refusal_is_told_on_stderr_line_by_line(fail, capsys):
    assert fail(FedethosError("PRIV-400", "Over the cap.", where="job.yaml:3", why="It cannot be undone.", fix="Lower epsilon.")) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["PRIV-400 Over the cap.", "  where  job.yaml:3", "  why    It cannot be undone.", "  fix    Lower epsilon."]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), typer.Abort()])
def test_an_interrupt_says_how_to_go_on(fail, capsys, interrupt):
    assert fail(interrupt) == 130
    assert "fedethos resume RUN" in capsys.readouterr().err


def test_a_bug_is_recorded_for_its_owner_only_and_its_text_is_not_shown(fail, capsys, tmp_path):
    assert fail(ValueError(f"could not convert string to float: '{SECRET}'")) == 70
    out, err = capsys.readouterr()
    assert SECRET not in out + err
    assert "Traceback" not in out + err
    assert err.startswith("bug: ValueError, incident ")
    (file,) = (tmp_path / "fedethos" / "incidents").iterdir()
    assert file.stem in err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    text = file.read_text()
    assert "could not convert string to float" in text
    assert f"local_value = '{SECRET}'" not in text


def test_a_bug_is_told_even_where_no_file_can_be_written(fail, capsys, monkeypatch, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setattr(os, "environ", {**os.environ, "XDG_STATE_HOME": str(blocked)})
    assert fail(RuntimeError(SECRET)) == 70
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["no-such-verb"], ["config", "check"], ["env", "--no-such-option"], ["config"], []])
def test_wrong_usage_is_2(capsys, arguments):
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert "fedethos" in out + err


def test_help_and_version_are_0(capsys):
    assert cli.run(["--help"]) == 0
    assert cli.run(["--version"]) == 0
    assert fedethos.__version__ in capsys.readouterr().out


HEAVY = {"torch", "flwr", "transformers", "peft", "opacus", "pandas", "numpy", "matplotlib", "scipy", "sklearn", "pydantic", "yaml"}


@pytest.mark.parametrize("arguments", [["--help"], ["config", "--help"], ["models", "--help"], ["env"]])
def test_help_imports_nothing_heavy(arguments):
    code = f"import json, sys; from fedethos.cli import run; run({arguments!r}); print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(result.stderr.splitlines()[-1]))


def test_importing_the_package_silences_the_libraries_but_respects_the_operator():
    code = "import os, json, fedethos; print(json.dumps(dict(os.environ)))"
    plain = {name: value for name, value in os.environ.items() if name not in fedethos.QUIET}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**plain, "HF_HUB_OFFLINE": "chosen by the operator"}
    )
    environment = json.loads(result.stdout)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "chosen by the operator"


def test_the_script_leaves_through_the_boundary(tmp_path):
    command = [sys.executable, "-c", "from fedethos.cli import main; main()", "config", "check", str(tmp_path / "none.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("CFG-206 ")
