"""Real processes, really killed: the resumed run ends with the numbers of an undisturbed one."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedethos.cli import run

LONG = {"local_steps": 60, "batch_size": 32, "learning_rate": 0.01}


def command(*arguments: str) -> list[str]:
    """A shell starts background jobs deaf to SIGINT, and children inherit it; this one hears."""
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    return [sys.executable, "-c", f"{hearing}; from fedethos.cli import main; main()", *arguments]


def result(out: Path) -> dict[str, object]:
    return {key: value for key, value in json.loads((out / "result.json").read_text()).items() if key != "seconds"}


def wait_for_round(process: subprocess.Popen[str], out: Path, number: int) -> None:
    """Return while the round after ``number`` is being computed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        if (out / "checkpoints" / f"round-{number:04d}").exists():
            return
        time.sleep(0.01)
    raise AssertionError("the run is too slow")


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, dict[str, object]]:
    return {}


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_run_ended_in_round_two_resumes_to_the_same_numbers(write_job, tmp_path: Path, ending: signal.Signals, undisturbed) -> None:
    job_file = write_job(training=LONG)
    if not undisturbed:
        subprocess.run(command("simulate", str(job_file), "--out", str(tmp_path / "whole")), check=True, capture_output=True)
        undisturbed["result"] = result(tmp_path / "whole")

    out = tmp_path / "cut"
    process = subprocess.Popen(
        command("simulate", str(job_file), "--out", str(out)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_round(process, out, 1)
    process.send_signal(ending)
    _, stderr = process.communicate(timeout=60)
    assert not (out / "result.json").exists()
    assert process.returncode == (130 if ending == signal.SIGINT else -signal.SIGKILL)
    if ending == signal.SIGINT:
        assert "fedethos resume" in stderr and "Traceback" not in stderr

    resumed = subprocess.run(command("resume", str(out), "--json"), check=True, capture_output=True, text=True)
    assert result(out) == undisturbed["result"]
    assert json.loads(resumed.stdout)["rounds"] == 3
    rounds = [json.loads(line)["round"] for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert rounds == [0, 1, 2, 3]


def test_refusals_have_exit_codes_and_show_no_value(
    write_job, tmp_path: Path, adult_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text(adult_rows.read_text().replace(",Female,", ",CANARY-JANE-DOE,"))
    for arguments, code, word in (
        (["--set", "privacy.epsilonn=3"], 2, "Did you mean `epsilon`"),
        (["--set", "privacy.epsilon=0"], 2, "CFG-204"),
        (["--set", "data.label.column=incom"], 3, "income"),
        (["--set", f"data.path={secret}"], 3, "DATA-121"),
        (["--set", "privacy.delta=0.005"], 4, "PRIV-303"),
        (["--set", f"model.sha256={'a' * 64}"], 7, "SEC-601"),
    ):
        returned = run(["simulate", str(write_job()), "--out", str(tmp_path / "run"), "--force", *arguments])
        printed = capsys.readouterr()
        assert (returned, word in printed.err) == (code, True), printed.err
        assert "CANARY" not in printed.err + printed.out
