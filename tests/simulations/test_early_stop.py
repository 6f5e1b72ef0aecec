"""What a private job releases beyond its default, and pays for: validation counts of each round, and the untrained model's counts."""

import json
from collections import Counter
from pathlib import Path

import pytest

from fedethos.documents import load_job
from fedethos.privacy.composition import epsilon
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.simulations.engine import simulate


@pytest.mark.parametrize(("metric", "parts"), [("worst_group_accuracy", {"scores", "groups"}), ("roc_auc", {"scores"})])
def test_validation_counts_are_charged_for_each_round_that_ran_and_nothing_is_refunded(
    write_job, tmp_path: Path, metric: str, parts: set[str]
) -> None:
    job_file = write_job(
        data={"path": "builtin:adult", "limit": 0.1},
        training={"local_steps": 5, "batch_size": 64},
        federation={"rounds": 8, "min_sites": 3, "early_stop": {"metric": metric, "patience": 2, "min_delta": 0.9}},
    )
    job = load_job(job_file)
    simulate(job, tmp_path / "run", base=job_file.parent, observer=Silent(), wire=True)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["status"], result["rounds"]) == ("stopped", 3)  # round 1 sets the mark, 2 and 3 gain less than .9

    state, _ = read_ledger(tmp_path / "run/ledger.sqlite")
    assert len(state.accounts) == 3
    for account in state.accounts.values():
        (plan,) = account.plans.values()
        expected = {"train": 3, "groups+scores/test": 1, **{f"{part}/validation": 3 for part in parts}}
        drawn: dict[str, int] = {}
        for one in plan.drawn:
            drawn[one.purpose] = drawn.get(one.purpose, 0) + one.times
        assert drawn == expected
        assert {one.purpose: one.times for one in plan.left.values()} == {
            "train": 5,
            **{f"{part}/validation": 5 for part in parts},
        }
        planned = epsilon(plan.plan.allotments, delta=1e-5, adjacency="add-remove")
        assert account.epsilon == pytest.approx(planned)  # the charge is that of all eight rounds
        assert account.epsilon > 1.05 * epsilon([one for one in plan.drawn if one.purpose == "train"], delta=1e-5, adjacency="add-remove")
        assert account.epsilon_left < 0.5


@pytest.mark.parametrize("thresholds", ["pooled", "fixed"])
def test_the_untrained_model_is_measured_on_request_and_paid_for(write_job, tmp_path: Path, thresholds: str) -> None:
    job_file = write_job(privacy={"epsilon": 8.0, "metrics": {"baseline": True}}, fairness={"thresholds": thresholds})
    job = load_job(job_file)
    simulate(job, tmp_path / "run", base=job_file.parent, observer=Silent(), wire=True)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["baseline"].keys() == result["metrics"].keys()
    measured = result["baseline"]["roc_auc"]  # it depends on no threshold
    assert measured["low"] <= result["oracle"]["baseline"]["roc_auc"] <= measured["high"]
    state, _ = read_ledger(tmp_path / "run/ledger.sqlite")
    for account in state.accounts.values():
        (plan,) = account.plans.values()
        assert not plan.left
        drawn = Counter(one.purpose for one in plan.drawn for _ in range(one.times))
        assert drawn == {"train": 3, "groups+scores/test": 2, **({"scores/validation": 2} if thresholds == "pooled" else {})}
        assert account.epsilon <= 8.0
