"""Whole runs of the strategies besides the controller and FairFed: their weights after round 1, recomputed from the sites' people."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.simulations.tabular import TABULAR

from fedethos.client.evaluator import score
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.simulations.engine import simulate
from fedethos.simulations.virtual_sites import open_federation

TRAINED = {**TABULAR, "training": {"local_steps": 10, "learning_rate": 0.1}}
JOB = {**TRAINED, "federation": {"rounds": 2, "min_sites": 2}, "robustness": {"weight_cap": 1.0}}
OPEN = {"mode": "none", "epsilon": None, "metrics": {"min_group_size": 1}}


def run(job_file: Path, out: Path) -> list[dict[str, object]]:
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent(), wire=True)
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def steered(**fairness: object) -> dict[str, object]:
    return {"thresholds": "fixed", "every": 1, **fairness}


@dataclass(frozen=True)
class People:
    wrong: np.ndarray
    label: np.ndarray
    sex: np.ndarray
    site: np.ndarray
    shares: dict[str, float]

    def of_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Shares and risks of women and men."""
        known = np.isin(self.sex, (0, 1))
        return np.array([(self.sex[known] == g).mean() for g in (0, 1)]), np.array([self.wrong[self.sex == g].mean() for g in (0, 1)])

    def of_sites(self) -> dict[str, float]:
        return {name: float(self.wrong[self.site == name].mean()) for name in self.shares}


def people_after_round_1(job_file: Path, out: Path) -> People:
    parts = []
    with open_federation(
        load_job(job_file), base=job_file.parent, scratch=out, ledger=out / "other.sqlite", observer=Silent()
    ) as federation:
        arrays = load_file(out / "checkpoints/round-0001/arrays.safetensors")
        federation.model.load({name: arrays[name] for name in federation.model.exchanged_names})
        for node_id, node in federation.nodes.items():
            part = node.examples["train"]
            wrong = (score(federation.model, part, 1) >= 0.0) != (part.label == 1)
            parts.append((wrong, part.label, part.groups["sex"], np.full(len(wrong), federation.sites[node_id].name)))
        shares = {site.name: site.share for site in federation.sites.values()}
    return People(*(np.concatenate(column) for column in zip(*parts, strict=True)), shares)


def weights_of(line: dict[str, object]) -> np.ndarray:
    return np.array([[line["weights"][group][label] for label in ("<=50K", ">50K")] for group in ("Female", "Male")])


def test_fedfb_steps_by_alpha_towards_equal_opportunity(write_job, tmp_path: Path) -> None:
    job_file = write_job(**JOB, fairness=steered(strategy="fedfb", learning_rate=0.02), privacy=OPEN)
    lines = run(job_file, tmp_path / "run")
    people = people_after_round_1(job_file, tmp_path / "run")
    positive = [(people.label == 1) & (people.sex == group) for group in (0, 1)]
    behind = np.sign(people.wrong[positive[0]].mean() - people.wrong[positive[1]].mean())
    shares = np.array([cell.sum() for cell in positive]) / np.isin(people.sex, (0, 1)).sum()
    expected = 1.0 + 0.02 * behind * np.array([1.0, -1.0]) / shares
    assert behind != 0.0 and (expected < 4.0).all()
    np.testing.assert_allclose(weights_of(lines[2]), np.c_[np.ones(2), expected], rtol=1e-9)
    assert lines[1].get("weights") is None
    assert "fedfb: equal opportunity by sex, counts" in (tmp_path / "run/report.html").read_text()


def test_fedminmax_and_term_weigh_groups_by_their_risks(write_job, tmp_path: Path) -> None:
    job_file = write_job(**JOB, fairness=steered(strategy="fedminmax", learning_rate=0.5), privacy=OPEN)
    lines = run(job_file, tmp_path / "minmax")
    shares, risks = people_after_round_1(job_file, tmp_path / "minmax").of_groups()
    assert abs(risks[0] - risks[1]) > 1e-3
    mixture = shares + 0.5 * (risks - risks.mean())
    assert (mixture > 0.0).all()
    np.testing.assert_allclose(weights_of(lines[2]), np.repeat((mixture / shares)[:, None], 2, axis=1), rtol=1e-9)

    lines = run(write_job(**JOB, fairness=steered(strategy="term", tilt=4.0), privacy=OPEN), tmp_path / "term")
    tilted = np.exp(4.0 * risks)  # the same first round, so the same people
    np.testing.assert_allclose(weights_of(lines[2]), np.repeat((tilted / (shares @ tilted))[:, None], 2, axis=1), rtol=1e-9)
    assert "term: risk by sex, counts" in (tmp_path / "term/report.html").read_text()


def test_afl_and_qfedavg_weigh_sites_by_their_risks(write_job, tmp_path: Path) -> None:
    job_file = write_job(**JOB, fairness=steered(strategy="afl", learning_rate=0.5), privacy=OPEN)
    lines = run(job_file, tmp_path / "afl")
    people = people_after_round_1(job_file, tmp_path / "afl")
    risks, approved = people.of_sites(), people.shares
    mean = sum(risks.values()) / len(risks)
    expected = {name: approved[name] + 0.5 * (risks[name] - mean) for name in approved}
    assert min(expected.values()) > 0.0
    assert lines[2]["site_weights"] == pytest.approx(expected, abs=1e-9)
    assert lines[2]["site_weights"] != pytest.approx(approved, abs=1e-3)

    steps = {}
    for q in (0.0, 2.0):
        out = tmp_path / f"q{q:g}"
        lines = run(write_job(**JOB, fairness=steered(strategy="qfedavg", q=q), privacy=OPEN), out)
        weighed = {name: approved[name] * risks[name] ** q for name in approved}
        assert lines[2]["site_weights"] == pytest.approx({name: one / sum(weighed.values()) for name, one in weighed.items()}, abs=1e-9)
        before, after = (load_file(out / f"checkpoints/round-000{round}/arrays.safetensors") for round in (1, 2))
        steps[q] = {name: after[name] - before[name] for name in after}
    run(write_job(**JOB, privacy=OPEN, fairness={"thresholds": "fixed"}), tmp_path / "none")
    before, after = (load_file(tmp_path / f"none/checkpoints/round-000{round}/arrays.safetensors") for round in (1, 2))
    for name, step in steps[0.0].items():
        np.testing.assert_allclose(step, after[name] - before[name], atol=1e-6)  # q = 0 is FedAvg
    assert sum(np.square(one).sum() for one in steps[2.0].values()) < 0.9 * sum(np.square(one).sum() for one in steps[0.0].values())


def test_a_private_run_pays_for_the_counts_of_its_sites(write_job, tmp_path: Path) -> None:
    lines = run(write_job(**JOB, fairness=steered(strategy="afl")), tmp_path / "run")
    state, _ = read_ledger(tmp_path / "run/ledger.sqlite")
    for account in state.accounts.values():
        (plan,) = account.plans.values()
        assert sum(one.times for one in plan.drawn if one.purpose == "group-scores/train") == 1
        assert not plan.left
    assert sum(lines[2]["site_weights"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"fairness": {"strategy": "fedfb", "constraint": "worst_group"}}, "CFG-344"),
        ({"fairness": {"strategy": "fedminmax", "constraint": "demographic_parity"}}, "CFG-342"),
        ({"fairness": {"strategy": "term", "learning_rate": 0.1}}, "CFG-342"),
        ({"fairness": {"strategy": "afl", "q": 2.0}}, "CFG-342"),
        ({"fairness": {"strategy": "qfedavg", "tilt": 2.0}}, "CFG-342"),
        ({"fairness": {"strategy": "qfedavg"}, "federation": {"server_optimizer": "fedadam", "aggregation": "ffa"}}, "CFG-345"),
        ({"fairness": {"strategy": "qfedavg"}, "federation": {"aggregation": "fedsvd"}}, "CFG-345"),
    ],
)
def test_keys_that_a_strategy_does_not_read_are_refused(write_job, changes: dict[str, dict[str, object]], code: str) -> None:
    with pytest.raises(FedethosError, match=code):
        load_job(write_job(**changes))
