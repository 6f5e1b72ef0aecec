"""Whole runs with ethics losses: what they ask for, what it costs, what it does, and that a resumed run goes on the same way."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism, from_gaussian_mechanism
from tests.simulations.tabular import TABULAR

from fedethos.documents import load_job
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import resume, simulate
from fedethos.simulations.run_audit import audit_run
from fedethos.simulations.virtual_sites import site_records

TRAINING = {"local_steps": 10, "learning_rate": 0.1}
OPEN = {"mode": "none", "epsilon": None}
SHARES = {"Female": {"<=50K": 0.29, ">50K": 0.04}, "Male": {"<=50K": 0.47, ">50K": 0.2}}

Writer = Callable[..., Path]


def run(job_file: Path, out: Path) -> dict[str, object]:
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent(), wire=True)
    return json.loads((out / "result.json").read_text())


def rounds_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def test_reweighing_is_that_of_the_exact_training_people_where_nothing_is_private(write_job: Writer, tmp_path: Path) -> None:
    """Against P(g) P(y) / P(g, y) of the sites' training records, and the gap in selection rates closes."""
    plain = {**TABULAR, "training": {**TRAINING, "local_steps": 40}, "privacy": OPEN}
    gaps = {}
    for loss in ("none", "reweighing"):
        job_file = write_job(**plain, fairness={"loss": loss})
        gaps[loss] = run(job_file, tmp_path / loss)["oracle"]["fairness"]["sex"]["demographic_parity_difference"]
    parts = [splits["train"] for splits in site_records(load_job(job_file), tmp_path).values()]
    sex, label = (np.concatenate(values) for values in ([part.groups["sex"] for part in parts], [part.label for part in parts]))
    for line in rounds_of(tmp_path / "reweighing")[1:]:
        for group, name in enumerate(("Female", "Male")):
            for favorable, income in enumerate(("<=50K", ">50K")):
                expected = np.mean(sex == group) * np.mean(label == favorable) / np.mean((sex == group) & (label == favorable))
                assert line["weights"][name][income] == pytest.approx(min(4.0, expected), rel=1e-9)
    assert gaps["reweighing"] < gaps["none"] - 0.02
    assert "reweighing by sex, from counts of the training people before training" in (tmp_path / "reweighing/report.html").read_text()


@pytest.mark.parametrize(("fairness", "releases"), [({"loss": "reweighing"}, 1), ({"loss": "group_dro", "every": 1}, 2)])
def test_counts_for_a_loss_are_charged_together_with_training(
    write_job: Writer, tmp_path: Path, fairness: dict[str, object], releases: int
) -> None:
    run(write_job(**TABULAR, training=TRAINING, fairness=fairness), tmp_path / "run")
    state, _ = read_ledger(tmp_path / "run/ledger.sqlite")
    for account in state.accounts.values():
        (plan,) = account.plans.values()
        loss = None
        for one in (one for one in plan.drawn if one.event.population == "train"):
            if one.purpose == "train":
                noise, steps = one.event.noise_multiplier, one.times * one.event.steps
                part = from_gaussian_mechanism(noise, sampling_prob=one.event.sampling_rate).self_compose(steps)
            else:
                part = from_discrete_gaussian_mechanism(one.event.sigma).self_compose(one.times)
            loss = part if loss is None else loss.compose(part)
        assert 7.9 < loss.get_epsilon_for_delta(1e-5) <= 8.0 + 1e-2
        assert sum(one.times for one in plan.drawn if one.purpose == "group-scores/train") == releases
        assert not plan.left
    statement = json.loads((tmp_path / "run/privacy.json").read_text())["statement"]
    assert "the cell with the largest weight" in statement


def test_public_shares_cost_no_release(write_job: Writer, tmp_path: Path) -> None:
    run(write_job(**TABULAR, training=TRAINING, fairness={"loss": "reweighing", "training_shares": SHARES}), tmp_path / "run")
    state, _ = read_ledger(tmp_path / "run/ledger.sqlite")
    for account in state.accounts.values():
        (plan,) = account.plans.values()
        assert {one.purpose for one in plan.drawn if one.event.population == "train"} == {"train"}


def test_a_run_with_group_dro_goes_on_as_if_nothing_had_happened(write_job: Writer, tmp_path: Path) -> None:
    job_file = write_job(**TABULAR, training=TRAINING, fairness={"loss": "group_dro", "every": 1})
    whole = run(job_file, tmp_path / "whole")

    class Interrupt(Silent):
        def round_started(self, round: int, rounds: int, sites: object) -> None:
            if round == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(load_job(job_file), tmp_path / "cut", base=job_file.parent, observer=Interrupt(), wire=True)
    resume(tmp_path / "cut", observer=Silent())
    assert [line.get("weights") for line in rounds_of(tmp_path / "cut")] == [line.get("weights") for line in rounds_of(tmp_path / "whole")]
    assert rounds_of(tmp_path / "cut")[3]["weights"]["Female"] != {"<=50K": 1.0, ">50K": 1.0}
    assert json.loads((tmp_path / "cut/result.json").read_text())["oracle"] == whole["oracle"]


@pytest.mark.parametrize(
    ("fairness", "training"),
    [
        ({"training_shares": SHARES}, {"sampling": "group_balanced"}),
        ({"loss": "focal"}, {}),
        ({"loss": "reweighing"}, {}),
        ({"loss": "counterfactual_consistency", "augment": "counterfactual", "identity_terms": "builtin:sex"}, {}),
    ],
)
def test_the_audit_confirms_what_such_a_run_states(
    write_job: Writer, tmp_path: Path, fairness: dict[str, object], training: dict[str, object]
) -> None:
    """Contributions, noise, sampling and accounting, as trained: a loss or a rate that a site does not pay for would fail."""
    job_file = write_job(**TABULAR, training={**TRAINING, **training}, fairness=fairness, federation={"rounds": 2, "min_sites": 2})
    run(job_file, tmp_path / "run")
    found = audit_run(RunFolder(tmp_path / "run"), canaries=100, steps=None, claim=None, seed=1, observer=Silent())
    assert not found.audit.failed
