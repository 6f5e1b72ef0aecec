"""Sweeps that really run: killed and started again, with a run that fails, and cut short by Ctrl-C."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedethos.cli import run

QUICK = {"local_steps": 8, "batch_size": 32, "learning_rate": 0.01}


def sweep(job: Path, out: Path, *more: str) -> list[str]:
    return ["sweep", str(job), "--seeds", "1", "--seed-start", "3", "--out", str(out), *more]


def wait_for(process: subprocess.Popen[str], place: Path) -> None:
    deadline = time.monotonic() + 120
    while not place.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the sweep is too slow"
        time.sleep(0.005)


def test_a_killed_sweep_goes_on_where_it_was_and_gives_the_same_table(write_job, tmp_path: Path, capsys, monkeypatch) -> None:
    job, grid = write_job(training=QUICK), ("--grid", "privacy.epsilon=2,8")
    out, whole = tmp_path / "cut", tmp_path / "whole"
    command = [sys.executable, "-c", "from fedethos.cli import main; main()", *sweep(job, out, *grid)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(process, out / "epsilon=8/seed-3/checkpoints/round-0001")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert (out / "epsilon=2/seed-3/result.json").exists() and not (out / "epsilon=8/seed-3/result.json").exists()
    first = (out / "epsilon=2/seed-3/result.json").read_bytes()

    assert run(sweep(job, out, *grid)) == 0
    table, progress = capsys.readouterr()
    assert "1 of 2 runs are finished already" in progress and "run 2 of 2: epsilon=8/seed-3" in progress
    assert (out / "epsilon=2/seed-3/result.json").read_bytes() == first
    assert run(sweep(job, whole, *grid)) == 0
    assert capsys.readouterr().out.replace(str(whole), str(out)) == table
    assert (whole / "sweep.json").read_bytes() == (out / "sweep.json").read_bytes()

    import fedethos.simulations.sweep_run as runner

    monkeypatch.setattr(runner, "simulate", None)  # calling it would be a TypeError
    monkeypatch.setattr(runner, "resume", None)
    assert run(sweep(job, out, *grid, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "sweep.json").read_text())
    assert run(sweep(write_job(training=QUICK, federation={"rounds": 2}), out, *grid)) == 2
    assert "RUN-950" in capsys.readouterr().err


def test_a_failing_run_is_recorded_and_the_others_run(write_job, tmp_path: Path, capsys) -> None:
    job = write_job(training={"local_steps": 1}, federation={"rounds": 1}, privacy={"mode": "none", "epsilon": None})
    assert run(sweep(job, tmp_path / "out", "--grid", "model.max_length=999,48")) == 2
    printed = capsys.readouterr()
    assert "MODEL-421" in printed.err and "RUN-951" in printed.err
    assert "0 of 1, MODEL-421" in printed.out
    bad, good = json.loads((tmp_path / "out/sweep.json").read_text())["points"]
    assert [(one["status"], one["code"]) for one in (bad["runs"][0], good["runs"][0])] == [("failed", "MODEL-421"), ("completed", None)]
    assert good["measures"]["accuracy"]["count"] == 1 and bad["measures"] == {}


def test_a_bug_in_one_run_is_an_incident_and_the_others_run(write_job, tmp_path: Path, capsys, monkeypatch) -> None:
    import fedethos.simulations.sweep_run as runner

    def broken(*_: object, **__: object) -> None:
        raise ValueError("CANARY-JANE-DOE")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(runner, "simulate", broken)
    assert run(sweep(write_job(), tmp_path / "out", "--grid", "privacy.epsilon=2,8")) == 2
    printed = capsys.readouterr()
    assert printed.err.count("(ValueError), incident") == 2 and "CANARY" not in printed.err + printed.out
    assert "2 with bug" in printed.err


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(write_job, tmp_path: Path, capsys, monkeypatch) -> None:
    import fedethos.simulations.sweep_run as runner

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "simulate", interrupted)
    assert run(sweep(write_job(), tmp_path / "out")) == 130
    assert "start the same command again" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/sweep.json").read_text())["points"][0]["runs"][0]["status"] == "not run"


@pytest.mark.parametrize("code", ["RUN-902", "RUN-904"])
def test_a_full_or_locked_place_ends_the_sweep(write_job, tmp_path: Path, capsys, monkeypatch, code: str) -> None:
    import fedethos.simulations.sweep_run as runner
    from fedethos.errors import FedethosError

    calls = []

    def full(*_: object, **__: object) -> None:
        calls.append(1)
        raise FedethosError(code, "No.")

    monkeypatch.setattr(runner, "simulate", full)
    assert run(sweep(write_job(), tmp_path / "out", "--grid", "privacy.epsilon=2,8")) == 2
    assert code in capsys.readouterr().err and len(calls) == 1


def test_a_dry_run_writes_nothing(write_job, tmp_path: Path, capsys) -> None:
    assert run(sweep(write_job(), tmp_path / "out", "--dry-run")) == 0
    assert "1 runs: 1 grid points with 1 seeds each; 1 new" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
