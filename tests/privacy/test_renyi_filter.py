"""The filter across plans: Rényi costs against closed forms and dp-accounting, and what it lets pass against the true cost."""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from fedethos.privacy.composition import epsilon
from fedethos.privacy.events import Adjacency, Allotment, CountRelease, Event, GaussianSum, TrainingSteps
from fedethos.privacy.renyi import RenyiFilter, renyi_cost

DELTA = 1e-5


def cost(event: Event, order: float, times: int = 1, adjacency: Adjacency = "add-remove") -> float:
    return renyi_cost([Allotment(purpose="x", event=event, times=times)], order=order, adjacency=adjacency)


@pytest.mark.parametrize("order", [1.25, 4.0, 33.0])
def test_gaussians_cost_alpha_over_two_sigma_squared(order: float) -> None:
    assert cost(GaussianSum(noise_multiplier=3.0, population="test"), order, 5) == pytest.approx(5 * order / 18)
    assert cost(TrainingSteps(noise_multiplier=3.0, sampling_rate=1.0, steps=7), order) == pytest.approx(7 * order / 18)
    table = CountRelease(sigma=3.0, rows=2, tables=4, population="test")
    assert cost(table, order) == pytest.approx(order * 16 / 18)
    assert cost(table, order, adjacency="replace-one") == pytest.approx(order * 32 / 18)
    assert cost(GaussianSum(noise_multiplier=3.0, population="test"), order, adjacency="replace-one") == pytest.approx(4 * order / 18)


@pytest.mark.parametrize("sigma", [0.3, 0.45, 1.0, 4.0])
@pytest.mark.parametrize("order", [1.5, 4.0, 20.0])
def test_discrete_noise_never_costs_more_than_its_bound(sigma: float, order: float) -> None:
    x = np.arange(-2000, 2001)
    log_mass = -(x**2) / (2 * sigma**2)
    log_mass -= np.logaddexp.reduce(log_mass)
    exact = np.logaddexp.reduce(order * log_mass[1:] + (1 - order) * log_mass[:-1]) / (order - 1)
    bound = cost(CountRelease(sigma=sigma, rows=1, tables=1, population="test"), order)
    assert exact <= bound * (1 + 1e-9)


@pytest.mark.parametrize(("rate", "noise", "order"), [(0.04, 1.0, 4), (0.04, 0.68, 4), (0.3, 0.5, 64), (0.01, 2.0, 18), (0.5, 6.0, 256)])
def test_sampled_steps_agree_with_dp_accounting(rate: float, noise: float, order: int) -> None:
    accountant = RdpAccountant(orders=[order])
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), 20)
    ours = cost(TrainingSteps(noise_multiplier=noise, sampling_rate=rate, steps=20), float(order))
    assert ours == pytest.approx(accountant.rdp[0], rel=1e-9)


@pytest.mark.parametrize("other", [0.0, -1.0])
@pytest.mark.parametrize("order", [1.25, 2.75, 7.5])
def test_sampled_steps_are_the_integral_of_the_definition(order: float, other: float) -> None:
    rate, noise = 0.1, 1.2

    def integrand(x: float) -> float:
        one = (1 - rate) * norm.pdf(x, 0, noise) + rate * norm.pdf(x, 1, noise)
        two = (1 - rate) * norm.pdf(x, 0, noise) + rate * norm.pdf(x, other, noise)
        return float(one * (one / two) ** (order - 1))

    exact = math.log(quad(integrand, -15, 20, limit=500)[0]) / (order - 1)
    adjacency: Adjacency = "add-remove" if other == 0.0 else "replace-one"
    ours = cost(TrainingSteps(noise_multiplier=noise, sampling_rate=rate, steps=1), order, adjacency=adjacency)
    assert ours == pytest.approx(exact, rel=1e-6)


def test_one_unit_bears_one_split_or_all_of_them() -> None:
    plan = [
        Allotment(purpose=name, event=GaussianSum(noise_multiplier=noise, population=name), times=1)
        for name, noise in (("train", 2.0), ("test", 3.0))
    ]
    assert renyi_cost(plan, order=4.0, adjacency="add-remove") == pytest.approx(4 / 8)
    assert renyi_cost(plan, order=4.0, adjacency="replace-one") == pytest.approx(4 * (4 / 8 + 4 / 18))


@pytest.mark.parametrize("cap", [0.5, 1.0, 3.0, 8.0, 20.0])
def test_conversion_is_that_of_dp_accounting(cap: float) -> None:
    budget = RenyiFilter.opened(cap, DELTA)
    for rho in (0.1 * budget.rho_cap, budget.rho_cap):
        converted, _ = compute_epsilon([budget.order], [rho], DELTA)
        spent = RenyiFilter(epsilon_cap=cap, delta=DELTA, order=budget.order, spent=rho)
        assert spent.epsilon == pytest.approx(converted)
    assert spent.epsilon == pytest.approx(cap)
    assert spent.remaining == pytest.approx(0.0)


@pytest.mark.parametrize("cap", [1.0, 3.0, 8.0])
def test_chosen_order_lets_more_gaussian_noise_pass_than_any_other(cap: float) -> None:
    chosen = RenyiFilter.opened(cap, DELTA)
    for order in (1.5, 2.0, 3.0, 4.0, 5.0, 8.0, 16.0, 32.0, 64.0, 128.0):
        other = RenyiFilter(epsilon_cap=cap, delta=DELTA, order=order)
        assert chosen.rho_cap / chosen.order >= other.rho_cap / order - 1e-12


def test_filter_stops_at_its_cap() -> None:
    budget = RenyiFilter(epsilon_cap=8.0, delta=DELTA, order=4.0, spent=1.0)
    assert budget.fits(budget.remaining)
    assert not budget.fits(budget.remaining * 1.0001)
    assert budget.remaining == pytest.approx(budget.rho_cap - 1.0)
    assert RenyiFilter.opened(8.0, DELTA).epsilon == 0.0


@settings(max_examples=25, deadline=None)
@given(cap=st.floats(0.5, 12.0), noises=st.lists(st.floats(1.0, 40.0), min_size=40, max_size=40))
def test_what_passes_costs_at_most_the_cap(cap: float, noises: list[float]) -> None:
    """Whatever is asked for, in whatever order: what was let pass never truly costs more than the cap."""
    budget, passed = RenyiFilter.opened(cap, DELTA), []
    for noise in noises:
        plan = Allotment(purpose="x", event=GaussianSum(noise_multiplier=noise, population="train"), times=1)
        rho = renyi_cost([plan], order=budget.order, adjacency="add-remove")
        if budget.fits(rho):
            passed.append(plan)
            budget = RenyiFilter(epsilon_cap=cap, delta=DELTA, order=budget.order, spent=budget.spent + rho)
    assert epsilon(passed, delta=DELTA, adjacency="add-remove") <= budget.epsilon + 1e-3
    assert budget.epsilon <= cap + 1e-9


def test_replace_one_pair_is_the_one_of_dp_accountings_loss_distributions() -> None:
    """Its Rényi bound, converted, is above the exact epsilon, and not by much."""
    steps = TrainingSteps(noise_multiplier=1.5, sampling_rate=0.1, steps=100)
    accountant = PLDAccountant(NeighboringRelation.REPLACE_ONE)
    accountant.compose(PoissonSampledDpEvent(0.1, GaussianDpEvent(1.5)), 100)
    orders = [1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0]
    bound, _ = compute_epsilon(orders, [cost(steps, order, adjacency="replace-one") for order in orders], DELTA)
    exact = accountant.get_epsilon(DELTA)
    assert exact < bound < 1.25 * exact
