"""Plans and mechanisms of private counts: cost against a plain convolution, the schedule, and what the ledger must have paid."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedethos.caps import Caps
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.counts import noisy_tables, plan_counts, release_counts, sigma_for
from fedethos.privacy.events import Allotment, CountRelease, TrainingSteps, purpose_of
from fedethos.privacy.ledger import Ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.randomness import SecureSource, SeededSource

DELTA = 1e-5


def job(sensitive=("sex", "race"), **sections):
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "counts",
            "model": {"path": "asset:minilm"},
            "data": {
                "path": "builtin:adult",
                "text": "{age}",
                "label": {"column": "y", "values": ["a", "b"], "favorable": "b"},
                "sensitive": {name: ["x", "y"] for name in sensitive},
            },
            **sections,
        }
    )


def exact_epsilon(sigma, cells):
    """Epsilon of ``cells`` independent discrete Gaussians, each moved by 1: the loss is linear in their sum, so convolve and look."""
    reach = math.ceil(14 * sigma) + 1
    support = np.arange(-reach, reach + 1)
    mass = np.exp(-(support**2) / (2 * sigma**2))
    total = mass / mass.sum()
    for _ in range(cells - 1):
        total = np.convolve(total, mass / mass.sum())
    sums = np.arange(-cells * reach, cells * reach + 1)
    loss = (cells - 2 * sums) / (2 * sigma**2)

    def delta(epsilon):
        return float(total @ np.maximum(0.0, -np.expm1(np.minimum(epsilon - loss, 0.0))))

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > DELTA else (low, middle)
    return high


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize(("tables", "epsilon"), [(1, 8.0), (3, 8.0), (3, 1.0), (7, 3.0), (2, 0.3)])
def test_noise_keeps_the_budget_and_is_not_much_too_large(tables, epsilon, adjacency):
    sigma = sigma_for(tables=tables, rows=1, epsilon=epsilon, delta=DELTA, adjacency=adjacency)
    cells = tables if adjacency == "add-remove" else 2 * tables
    assert exact_epsilon(sigma, cells) <= epsilon + 2e-3
    assert exact_epsilon(0.98 * sigma, cells) > 0.99 * epsilon


@pytest.mark.parametrize(
    ("adjacency", "rows", "tables", "expected"),
    [("add-remove", 1, 3, math.sqrt(3)), ("add-remove", 4, 2, 4 * math.sqrt(2)), ("replace-one", 1, 3, math.sqrt(6))],
)
def test_sensitivity_of_tables_over_the_same_people(adjacency, rows, tables, expected):
    release = CountRelease(sigma=1.0, rows=rows, tables=tables, population="test")
    assert release.l2_sensitivity(adjacency) == pytest.approx(expected)


def test_more_rows_per_person_need_as_much_more_noise():
    one, four = (sigma_for(tables=3, rows=rows, epsilon=2.0, delta=DELTA, adjacency="add-remove") for rows in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.02)


def test_no_noise_meets_a_budget_of_nothing():
    with pytest.raises(FedethosError, match="PRIV-302"):
        sigma_for(tables=3, rows=1, epsilon=1e-7, delta=1e-9, adjacency="add-remove")


EARLY_STOP = {"early_stop": {"metric": "worst_group_accuracy"}, "rounds": 6}


@pytest.mark.parametrize(
    ("sections", "schedule"),
    [
        ({}, {("scores", "groups", "test"): (3, 1), ("scores", "validation"): (1, 1)}),
        ({"fairness": {"thresholds": "fixed"}}, {("scores", "groups", "test"): (3, 1)}),
        (
            {"federation": EARLY_STOP},
            {("scores", "groups", "test"): (3, 1), ("scores", "validation"): (1, 6), ("groups", "validation"): (2, 6)},
        ),
        (
            {"federation": {**EARLY_STOP, "early_stop": {"metric": "roc_auc"}}},
            {("scores", "groups", "test"): (3, 1), ("scores", "validation"): (1, 6)},
        ),
        ({"sensitive": ()}, {("scores", "groups", "test"): (2, 1), ("scores", "validation"): (1, 1)}),
        ({"privacy": {"metrics": {"baseline": True}}}, {("scores", "groups", "test"): (3, 2), ("scores", "validation"): (1, 2)}),
        (
            {"privacy": {"metrics": {"baseline": True}}, "federation": {**EARLY_STOP, "early_stop": {"metric": "roc_auc"}}},
            {("scores", "groups", "test"): (3, 2), ("scores", "validation"): (1, 7)},
        ),
        (
            {"privacy": {"metrics": {"baseline": True}}, "fairness": {"thresholds": "fixed"}},
            {("scores", "groups", "test"): (3, 2)},
        ),
        ({"privacy": {"mode": "none", "epsilon": None}}, {}),
    ],
)
def test_schedule_and_cost_of_a_job(sections, schedule):
    plans = plan_counts(job(**sections))
    assert {(*plan.parts, plan.population): (plan.release.tables, plan.releases) for plan in plans} == schedule
    for population in {plan.population for plan in plans}:
        here = [plan for plan in plans if plan.population == population]
        (sigma,) = {plan.release.sigma for plan in here}  # one amount of noise per split
        assert 0.97 * 8.0 < exact_epsilon(sigma, sum(plan.release.tables * plan.releases for plan in here)) <= 8.002


@pytest.mark.parametrize(("metrics", "share"), [({}, 0.3), ({"epsilon_share": 0.1}, 0.1)])
def test_under_replace_one_all_counts_together_cost_their_share(metrics, share):
    plans = plan_counts(job(privacy={"adjacency": "replace-one", "metrics": metrics}))
    (sigma,) = {plan.release.sigma for plan in plans}
    cells = 2 * sum(plan.release.tables * plan.releases for plan in plans)
    assert exact_epsilon(sigma, cells) == pytest.approx(share * 8.0, rel=0.01)


tables = st.dictionaries(
    st.text("ab:", min_size=1, max_size=4),
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=3, max_side=4), elements=st.integers(0, 10**6)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=30, deadline=None)
@given(tables, st.integers(0, 2**32))
def test_noise_keeps_names_and_shapes_and_repeats_with_its_seed(exact, seed):
    release = CountRelease(sigma=3.0, rows=1, tables=len(exact), population="test")
    first, again = (noisy_tables(exact, release, SeededSource(seed)) for _ in range(2))
    assert {name: (table.shape, table.dtype) for name, table in first.items()} == {name: (t.shape, t.dtype) for name, t in exact.items()}
    assert all((first[name] == again[name]).all() for name in exact)


def test_every_cell_gets_its_own_noise_and_none_is_clamped():
    exact = {"a": np.zeros((40, 50), dtype=np.int64), "b": np.full((40, 50), 7, dtype=np.int64)}
    noisy = noisy_tables(exact, CountRelease(sigma=4.0, rows=1, tables=2, population="test"), SecureSource())
    noise = np.concatenate([(noisy[name] - exact[name]).ravel() for name in exact])
    assert noise.var() == pytest.approx(16.0, rel=0.12)
    assert abs(noise.mean()) < 0.4
    assert noisy["a"].min() < -5
    assert abs(np.corrcoef(noise[:2000], noise[2000:])[0, 1]) < 0.1


@pytest.mark.parametrize("built", [0, 1, 3])
def test_tables_that_are_not_paid_for_are_refused(built):
    exact = {str(number): np.zeros((2, 2), dtype=np.int64) for number in range(built)}
    with pytest.raises(FedethosError, match="PRIV-331"):
        noisy_tables(exact, CountRelease(sigma=1.0, rows=1, tables=2, population="test"), SeededSource(1))


def committed(ledger, *allotments):
    caps = Caps(lifetime_epsilon=50.0, per_job_epsilon=50.0, delta=DELTA, rounds=100)
    ledger.open_account("patients", caps=caps, unit="record", adjacency="add-remove", simulated=True)
    plan = SpendingPlan(
        account="patients",
        job_sha256="0" * 64,
        run="r",
        unit="record",
        adjacency="add-remove",
        epsilon=8.0,
        delta=DELTA,
        allotments=allotments,
    )
    return ledger.commit(plan)


def test_counts_leave_through_a_receipt_and_once(tmp_path):
    plans = {plan.population: plan for plan in plan_counts(job())}
    exact = {name: np.zeros((2, 2, 2), dtype=np.int64) for name in ("sex", "race", ":scores")}
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        plan = committed(ledger, *(one.allotment for one in plans.values()))
        purpose = purpose_of(("groups", "scores"), "test")
        receipt = plan.reserve(purpose, 6)
        release = release_counts(exact, receipt, SeededSource(1))
        assert release.event == plans["test"].release
        assert set(release.value) == set(exact)
        with pytest.raises(FedethosError, match="PRIV-317"):
            release_counts(exact, receipt, SeededSource(1))
        with pytest.raises(FedethosError, match="PRIV-315"):
            plan.reserve(purpose, 7)


def test_a_receipt_for_training_pays_for_no_counts(tmp_path):
    steps = TrainingSteps(noise_multiplier=2.0, sampling_rate=0.1, steps=5)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        receipt = committed(ledger, Allotment(purpose="train", event=steps, times=2)).reserve("train", 1)
        with pytest.raises(FedethosError, match="PRIV-331"):
            release_counts({"sex": np.zeros((2, 2, 2), dtype=np.int64)}, receipt, SeededSource(1))
