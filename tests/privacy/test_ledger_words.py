"""``fedethos privacy spent`` and ``statement``: the numbers of the ledger, and what they mean."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from typer.testing import CliRunner

from fedethos.caps import Caps
from fedethos.cli_privacy import privacy_app
from fedethos.errors import FedethosError
from fedethos.privacy.accounting import noise_multiplier_for
from fedethos.privacy.events import Allotment, TrainingSteps
from fedethos.privacy.ledger import FILE, Ledger, read_ledger
from fedethos.privacy.ledger_chain import head_path
from fedethos.privacy.ledger_entries import SpendingPlan


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(privacy_app, arguments)
    if result.exception:
        raise result.exception
    return result.stdout


def write(
    folder: Path,
    budgets: Sequence[float],
    *,
    seeded: bool = True,
    unit: Literal["person", "record"] = "record",
    cap: float | None = None,
    run: str = "run",
) -> Path:
    """A run folder's ledger: one site per budget, 5 of 5 rounds reserved, 4 answered."""
    with Ledger(folder / FILE) as ledger:
        for number, budget in enumerate(budgets, start=1):
            name = f"site-{number}"
            noise = noise_multiplier_for(epsilon=budget, delta=1e-5, sampling_rate=0.1, steps=50)
            event = TrainingSteps(noise_multiplier=noise, sampling_rate=0.1, steps=10)
            caps = Caps(lifetime_epsilon=cap or budget, per_job_epsilon=cap or budget)
            ledger.open_account(name, caps=caps, unit=unit, adjacency="add-remove", simulated=seeded)
            plan = ledger.commit(
                SpendingPlan(
                    account=name,
                    job_sha256="a" * 64,
                    run=run,
                    unit=unit,
                    adjacency="add-remove",
                    epsilon=budget,
                    delta=1e-5,
                    allotments=(Allotment(purpose="train", event=event, times=5),),
                    seeded=seeded,
                )
            )
            for round in range(1, 6):
                receipt = plan.reserve("train", round)
                if round < 5:
                    plan.record(receipt.release(round, event=receipt.event), b"reply")
    return folder


def test_spent_says_what_is_used_left_and_unanswered(tmp_path: Path) -> None:
    run = write(tmp_path, [8.0])
    text = invoke("spent", str(run))
    assert "site-1  epsilon 8.00 of 8 at delta 1e-05 (one record added or removed)" in text
    assert "plans 1, releases 5, without a stored reply 1" in text
    assert "not a guarantee" in text
    answer = json.loads(invoke("spent", str(run / FILE), "--json"))
    assert answer["head"]["hash"] in text
    [account] = answer["accounts"]
    assert account["epsilon"] == pytest.approx(8.0, abs=0.02)
    assert (account["reserved"], account["unanswered"], account["simulated"]) == (5, 1, True)


def test_statement_names_unit_adjacency_and_what_a_person_at_two_sites_bears(tmp_path: Path) -> None:
    run = write(tmp_path, [8.0, 8.0, 3.0])
    text = invoke("statement", str(run))
    for words in (
        "Unit of privacy: one record.",
        "(add-remove)",
        "site-3: epsilon 3.00",
        "(8.00, 1e-05)-differential privacy",
        "A person with records at site-1 and site-2 bears both: epsilon 8.00 and 8.00 together are 10.8",
        "A person with several records is protected less",
        "train: computed from train people",
        "Floating-point noise",
        "SIMULATION, NOT A GUARANTEE",
    ):
        assert words in text
    answer = json.loads(invoke("statement", str(run), "--json"))
    assert answer["two_sites"][2] == pytest.approx(10.9, abs=0.05)
    assert answer["seeded"] is True


def test_two_sites_with_several_trials_are_added_as_plans_chosen_after_seeing_results(tmp_path: Path) -> None:
    """Rényi costs at the accounts' order add up: epsilon of both is the sum of both less one overhead of that order (by hand)."""
    for trial in ("one", "two"):
        write(tmp_path, [3.0, 3.0], cap=30.0, run=trial)
    answer = json.loads(invoke("statement", str(tmp_path), "--json"))
    state, _ = read_ledger(tmp_path / FILE)
    order = state.accounts["site-1"].opened.lifetime_order
    overhead = math.log(1 - 1 / order) - (math.log(1e-5) + math.log(order)) / (order - 1)
    assert answer["two_sites"][2] == pytest.approx(sum(answer["sites"].values()) - overhead, rel=1e-9)


def test_statement_of_a_person_unit_with_secure_noise_has_no_such_marks(tmp_path: Path) -> None:
    text = invoke("statement", str(write(tmp_path, [3.0], seeded=False, unit="person")))
    assert "Unit of privacy: all records of one person at a site." in text
    assert "SIMULATION" not in text and "several records" not in text and "bears both" not in text


def test_reading_changes_nothing(tmp_path: Path) -> None:
    run = write(tmp_path, [3.0])
    before = {file.name: file.read_bytes() for file in run.iterdir()}
    invoke("spent", str(run))
    invoke("statement", str(run))
    assert {name: (run / name).read_bytes() for name in before} == before


def test_place_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedethosError, match="RUN-903"):
        invoke("spent", str(tmp_path))
    with Ledger(tmp_path / FILE):
        pass
    with pytest.raises(FedethosError, match="RUN-903"):
        invoke("statement", str(tmp_path))


def test_deleted_ledger_is_not_no_ledger(tmp_path: Path) -> None:
    run = write(tmp_path, [3.0])
    (run / FILE).unlink()
    assert head_path(run / FILE).exists()
    with pytest.raises(FedethosError, match="PRIV-312"):
        invoke("spent", str(run))
