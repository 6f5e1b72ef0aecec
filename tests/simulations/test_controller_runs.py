"""Whole runs under the fairness controller: what it is told, what it does with it, what that costs, and resuming."""

import json
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism, from_gaussian_mechanism
from fairlearn.metrics import MetricFrame, true_positive_rate
from safetensors.numpy import load_file
from tests.simulations.tabular import TABULAR

from fedethos.client.evaluator import score
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.simulations.engine import resume, simulate
from fedethos.simulations.virtual_sites import open_federation

TRAINED = {**TABULAR, "training": {"local_steps": 10, "learning_rate": 0.1}}
STEERED = {"strategy": "controller", "thresholds": "fixed", "every": 2, "learning_rate": 3.0}
OPEN = {"mode": "none", "epsilon": None}
ROUNDS = {"rounds": 5, "min_sites": 2}


def rounds_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def run(job_file: Path, out: Path) -> dict[str, object]:
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent(), wire=True)
    return json.loads((out / "result.json").read_text())


def test_without_privacy_the_weights_follow_the_exact_rates_of_the_training_people(write_job, tmp_path: Path) -> None:
    job_file = write_job(**TRAINED, fairness={**STEERED, "every": 1}, privacy=OPEN, federation={"rounds": 2, "min_sites": 2})
    run(job_file, tmp_path / "run")
    lines = rounds_of(tmp_path / "run")
    assert [line.get("weights") is None for line in lines] == [True, True, False]  # everybody weighs 1 until the first counts

    with open_federation(
        load_job(job_file), base=tmp_path, scratch=tmp_path, ledger=tmp_path / "other.sqlite", observer=Silent()
    ) as federation:
        arrays = load_file(tmp_path / "run/checkpoints/round-0001/arrays.safetensors")
        federation.model.load({name: arrays[name] for name in federation.model.exchanged_names})
        parts = [node.examples["train"] for node in federation.nodes.values()]
        favored = np.concatenate([score(federation.model, part, 1) for part in parts]) >= 0.0
    label = np.concatenate([part.label for part in parts])
    sex = np.concatenate([part.groups["sex"] for part in parts])
    positives = [int(((label == 1) & (sex == group)).sum()) for group in (0, 1)]
    rates = np.array([favored[(label == 1) & (sex == group)].mean() for group in (0, 1)])
    common = favored[label == 1].mean()
    gap = common - rates
    step = 3.0 * gap**3 / (gap**2 + common * (1 - common) / positives)
    multipliers = np.exp(step)
    expected = multipliers * sum(positives) / (multipliers @ positives)
    assert np.abs(gap).max() > 1e-3
    np.testing.assert_allclose([lines[2]["weights"][group][">50K"] for group in ("Female", "Male")], expected, rtol=1e-9)
    assert [lines[2]["weights"][group]["<=50K"] for group in ("Female", "Male")] == [1.0, 1.0]


def test_counts_are_charged_together_with_training_once_in_every_few_rounds(write_job, tmp_path: Path) -> None:
    result = run(write_job(**TRAINED, fairness=STEERED, federation=ROUNDS), tmp_path / "run")
    state, _ = read_ledger(tmp_path / "run/ledger.sqlite")
    for name, account in state.accounts.items():
        (plan,) = account.plans.values()
        drawn = {one.purpose: 0 for one in plan.drawn}
        for one in plan.drawn:
            drawn[one.purpose] += one.times
        assert drawn == {"train": 5, "group-scores/train": 2, "groups+scores/test": 1}  # after rounds 2 and 4
        assert not plan.left
        loss = None
        for one in plan.drawn:
            if one.event.population != "train":
                continue
            if one.purpose == "train":
                noise, steps = one.event.noise_multiplier, one.times * one.event.steps
                part = from_gaussian_mechanism(noise, sampling_prob=one.event.sampling_rate).self_compose(steps)
            else:
                part = from_discrete_gaussian_mechanism(one.event.sigma).self_compose(one.times)
            loss = part if loss is None else loss.compose(part)
        assert 7.9 < loss.get_epsilon_for_delta(1e-5) <= 8.0 + 1e-2
        assert result["privacy"]["sites"][name]["epsilon"] <= 8.0
    weights = [line.get("weights") for line in rounds_of(tmp_path / "run")]
    assert weights[2] is None and weights[3] == weights[4] and weights[5] != weights[4]
    assert {group: set(labels) for group, labels in weights[5].items()} == {
        group: {"<=50K", ">50K"} for group in ("Female", "Male", "unknown")
    }
    page = (tmp_path / "run/report.html").read_text()
    assert "controller: equal opportunity by sex, counts of the training people after every 2 rounds" in page
    assert f"Female &gt;50K: {weights[5]['Female']['>50K']:.2f}" in page


def test_the_threshold_of_the_counts_follows_the_base_rate_where_it_is_pooled(write_job, tmp_path: Path) -> None:
    run(write_job(**TRAINED, fairness={**STEERED, "thresholds": "pooled"}, privacy=OPEN, federation=ROUNDS), tmp_path / "run")
    last = json.loads((tmp_path / "run/checkpoints/round-0005/state.json").read_text())
    assert 1 <= last["state"]["steering"]["edge"] < 64


def test_fairfed_weighs_sites_by_the_distance_of_their_own_gap(write_job, tmp_path: Path) -> None:
    fairfed = {"strategy": "fairfed", "thresholds": "fixed", "every": 1, "learning_rate": 0.5}
    federation = {"rounds": 2, "min_sites": 2}
    job_file = write_job(
        **TRAINED,
        fairness=fairfed,
        privacy={**OPEN, "metrics": {"min_group_size": 1}},
        federation=federation,
        robustness={"weight_cap": 1.0},
    )
    run(job_file, tmp_path / "run")
    with open_federation(
        load_job(job_file), base=tmp_path, scratch=tmp_path, ledger=tmp_path / "other.sqlite", observer=Silent()
    ) as federation_of_nodes:
        arrays = load_file(tmp_path / "run/checkpoints/round-0001/arrays.safetensors")
        federation_of_nodes.model.load({name: arrays[name] for name in federation_of_nodes.model.exchanged_names})
        parts = {
            federation_of_nodes.sites[node_id].name: (score(federation_of_nodes.model, part, 1) >= 0.0, part.label, part.groups["sex"])
            for node_id, node in federation_of_nodes.nodes.items()
            if (part := node.examples["train"]) is not None
        }
        shares = {site.name: site.share for site in federation_of_nodes.sites.values()}

    def gap(favored: np.ndarray, label: np.ndarray, sex: np.ndarray) -> float:
        rates = MetricFrame(metrics=true_positive_rate, y_true=label, y_pred=favored, sensitive_features=sex).by_group
        return float(rates[0] - rates[1])

    overall = gap(*(np.concatenate([part[place] for part in parts.values()]) for place in range(3)))
    distance = {name: abs(overall - gap(*part)) for name, part in parts.items()}
    mean = sum(distance.values()) / len(distance)
    moved = {name: max(shares[name] - 0.5 * (distance[name] - mean), 0.0) for name in shares}
    total = sum(moved.values())
    expected = {name: weight / total for name, weight in moved.items()}
    lines = rounds_of(tmp_path / "run")
    assert "site_weights" not in lines[1]
    assert lines[2]["site_weights"] == pytest.approx(expected, abs=1e-5)
    assert lines[2]["site_weights"] != pytest.approx(shares, abs=1e-3)
    assert "Weights in the last round" in (tmp_path / "run/report.html").read_text()


def test_a_resumed_run_steers_as_if_nothing_had_happened(write_job, tmp_path: Path) -> None:
    job_file = write_job(**TRAINED, fairness=STEERED, federation=ROUNDS)
    whole = run(job_file, tmp_path / "whole")

    class Interrupt(Silent):
        def round_started(self, round: int, rounds: int, sites: object) -> None:
            if round == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(load_job(job_file), tmp_path / "cut", base=tmp_path, observer=Interrupt(), wire=True)
    resume(tmp_path / "cut", observer=Silent())
    resumed = json.loads((tmp_path / "cut/result.json").read_text())
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    assert [line.get("weights") for line in rounds_of(tmp_path / "cut")] == [line.get("weights") for line in rounds_of(tmp_path / "whole")]


@pytest.mark.parametrize(
    ("fairness", "code"),
    [
        ({"every": 1}, "CFG-342"),
        ({"constraint": "worst_group"}, "CFG-342"),
        ({**STEERED, "every": 3}, "CFG-343"),
        ({"strategy": "fairfed", "every": 1, "constraint": "worst_group"}, "CFG-344"),
        ({**STEERED, "cell_weights": {"Female": {">50K": 2.0}}}, "CFG-341"),
    ],
)
def test_a_strategy_that_could_not_steer_is_refused(write_job, fairness: dict[str, object], code: str) -> None:
    with pytest.raises(FedethosError, match=code):
        load_job(write_job(fairness=fairness))


def test_a_strategy_needs_to_know_its_attribute(write_job) -> None:
    two = {"sex": ["Female", "Male"], "race": ["White", "Black"]}
    with pytest.raises(FedethosError, match="CFG-314"):
        load_job(write_job(data={"sensitive": two}, fairness={"strategy": "controller"}))
    with pytest.raises(FedethosError, match="CFG-311"):
        load_job(write_job(data={"sensitive": {}}, fairness={"strategy": "controller"}, simulation={"partition": {"kind": "iid"}}))
