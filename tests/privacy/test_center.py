"""The released mean of the head's input: hand-worked values, the bound on one unit, and what it costs together with training."""

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.aggregation import HEAD_CENTER
from fedethos.caps import Caps
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.center import EPSILON_SHARE, clipped_sum, plan_center, release_center
from fedethos.privacy.events import CENTER, Allotment, CountRelease, GaussianSum, TrainingSteps
from fedethos.privacy.ledger import Ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.planner import allotments, cost_of_noise, cost_of_trials
from fedethos.privacy.randomness import SeededSource


def test_hand_worked_sum() -> None:
    """Unit 0: mean of (3, 0) and (3, 8) is (3, 4), of norm 5, cut to 2.5. Unit 1: (0, 1) is short enough."""
    values, unit = np.array([[3.0, 0.0], [3.0, 8.0], [0.0, 1.0]]), np.array([0, 0, 1])
    assert clipped_sum(values, unit, bound=2.5) == pytest.approx([1.5, 2.0 + 1.0])
    assert clipped_sum(values[:0], unit[:0], bound=2.5) == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("spoiled", [np.nan, np.inf, -np.inf])
def test_a_unit_with_a_value_that_is_not_finite_adds_nothing(spoiled: float) -> None:
    values = np.array([[1.0, 0.0], [spoiled, 0.0], [0.0, 1.0]])
    assert clipped_sum(values, np.array([0, 0, 1]), bound=2.0) == pytest.approx([0.0, 1.0])


rows = st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-9, 9), st.integers(0, 3)), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(rows, st.floats(0.01, 100.0))
def test_one_unit_moves_the_sum_by_the_bound_at_most(rows: list[tuple[float, float, int]], bound: float) -> None:
    values, unit = np.array([row[:2] for row in rows]), np.array([row[2] for row in rows])
    for one in np.unique(unit):
        alone = clipped_sum(values[unit == one], unit[unit == one], bound=bound)
        assert np.linalg.norm(alone) <= bound
        without = clipped_sum(values[unit != one], unit[unit != one], bound=bound)
        assert clipped_sum(values, unit, bound=bound) == pytest.approx(without + alone, abs=1e-9)


@pytest.mark.parametrize(("rows", "units", "bound"), [(2, 1, 1.0), (1, 1, 0.0), (1, 1, np.inf), (1, 1, np.nan)])
def test_misfits_are_refused(rows: int, units: int, bound: float) -> None:
    with pytest.raises(FedethosError, match="PRIV-357"):
        clipped_sum(np.ones((rows, 3)), np.zeros(units, dtype=np.int64), bound=bound)


def test_a_release_is_paid_once_and_carries_the_noise_of_its_receipt(tmp_path) -> None:
    event, counts = GaussianSum(noise_multiplier=3.0, population="train"), CountRelease(sigma=20.0, rows=1, tables=1, population="train")
    inputs, reference, width = np.full((40, 2000), 7.0), np.full(2000, 7.0), 2000
    told = {"inputs": inputs, "unit": np.arange(40), "reference": reference, "bound": 2.0, "declared_size": 50}
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.open_account(
            "a", caps=Caps(lifetime_epsilon=8.0, per_job_epsilon=8.0), unit="record", adjacency="add-remove", simulated=True
        )
        paid = (Allotment(purpose=CENTER, event=event, times=1), Allotment(purpose="counts", event=counts, times=1))
        plan = ledger.commit(
            SpendingPlan(
                account="a", job_sha256="a" * 64, run="r", unit="record", adjacency="add-remove", epsilon=8.0, delta=1e-5, allotments=paid
            )
        )
        with pytest.raises(FedethosError, match="PRIV-356"):
            release_center(**told, receipt=plan.reserve("counts", 1), source=SeededSource(1))
        receipt = plan.reserve(CENTER, 0)
        release = release_center(**told, receipt=receipt, source=SeededSource(1))
        with pytest.raises(FedethosError, match="PRIV-317"):
            release_center(**told, receipt=receipt, source=SeededSource(1))
    assert release.value[HEAD_CENTER].dtype == np.float32
    noise = (release.value[HEAD_CENTER] - 7.0) * 50 / (3.0 * 2.0)  # everybody is at the reference: only noise is left
    assert abs(noise.std() - 1.0) < 4 / np.sqrt(2 * width)
    assert abs(noise.mean()) < 4 / np.sqrt(width)


def centered(write_job, **privacy: object) -> Job:
    sites = {f"site-{number}": {"declared_size": 200} for number in (1, 2, 3)}
    return load_job(write_job(training={"center_head": "on"}, federation={"sites": sites}, privacy={"epsilon": 1.0, **privacy}))


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_it_is_paid_together_with_training_within_the_budget(write_job, adjacency: str) -> None:
    """dp-accounting composes both itself, from the two events; without the centre the same noise would leave room."""
    job = centered(write_job, adjacency=adjacency)
    relation = {"add-remove": "ADD_OR_REMOVE_ONE", "replace-one": "REPLACE_ONE"}[adjacency]
    planned = {one.purpose: one for one in allotments(job, declared_size=200)}
    training, center = planned["train"], planned[CENTER]
    assert isinstance(training.event, TrainingSteps)
    assert isinstance(center.event, GaussianSum)
    assert (center.times, center.event.population) == (1, "train")

    def cost(*, with_center: bool) -> float:
        accountant = PLDAccountant(dp_accounting.NeighboringRelation[relation], value_discretization_interval=1e-3)
        step = dp_accounting.PoissonSampledDpEvent(
            training.event.sampling_rate, dp_accounting.GaussianDpEvent(training.event.noise_multiplier)
        )
        accountant.compose(step, training.event.steps * training.times)
        if with_center:
            accountant.compose(dp_accounting.GaussianDpEvent(center.event.noise_multiplier))
        return float(accountant.get_epsilon(job.privacy.delta))

    within = cost(with_center=True)
    assert within <= 1.0 + 1e-6
    if adjacency == "add-remove":  # else the counts of other splits are in the budget too
        assert within > 0.99
    assert cost(with_center=False) < within - 0.02


def test_the_centre_alone_costs_its_share(write_job) -> None:
    center = plan_center(centered(write_job))
    assert center is not None
    assert isinstance(center.event, GaussianSum)
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    accountant.compose(dp_accounting.GaussianDpEvent(center.event.noise_multiplier))
    assert accountant.get_epsilon(1e-5) == pytest.approx(EPSILON_SHARE, rel=0.01)


def test_every_cost_that_is_printed_has_it(write_job) -> None:
    job = centered(write_job)
    plain = job.model_copy(update={"training": job.training.model_copy(update={"center_head": "off"})})
    assert plan_center(plain) is None
    for cost in (
        lambda one: cost_of_noise(one, declared_size=200, noise_multiplier=2.0).epsilon,
        lambda one: cost_of_trials(one, declared_size=200, noise_multiplier=2.0, trials=2),
    ):
        assert cost(job) > cost(plain)
