"""The systemd units start commands that exist, keep files private, and pass systemd's own check where it is installed."""

import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedethos.cli import app
from fedethos.errors import EXIT_CODES

UNITS = sorted((Path(__file__).parents[2] / "docs/systemd").glob("*.service"))


def service(unit: Path) -> dict[str, str]:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit, "utf-8")
    return dict(parser["Service"])


def test_there_is_a_unit_for_either_side() -> None:
    assert [unit.stem for unit in UNITS] == ["fedethos-coordinator", "fedethos-node"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_a_command_that_exists(unit: Path) -> None:
    program, *arguments = shlex.split(service(unit)["ExecStart"])
    assert Path(program).name == "fedethos"
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0
    assert f"Usage: fedethos {arguments[0]} {arguments[1]}" in result.output.replace("root ", "fedethos ")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_keeps_files_private_and_leaves_no_core_dump(unit: Path) -> None:
    settings = service(unit)
    wanted = {"UMask": "0077", "LimitCORE": "0", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "StateDirectoryMode": "0700"}
    assert {name: settings[name] for name in wanted} == wanted
    assert "root" not in settings["User"]
    assert "AF_UNIX" in settings["RestrictAddressFamilies"]  # the control socket
    assert settings["WorkingDirectory"] == f"/var/lib/{settings['StateDirectory']}"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_refusal_that_needs_a_person_is_not_tried_again(unit: Path) -> None:
    never = {int(code) for code in service(unit)["RestartPreventExitStatus"].split()}
    assert {EXIT_CODES["CFG"], EXIT_CODES["SEC"]} <= never
    assert EXIT_CODES["NET"] not in never


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_itself_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text("utf-8").replace("/opt/fedethos/bin/fedethos", sys.executable))
    done = subprocess.run([analyze, "verify", str(copy)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
