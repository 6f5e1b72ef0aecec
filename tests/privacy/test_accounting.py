"""Epsilon against closed forms, Opacus' independent accountant, and published numbers."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.accounting import epsilon_after, noise_multiplier_for
from fedethos.privacy.plan import plan_training


def analytic_gaussian_epsilon(sigma: float, delta: float) -> float:
    """Balle and Wang (2018), theorem 8: exact epsilon of one Gaussian release of sensitivity 1."""

    def gap(epsilon: float) -> float:
        a, b = 1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma
        return norm.cdf(a) - math.exp(epsilon) * norm.cdf(b) - delta

    return float(brentq(gap, 0.0, 100.0))


@pytest.mark.parametrize("sigma", [0.7, 1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 16])
def test_without_sampling_epsilon_is_the_analytic_gaussian(sigma: float, steps: int) -> None:
    epsilon = epsilon_after(noise_multiplier=sigma, sampling_rate=1.0, steps=steps, delta=1e-5)
    assert epsilon == pytest.approx(analytic_gaussian_epsilon(sigma / math.sqrt(steps), 1e-5), rel=2e-3)


def test_replace_one_without_sampling_has_twice_the_sensitivity() -> None:
    epsilon = epsilon_after(noise_multiplier=2.0, sampling_rate=1.0, steps=1, delta=1e-5, adjacency="replace-one")
    assert epsilon == pytest.approx(analytic_gaussian_epsilon(1.0, 1e-5), rel=2e-3)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 0.05, 300), (0.6, 0.02, 120), (2.0, 0.2, 50)])
def test_agrees_with_the_prv_accountant(sigma: float, rate: float, steps: int) -> None:
    prv = PRVAccountant()
    prv.history = [(sigma, rate, steps)]
    epsilon = epsilon_after(noise_multiplier=sigma, sampling_rate=rate, steps=steps, delta=1e-5)
    assert epsilon == pytest.approx(prv.get_epsilon(1e-5, eps_error=0.01), rel=0.01, abs=0.01)


def test_published_value() -> None:
    assert epsilon_after(noise_multiplier=1.0, sampling_rate=0.05, steps=300, delta=1e-5) == pytest.approx(5.80, abs=0.01)


def test_nothing_done_costs_nothing() -> None:
    assert epsilon_after(noise_multiplier=1.0, sampling_rate=0.05, steps=0, delta=1e-5) == 0.0


@settings(max_examples=8, deadline=None)
@given(epsilon=st.floats(0.3, 12), rate=st.floats(0.01, 1.0), steps=st.integers(1, 300))
def test_found_noise_keeps_the_budget_and_is_not_much_too_large(epsilon: float, rate: float, steps: int) -> None:
    sigma = noise_multiplier_for(epsilon=epsilon, delta=1e-5, sampling_rate=rate, steps=steps)
    spent = epsilon_after(noise_multiplier=sigma, sampling_rate=rate, steps=steps, delta=1e-5)
    assert spent <= epsilon
    if sigma > 0.06:
        assert epsilon_after(noise_multiplier=sigma * 0.99, sampling_rate=rate, steps=steps, delta=1e-5) > epsilon * 0.98


def test_impossible_budget_is_refused() -> None:
    with pytest.raises(FedethosError, match="PRIV-302"):
        noise_multiplier_for(epsilon=1e-6, delta=1e-9, sampling_rate=1.0, steps=100_000)


def job(**privacy: object) -> Job:
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "plan",
            "model": {"path": "asset:minilm"},
            "data": {"path": "builtin:adult", "text": "{age}", "label": {"column": "y", "values": ["a", "b"], "favorable": "b"}},
            "privacy": privacy,
        }
    )


def test_plan_spends_at_most_the_jobs_epsilon_over_all_rounds() -> None:
    plan = plan_training(job(epsilon=3.0), declared_size=1500)
    assert plan is not None
    assert plan.steps == 100
    assert plan.sampling_rate == pytest.approx(64 / 1500)
    assert plan.expected_batch_size == pytest.approx(64)
    assert 2.98 < plan.epsilon_after(plan.steps) <= 3.0
    assert plan.epsilon_after(20) < plan.epsilon_after(40) < 3.0


def test_plan_depends_on_the_declared_size_alone() -> None:
    assert plan_training(job(), declared_size=1500) == plan_training(job(), declared_size=1500)


def test_small_site_samples_everybody() -> None:
    plan = plan_training(job(), declared_size=40)
    assert plan is not None
    assert (plan.sampling_rate, plan.expected_batch_size) == (1.0, 40.0)


def test_delta_of_one_in_n_is_refused() -> None:
    with pytest.raises(FedethosError, match="PRIV-303"):
        plan_training(job(delta=1e-3), declared_size=1000)


def test_mode_none_has_no_plan() -> None:
    assert plan_training(job(mode="none", epsilon=None), declared_size=100) is None
