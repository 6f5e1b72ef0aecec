"""The checks beside the audit: they pass what follows the plan and see small departures from it."""

from __future__ import annotations

import numpy as np
import pytest

from fedethos.privacy.accounting import noise_multiplier_for
from fedethos.privacy.conformance import check_accounting, check_counts, check_noise, check_sampling
from fedethos.privacy.discrete_gaussian import discrete_gaussian
from fedethos.privacy.plan import PrivacyPlan
from fedethos.privacy.randomness import SeededSource

STEPS, UNITS, RATE, NOISE = 60, 800, 0.1, 1.7


def sampled(rng: np.random.Generator) -> np.ndarray:
    return rng.random((STEPS, UNITS)) < RATE


def test_right_noise_and_sampling_pass() -> None:
    """200 trainings: a false alarm in 10,000 audits each would be seen here with probability 0.04."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert check_noise(NOISE * rng.standard_normal((STEPS, UNITS)), noise_multiplier=NOISE).holds
        assert check_sampling(sampled(rng), sampling_rate=RATE).holds


def noise(kind: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    values = NOISE * rng.standard_normal((STEPS, UNITS))
    if kind == "three percent too little":
        return 0.97 * values
    if kind == "one step without":
        values[17] = 0.0
    if kind == "the same in two halves":
        values[STEPS // 2 :] = values[: STEPS // 2]
    if kind == "taken back later":
        values[STEPS // 2 :] = -values[: STEPS // 2]
    return values


@pytest.mark.parametrize("kind", ["three percent too little", "one step without", "the same in two halves", "taken back later"])
def test_wrong_noise_is_seen(kind: str) -> None:
    assert not check_noise(noise(kind), noise_multiplier=NOISE).holds


def wrongly_sampled(kind: str) -> np.ndarray:
    rng = np.random.default_rng(2)
    table = sampled(rng)
    if kind == "a higher rate":
        return rng.random((STEPS, UNITS)) < 1.1 * RATE
    if kind == "shuffled":
        batches = round(1 / RATE)
        deals = [rng.permutation(UNITS) % batches for _ in range(STEPS // batches)]
        return np.concatenate([np.arange(batches)[:, None] == deal for deal in deals])
    if kind == "batches of one size":
        for row in table:
            row[:] = rng.permutation(UNITS) < UNITS * RATE
    if kind == "always the same people":
        table[:] = table[0]
    return table


@pytest.mark.parametrize("kind", ["a higher rate", "shuffled", "batches of one size", "always the same people"])
def test_wrong_sampling_is_seen(kind: str) -> None:
    assert not check_sampling(wrongly_sampled(kind), sampling_rate=RATE).holds


def test_at_rate_one_everybody_is_in_every_step() -> None:
    everybody = np.ones((STEPS, UNITS), dtype=bool)
    assert check_sampling(everybody, sampling_rate=1.0).holds
    everybody[3, 4] = False
    assert not check_sampling(everybody, sampling_rate=1.0).holds


def test_the_claim_must_cover_all_steps() -> None:
    multiplier = noise_multiplier_for(epsilon=2.0, delta=1e-5, sampling_rate=RATE, steps=STEPS)
    plan = PrivacyPlan(
        unit="record", adjacency="add-remove", delta=1e-5, max_grad_norm=1.0, sampling_rate=RATE,
        expected_batch_size=80.0, steps=STEPS, noise_multiplier=multiplier,
    )  # fmt: skip
    assert check_accounting(plan, steps=STEPS, claim=2.0).holds
    assert not check_accounting(plan, steps=STEPS + 10, claim=2.0).holds
    assert not check_accounting(plan, steps=STEPS, claim=1.9).holds


@pytest.mark.parametrize("sigma", [0.6, 1.03, 12.0])
def test_right_noise_of_counts_passes_and_wrong_noise_is_seen(sigma: float) -> None:
    for seed in range(100):
        assert check_counts(discrete_gaussian(sigma, 68, SeededSource(seed)), sigma=sigma).holds
    drawn = discrete_gaussian(sigma, 68, SeededSource(0))
    assert not check_counts(np.zeros_like(drawn), sigma=sigma).holds
    assert not check_counts(discrete_gaussian(2.0 * sigma, 68, SeededSource(0)), sigma=sigma).holds
    assert not check_counts(discrete_gaussian(0.5 * sigma, 68, SeededSource(0)), sigma=sigma).holds
    many = discrete_gaussian(sigma, 400, SeededSource(0))
    assert not check_counts(np.maximum(many, 0), sigma=sigma).holds  # clamped


def test_bounds_on_counts_are_those_of_the_exact_law() -> None:
    """One cell at sigma 0.5: P(|x| >= 3) is 4e-8, P(|x| >= 2) is 6e-4. The first is refused; the second happens."""
    assert not check_counts(np.array([3]), sigma=0.5).holds
    assert check_counts(np.array([2]), sigma=0.5).holds
