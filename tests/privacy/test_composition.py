"""Joint cost of a plan against published numbers, closed forms, brute force, and independent accountants."""

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedethos.errors import FedethosError
from fedethos.privacy.accounting import epsilon_after, noise_multiplier_for
from fedethos.privacy.composition import as_dp_event, epsilon, epsilon_at_several_sites, least_noise_factor, prv_epsilon
from fedethos.privacy.events import (
    Adjacency,
    Allotment,
    CountRelease,
    Event,
    GaussianSum,
    Population,
    TrainingSteps,
    event_from_json,
    event_to_json,
)
from fedethos.privacy.renyi import renyi_epsilon

DELTA = 1e-5


def allot(event: Event, times: int = 1, purpose: str = "x") -> Allotment:
    return Allotment(purpose=purpose, event=event, times=times)


def training(budget: float, rate: float = 0.05, steps: int = 300) -> Allotment:
    noise = noise_multiplier_for(epsilon=budget, delta=DELTA, sampling_rate=rate, steps=steps)
    return allot(TrainingSteps(noise_multiplier=noise, sampling_rate=rate, steps=steps))


def counts(sigma: float, times: int = 1, *, rows: int = 1, tables: int = 1, population: Population = "train") -> Allotment:
    return allot(CountRelease(sigma=sigma, rows=rows, tables=tables, population=population), times)


def cost(*allotments: Allotment, adjacency: Adjacency = "add-remove") -> float:
    return epsilon(allotments, delta=DELTA, adjacency=adjacency)


def analytic_gaussian(sigma: float) -> float:
    """Balle and Wang (2018), theorem 8: one continuous Gaussian release of sensitivity 1."""

    def excess(value: float) -> float:
        a, b = 1 / (2 * sigma) - value * sigma, -1 / (2 * sigma) - value * sigma
        return norm.cdf(a) - math.exp(value) * norm.cdf(b) - DELTA

    return float(brentq(excess, 0.0, 100.0))


def brute_force(sigma: float, shift: tuple[int, ...]) -> float:
    """Epsilon of discrete Gaussian noise when a unit moves the cells by ``shift``: the definition, summed over all outcomes."""
    bound = math.ceil(9 * sigma) + max(shift)
    support = np.arange(-bound, bound + 1)
    mass = np.exp(-(support**2) / (2 * sigma**2))
    mass /= mass.sum()
    p, loss = np.ones(1), np.zeros(1)
    for step in shift:  # loss of outcome x: log p(x) - log p(x - step)
        p = np.multiply.outer(p, mass).ravel()
        loss = np.add.outer(loss, (step**2 - 2 * support * step) / (2 * sigma**2)).ravel()

    def excess(value: float) -> float:
        worse = loss > value
        return float((p[worse] * -np.expm1(value - loss[worse])).sum()) - DELTA

    return float(brentq(excess, 0.0, 300.0))


def test_discrete_noise_costs_its_published_value_not_the_continuous_one() -> None:
    assert cost(counts(0.45)) == pytest.approx(12.09, abs=0.005)
    assert analytic_gaussian(0.45) == pytest.approx(11.39, abs=0.005)


@pytest.mark.parametrize("sigma", [0.45, 1.0, 3.0])
@pytest.mark.parametrize(("rows", "tables"), [(1, 1), (1, 3), (3, 1), (2, 2)])
def test_counts_cost_what_the_definition_says(sigma: float, rows: int, tables: int) -> None:
    assert cost(counts(sigma, rows=rows, tables=tables)) == pytest.approx(brute_force(sigma, (rows,) * tables), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("sigma", [0.45, 1.0, 3.0])
def test_replacing_a_unit_moves_two_cells_of_each_table(sigma: float) -> None:
    paid = cost(counts(sigma, rows=2), adjacency="replace-one")
    assert paid == pytest.approx(brute_force(sigma, (2, 2)), rel=2e-3)
    assert CountRelease(sigma=sigma, rows=3, tables=2, population="test").l2_sensitivity("replace-one") == pytest.approx(3 * math.sqrt(4))


@pytest.mark.parametrize("sigma", [0.4, 0.8, 1.6])
@pytest.mark.parametrize("spread", [(1, 1), (2, 1), (1, 1, 1), (3, 1), (2, 2), (2, 1, 1), (4, 1), (3, 2)])
def test_no_other_spread_of_a_units_rows_costs_more_than_all_in_one_cell(sigma: float, spread: tuple[int, ...]) -> None:
    assert brute_force(sigma, spread) < cost(counts(sigma, rows=sum(spread))) + 1e-6


def test_many_small_counts_cost_one_gaussian() -> None:
    assert cost(counts(20.0, 20)) == pytest.approx(analytic_gaussian(20 / math.sqrt(20)), rel=2e-3)


def test_published_joint_cost_of_training_and_counts() -> None:
    steps = training(2.99)
    assert cost(steps, counts(20.0, 20)) == pytest.approx(3.14, abs=0.005)
    assert cost(steps) + cost(counts(20.0, 20)) == pytest.approx(3.81, abs=0.005)


def test_training_alone_costs_what_the_plan_was_made_with() -> None:
    event = training(3.0).event
    assert isinstance(event, TrainingSteps)
    planned = epsilon_after(noise_multiplier=event.noise_multiplier, sampling_rate=0.05, steps=300, delta=DELTA)
    assert cost(allot(event)) == pytest.approx(planned, rel=1e-9)
    by_round = allot(TrainingSteps(noise_multiplier=event.noise_multiplier, sampling_rate=0.05, steps=60), 5)
    assert cost(by_round) == pytest.approx(planned, rel=1e-9)


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_continuous_mechanisms_agree_with_dp_accounting(adjacency: Adjacency) -> None:
    relations = dp_accounting.NeighboringRelation
    relation = relations.ADD_OR_REMOVE_ONE if adjacency == "add-remove" else relations.REPLACE_ONE
    steps = TrainingSteps(noise_multiplier=1.3, sampling_rate=0.04, steps=80)
    total = GaussianSum(noise_multiplier=5.0, population="train")
    full = TrainingSteps(noise_multiplier=9.0, sampling_rate=1.0, steps=4)
    accountant = PLDAccountant(relation)
    for event, times in ((steps, 2), (total, 3), (full, 1)):
        accountant.compose(as_dp_event(event), times)
    assert cost(allot(steps, 2), allot(total, 3), allot(full), adjacency=adjacency) == pytest.approx(
        accountant.get_epsilon(DELTA), rel=1e-3
    )


def test_other_accountants_agree_or_are_above() -> None:
    plan = [allot(TrainingSteps(noise_multiplier=1.0, sampling_rate=0.05, steps=300))]
    assert cost(*plan) == pytest.approx(5.80, abs=0.01)
    assert prv_epsilon(plan, delta=DELTA) == pytest.approx(5.81, abs=0.02)
    assert renyi_epsilon(plan, delta=DELTA, adjacency="add-remove") == pytest.approx(6.46, abs=0.01)
    assert renyi_epsilon([*plan, counts(20.0, 20)], delta=DELTA, adjacency="add-remove") > cost(*plan, counts(20.0, 20))


def test_prv_refuses_what_it_does_not_know() -> None:
    with pytest.raises(FedethosError, match="PRIV-305"):
        prv_epsilon([counts(5.0)], delta=DELTA)


def test_splits_are_paid_in_parallel_when_a_unit_comes_or_goes() -> None:
    steps, test = training(3.0), counts(2.5, population="test")
    assert cost(steps, test) == max(cost(steps), cost(test))
    assert cost(steps, counts(2.5, population="train")) > max(cost(steps), cost(test)) + 0.3


def test_splits_compose_when_a_unit_is_replaced() -> None:
    test, validation = counts(5.0, population="test"), counts(4.0, population="validation")
    together = cost(test, validation, adjacency="replace-one")
    parts = [cost(one, adjacency="replace-one") for one in (test, validation)]
    assert max(parts) < together < sum(parts)


def test_person_at_two_sites_bears_both() -> None:
    for budget, both in ((8.0, 10.9), (3.0, 4.2)):
        site = [training(budget, rate=0.1, steps=50)]
        assert epsilon_at_several_sites([site, site], delta=DELTA, adjacency="add-remove") == pytest.approx(both, abs=0.05)


def test_person_may_train_at_one_site_and_test_at_another() -> None:
    train, test = [training(3.0)], [counts(2.5, population="test")]
    assert epsilon_at_several_sites([train, test], delta=DELTA, adjacency="add-remove") > max(cost(*train), cost(*test)) + 0.3


def test_nothing_costs_nothing() -> None:
    assert cost() == 0.0
    assert epsilon_at_several_sites([[], []], delta=DELTA, adjacency="add-remove") == 0.0


@given(limit=st.floats(1.0, 90.0))
def test_least_noise_factor_is_just_enough(limit: float) -> None:
    factor = least_noise_factor(lambda factor: factor >= limit)
    assert factor is not None
    assert limit <= factor <= limit * 1.0011


def test_no_noise_factor_is_enough() -> None:
    assert least_noise_factor(lambda factor: False) is None


NOISE = st.floats(1e-3, 1e6)
POPULATIONS = st.sampled_from(["train", "validation", "test"])
EVENTS = st.one_of(
    st.builds(TrainingSteps, noise_multiplier=NOISE, sampling_rate=st.floats(1e-6, 1.0), steps=st.integers(1, 10**6)),
    st.builds(CountRelease, sigma=NOISE, rows=st.integers(1, 100), tables=st.integers(1, 100), population=POPULATIONS),
    st.builds(GaussianSum, noise_multiplier=NOISE, population=POPULATIONS),
)


@given(event=EVENTS)
def test_events_survive_json(event: Event) -> None:
    assert event_from_json(event_to_json(event)) == event


@given(event=EVENTS, data=st.data())
def test_incomplete_or_unknown_descriptions_are_refused(event: Event, data: st.DataObject) -> None:
    value = event_to_json(event)
    key = data.draw(st.sampled_from(sorted(value)))
    for broken in ({**value, "extra": 1}, {**value, key: None}, {**value, "mechanism": "laplace"}):
        with pytest.raises(FedethosError, match="PRIV-304"):
            event_from_json(broken)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_noise_must_be_positive_and_finite(bad: float) -> None:
    builders = (
        lambda: TrainingSteps(noise_multiplier=bad, sampling_rate=0.1, steps=1),
        lambda: CountRelease(sigma=bad, rows=1, tables=1, population="test"),
        lambda: GaussianSum(noise_multiplier=bad, population="test"),
    )
    for build in builders:
        with pytest.raises(FedethosError, match="PRIV-304"):
            build()


@settings(max_examples=15, deadline=None)
@given(sigma=st.floats(0.5, 30), times=st.integers(1, 10))
def test_more_noise_costs_less_and_more_releases_cost_more(sigma: float, times: int) -> None:
    few = counts(sigma, times)
    assert cost(allot(few.event.with_noise(1.5), times)) < cost(few) < cost(counts(sigma, times + 1))


def test_order_of_releases_does_not_matter() -> None:
    parts = [counts(5.0, 2), training(1.0), allot(GaussianSum(noise_multiplier=8.0, population="train"))]
    assert len({round(cost(*order), 9) for order in itertools.permutations(parts)}) == 1
