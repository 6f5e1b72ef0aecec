"""Thresholds per group in whole runs: the rules come from training people, decide the test people, are paid for, and are said."""

import json
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism, from_gaussian_mechanism
from fairlearn.metrics import demographic_parity_difference, equal_opportunity_difference
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score

from fedethos.client.evaluator import score
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.governance.report import render_report
from fedethos.privacy.events import CountRelease, TrainingSteps
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.simulations.engine import simulate
from fedethos.simulations.virtual_sites import open_federation
from fedethos.wording import GROUP_AWARE

ALLOWED = {"allow_group_thresholds": True, "reason": "Reviewed on 3 May by counsel and the equality office."}
TWO = {"sex": ["Female", "Male"], "race": ["White", "Black", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other"]}
PRECISE = {"tolerance": 2.0, "min_group_size": 1}  # so that a few dozen people may have a threshold of their own


def run(job_file: Path, out: Path, *, wire: bool = False) -> tuple[dict[str, object], dict[str, object]]:
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent(), wire=wire)
    return json.loads((out / "result.json").read_text()), json.loads((out / "fairness.json").read_text())


def everybody(job_file: Path, tmp_path: Path, adapter: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(score, label, sex) of all sites' records by split, under the saved adapter."""
    arrays = load_file(adapter / "adapter_model.safetensors")
    with open_federation(
        load_job(job_file), base=job_file.parent, scratch=tmp_path, ledger=tmp_path / "other.sqlite", observer=Silent()
    ) as federation:
        model = federation.model
        model.load({name: arrays[name] for name in model.exchanged_names})
        return {
            split: tuple(
                np.concatenate(parts)
                for parts in zip(
                    *(
                        (score(model, node.examples[split], 1), node.examples[split].label, node.examples[split].groups["sex"])
                        for node in federation.nodes.values()
                    ),
                    strict=True,
                )
            )
            for split in ("train", "test")
        }


@pytest.mark.parametrize(("thresholds", "gap"), [("equal_opportunity", 1), ("demographic_parity", None)])
def test_without_privacy_the_rules_equalise_training_people_and_decide_the_test_people(write_job, tmp_path, thresholds, gap) -> None:
    job_file = write_job(privacy={"mode": "none", "epsilon": None, "metrics": PRECISE}, fairness={"thresholds": thresholds}, policy=ALLOWED)
    result, fairness = run(job_file, tmp_path / "run", wire=True)
    threshold = fairness["threshold"]
    assert result["group_aware"] is threshold["group_aware"] is True
    assert threshold["attribute"] == "sex"
    own = [threshold["groups"][name] for name in ("Female", "Male")]
    assert [one["own"] for one in threshold["groups"].values()] == [True, True, False]
    assert threshold["groups"]["unknown"]["low"] == threshold["log_odds"]

    people = everybody(job_file, tmp_path, tmp_path / "run" / "adapter")
    low = np.array([one["low"] for one in own])
    scores, label, sex = people["train"]
    width = [  # what the evenly spread scores of one bin can be wrong by
        np.mean(np.abs(scores - low[g])[(sex == g) & (True if gap is None else label == gap)] < 0.5) for g in (0, 1)
    ]
    metric = equal_opportunity_difference if gap else demographic_parity_difference
    assert metric(label, scores >= low[sex], sensitive_features=sex) <= sum(width) + 1e-9

    scores, label, sex = people["test"]
    favored = scores >= low[sex]
    oracle = result["oracle"]
    assert oracle["metrics"]["accuracy"] == pytest.approx(accuracy_score(label, favored), abs=1e-12)
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(oracle["metrics"]["accuracy"], abs=1e-12)
    for name, oracle_metric in {
        "equal_opportunity_difference": equal_opportunity_difference,
        "demographic_parity_difference": demographic_parity_difference,
    }.items():
        assert oracle["fairness"]["sex"][name] == pytest.approx(oracle_metric(label, favored, sensitive_features=sex), abs=1e-12)


def together(allotments) -> float:
    """Epsilon of training steps and counts on the same people, composed with dp-accounting alone."""
    total = None
    for one in allotments:
        event = one.event
        if isinstance(event, TrainingSteps):
            loss = from_gaussian_mechanism(event.noise_multiplier, sampling_prob=event.sampling_rate).self_compose(one.times * event.steps)
        else:
            loss = from_discrete_gaussian_mechanism(event.sigma, sensitivity=event.rows).self_compose(one.times * event.tables)
        total = loss if total is None else total.compose(loss)
    return total.get_epsilon_for_delta(1e-5)


def test_training_scores_are_charged_together_with_training(write_job, tmp_path) -> None:
    job_file = write_job(
        fairness={"thresholds": "equalized_odds"},
        policy={**ALLOWED, "allow_randomized_decisions": True},
        privacy={"epsilon": 8.0, "metrics": {"tolerance": 5.0, "min_group_size": 1}},
    )
    result, fairness = run(job_file, tmp_path / "run")
    state, _ = read_ledger(tmp_path / "run" / "ledger.sqlite")
    for name, account in state.accounts.items():
        (plan,) = account.plans.values()
        train = [one for one in plan.drawn if one.event.population == "train"]
        assert [(one.purpose, one.times) for one in train] == [("train", 3), ("group-scores/train", 1)]
        assert isinstance(train[1].event, CountRelease) and train[1].event.tables == 1
        cost = together(train)
        assert 7.9 < cost <= 8.0 + 1e-2
        assert together(train[:1]) < 7.95 and 1.0 < together(train[1:]) < 4.0
        assert result["privacy"]["sites"][name]["epsilon"] <= 8.0
        assert not plan.left
    assert fairness["threshold"]["group_aware"] is True
    assert result["oracle"]["metrics"]["accuracy"] == pytest.approx(result["metrics"]["accuracy"]["value"], abs=0.2)
    report = (tmp_path / "run" / "report.html").read_text()
    assert GROUP_AWARE in report and "Threshold of Female" in report
    document = tmp_path / "run" / "result.json"
    document.write_text(json.dumps({**result, "group_aware": False}))
    assert GROUP_AWARE not in render_report(tmp_path / "run").read_text()


def test_groups_too_small_for_the_noise_keep_the_pooled_threshold_and_the_run_is_not_group_aware(write_job, tmp_path) -> None:
    job_file = write_job(fairness={"thresholds": "equal_opportunity"}, policy=ALLOWED, federation={"rounds": 1})
    result, fairness = run(job_file, tmp_path / "run")
    threshold = fairness["threshold"]
    assert {one["own"] for one in threshold["groups"].values()} == {False}
    assert {one["low"] for one in threshold["groups"].values()} == {threshold["log_odds"]}
    assert result["group_aware"] is False
    assert GROUP_AWARE not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({"fairness": {"thresholds": "equal_opportunity"}}, "CFG-312"),
        ({"fairness": {"thresholds": "equal_opportunity"}, "policy": {"reason": "none"}}, "CFG-312"),
        ({"fairness": {"thresholds": "equalized_odds"}, "policy": ALLOWED}, "CFG-313"),
        ({"fairness": {"attribute": "race"}}, "CFG-243"),
        ({"fairness": {"thresholds": "equal_opportunity"}, "policy": ALLOWED, "data": {"sensitive": TWO}}, "CFG-314"),
        ({"fairness": {"thresholds": "demographic_parity"}, "policy": ALLOWED, "data": {"sensitive": {}}}, "CFG-311"),
    ],
)
def test_group_thresholds_are_refused_unless_the_policy_names_them(write_job, sections, code) -> None:
    iid = {"simulation": {"sites": 3, "partition": {"kind": "iid"}}}
    with pytest.raises(FedethosError, match=code):
        load_job(write_job(**iid, **sections))
