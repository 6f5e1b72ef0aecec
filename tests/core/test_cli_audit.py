"""``fedethos privacy audit`` on a real, small run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fedethos.cli_audit import audit
from fedethos.client import trainer
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.privacy import counts
from fedethos.progress import Silent
from fedethos.simulations.engine import simulate

SHARED = {"ledger": "shared.sqlite", "caps": {"lifetime_epsilon": 20.0, "per_job_epsilon": 20.0}}

app = typer.Typer()
app.command()(audit)


def run_audit(*arguments: str | Path) -> tuple[str, BaseException | None]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.stdout, result.exception


@pytest.fixture
def run(write_job: Callable[..., Path], tmp_path: Path) -> Path:
    path = write_job(federation={"rounds": 2})
    return simulate(load_job(path), tmp_path / "run", base=path.parent, observer=Silent())


def test_measures_a_run_and_refuses_one_that_breaks_its_claim(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, error = run_audit(run, "--canaries", "400", "--steps", "12")
    assert error is None, text
    assert "claimed     2.00 at delta 1e-05, one record, add-remove" in text
    assert "verdict     consistent" in text
    assert "400 canaries prove at most 3." in text
    assert text.splitlines()[-1].startswith("Next: nothing was found, which proves no privacy.")

    body, error = run_audit(run, "--canaries", "100", "--steps", "12", "--claim", "5", "--json")
    found = json.loads(body)
    assert (found["verdict"], found["site"], found["claim"], found["canaries"]) == ("consistent", "site-1", 5.0, 100)
    assert found["lower_bound"] < 5.0 > found["most_provable"]
    assert {check["name"] for check in found["checks"]} == {"statement", "accounting", "contributions", "noise", "sampling", "counts"}

    text, _ = run_audit(run, "--canaries", "100", "--steps", "12", "--claim", "5")
    assert "so many canaries cannot refute a claim of 5: take --canaries 2000" in text

    monkeypatch.setattr(trainer, "_noisy", lambda sums, std, source: sums)
    text, error = run_audit(run, "--canaries", "400", "--steps", "12")
    assert "VIOLATED" in text
    assert isinstance(error, FedethosError)
    assert (error.code, error.exit_code) == ("PRIV-340", 4)


def test_a_statement_that_forgets_a_round_is_refused(run: Path, tmp_path: Path) -> None:
    """The seeded mistake: a ledger that starts again in each round states the epsilon of the last one."""
    forgetful = Path(shutil.copytree(run, tmp_path / "forgetful"))
    privacy = json.loads((forgetful / "privacy.json").read_text())
    first_round = json.loads((run / "rounds.jsonl").read_text().splitlines()[1])
    privacy["sites"]["site-2"]["epsilon"] = first_round["epsilon"]["site-2"]
    (forgetful / "privacy.json").write_text(json.dumps(privacy))
    text, error = run_audit(forgetful, "--canaries", "100", "--steps", "3")
    assert "statement      FAILED" in text
    assert isinstance(error, FedethosError)
    assert (error.code, error.exit_code) == ("PRIV-341", 4)


def test_counts_that_were_released_without_noise_are_refused(
    write_job: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_job(federation={"rounds": 1}, simulation={"site": SHARED})
    with monkeypatch.context() as bug:
        bug.setattr(counts, "discrete_gaussian", lambda sigma, count, source: np.zeros(count, dtype=np.int64))
        simulate(load_job(path), tmp_path / "run", base=path.parent, observer=Silent())
    text, error = run_audit(tmp_path / "run", "--canaries", "100", "--steps", "3")
    assert "counts         FAILED  released counts carry noise of 0.000 times" in text
    assert isinstance(error, FedethosError)
    assert error.code == "PRIV-341"


def test_without_the_ledger_of_the_run_counts_are_not_called_right(run: Path) -> None:
    (run / "ledger.sqlite").unlink()
    _, error = run_audit(run, "--canaries", "100", "--steps", "3")
    assert isinstance(error, FedethosError)
    assert error.code == "PRIV-358"


def test_a_run_without_privacy_has_nothing_to_audit(write_job: Callable[..., Path], tmp_path: Path) -> None:
    path = write_job(privacy={"mode": "none"}, federation={"rounds": 1}, training={"local_steps": 1})
    simulate(load_job(path), tmp_path / "run", base=path.parent, observer=Silent())
    _, error = run_audit(tmp_path / "run")
    assert isinstance(error, FedethosError)
    assert error.code == "PRIV-342"
