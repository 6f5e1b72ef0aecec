"""The mathematics of the one-run audit against printed numbers, closed forms and mechanisms whose epsilon is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from fedethos.privacy.audit import (
    RULES,
    epsilon_lower_bound,
    fewest_canaries,
    log_likelihood_ratios,
    most_provable,
    p_value,
    weigh,
)


def test_the_p_value_printed_in_the_paper() -> None:
    """Appendix D: 75 of 100 right, epsilon log 3."""
    assert p_value(canaries=100, guesses=100, right=75, epsilon=math.log(3), delta=0.0) == pytest.approx(0.553, abs=5e-4)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "printed"),
    [
        (100, 100, 75, 0.0, 0.702),
        (100, 100, 75, 1e-4, 0.699),
        (1000, 100, 75, 1e-4, 0.673),
        (100_000, 1510, 1439, 1e-5, 2.675),  # section 7; the paper cuts off 2.6758
    ],
)
def test_the_bounds_printed_in_the_paper(canaries: int, guesses: int, right: int, delta: float, printed: float) -> None:
    bound = epsilon_lower_bound(canaries=canaries, guesses=guesses, right=right, delta=delta, confidence=0.95)
    assert bound == pytest.approx(printed, abs=1e-3)


@pytest.mark.parametrize(("canaries", "proves"), [(1000, 5.81), (9000, 8.01)])
def test_all_right_under_pure_privacy_is_a_closed_form(canaries: int, proves: float) -> None:
    """(e^epsilon / (1 + e^epsilon))^m = 0.05, so epsilon = -log(0.05^(-1/m) - 1)."""
    bound = epsilon_lower_bound(canaries=canaries, guesses=canaries, right=canaries, delta=0.0, confidence=0.95)
    assert bound == pytest.approx(-math.log(0.05 ** (-1 / canaries) - 1), abs=1e-5)
    assert bound == pytest.approx(proves, abs=5e-3)


def test_delta_and_abstained_canaries_cost_evidence() -> None:
    """With delta 1e-5 a thousand right guesses prove 5.78 in place of 5.81."""
    settings = [(1000, 0.0), (1000, 1e-5), (10_000, 1e-5), (10_000, 1e-4)]
    bounds = [epsilon_lower_bound(canaries=m, guesses=1000, right=1000, delta=delta, confidence=0.95) for m, delta in settings]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[1] == pytest.approx(5.78, abs=5e-3)


@given(guesses=st.integers(1, 60), data=st.data(), epsilon=st.floats(0, 4))
def test_pure_privacy_is_the_tail_of_a_binomial(guesses: int, data: st.DataObject, epsilon: float) -> None:
    right = data.draw(st.integers(0, guesses))
    accuracy = math.exp(epsilon) / (1 + math.exp(epsilon))
    tail = sum(math.comb(guesses, k) * accuracy**k * (1 - accuracy) ** (guesses - k) for k in range(right, guesses + 1))
    assert p_value(canaries=guesses, guesses=guesses, right=right, epsilon=epsilon, delta=0.0) == pytest.approx(tail, abs=1e-9)


@given(guesses=st.integers(1, 40), data=st.data(), delta=st.floats(0, 0.01))
def test_delta_adds_the_largest_mean_of_the_probabilities_just_below(guesses: int, data: st.DataObject, delta: float) -> None:
    """Theorem 5.2 term by term."""
    right = data.draw(st.integers(0, guesses))
    accuracy = 1 / (1 + math.exp(-1.0))
    pmf = [math.comb(guesses, k) * accuracy**k * (1 - accuracy) ** (guesses - k) for k in range(guesses + 1)]
    worst = max((sum(pmf[right - i : right]) / i for i in range(1, right + 1)), default=0.0)
    expected = min(1.0, sum(pmf[right:]) + 2 * 3 * guesses * delta * worst)
    assert p_value(canaries=3 * guesses, guesses=guesses, right=right, epsilon=1.0, delta=delta) == pytest.approx(expected, abs=1e-9)


def test_more_right_than_guessed_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="right <= guesses"):
        p_value(canaries=10, guesses=5, right=6, epsilon=1.0, delta=0.0)


def randomized_response(rng: np.random.Generator, canaries: int, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    took_part = rng.random(canaries) < 0.5
    honest = rng.random(canaries) < math.exp(epsilon) / (1 + math.exp(epsilon))
    return np.where(honest, took_part, ~took_part) + rng.random(canaries) / 2, took_part


def test_the_bound_is_too_high_no_more_often_than_it_says() -> None:
    """Randomized response has exactly the epsilon that the theorem is tight for, and three rules are tried on each audit."""
    rng = np.random.default_rng(0)
    above = sum(weigh(*randomized_response(rng, 200, 1.0), delta=0.0, confidence=0.8).epsilon > 1.0 for _ in range(400))
    assert above / 400 <= 0.2 + 3 * math.sqrt(0.2 * 0.8 / 400)


def test_the_bound_is_close_for_the_mechanism_it_is_tight_for() -> None:
    found = weigh(*randomized_response(np.random.default_rng(1), 20_000, 1.0), delta=0.0)
    assert 0.9 < found.epsilon < 1.0
    assert found.guesses in {sum(rule.counts(20_000)) for rule in RULES}


def test_scores_without_information_prove_nothing() -> None:
    rng = np.random.default_rng(2)
    assert weigh(rng.random(1000), rng.random(1000) < 0.5, delta=1e-5).epsilon < 0.1


def test_right_guesses_on_both_ends_prove_the_most_that_there_is() -> None:
    took_part = np.arange(1000) % 2 == 0
    found = weigh(took_part.astype(float), took_part, delta=1e-5)
    assert (found.guesses, found.right, found.canaries) == (500, 500, 1000)
    assert found.epsilon == pytest.approx(most_provable(1000, delta=1e-5), abs=1e-6)
    three_rules = -math.log((0.05 / 3) ** (-1 / 500) - 1)
    assert most_provable(1000, delta=0.0) == pytest.approx(three_rules, abs=1e-5)


def test_how_many_canaries_a_claim_takes() -> None:
    needed = fewest_canaries(4.0, delta=1e-5)
    assert needed is not None
    assert most_provable(needed, delta=1e-5) > 4.0 >= most_provable(needed // 2, delta=1e-5)
    assert fewest_canaries(8.0, delta=1e-5) is None  # 8 is out of reach of any number at this delta and these rules


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_scores_are_log_likelihood_ratios(rate: float) -> None:
    shares = np.array([[-1.0, 0.2, 1.4], [0.5, -0.3, 2.0]])

    def density(x: np.ndarray, mean: float) -> np.ndarray:
        return (1 - rate) * norm.pdf(x, 0, 0.8) + rate * norm.pdf(x, mean, 0.8)

    add_remove = np.log(density(shares, 1.0) / norm.pdf(shares, 0, 0.8)).sum(axis=0)
    replace_one = np.log(density(shares, 1.0) / density(shares, -1.0)).sum(axis=0)
    scores = {
        adjacency: log_likelihood_ratios(shares, noise_multiplier=0.8, sampling_rate=rate, adjacency=adjacency)
        for adjacency in ("add-remove", "replace-one")
    }
    np.testing.assert_allclose(scores["add-remove"], add_remove, atol=1e-12)
    np.testing.assert_allclose(scores["replace-one"], replace_one, atol=1e-12)


def test_scores_of_a_training_with_hardly_any_noise_stay_finite() -> None:
    scores = log_likelihood_ratios(np.array([[0.0, 1.0]]), noise_multiplier=1e-3, sampling_rate=0.1, adjacency="add-remove")
    assert np.isfinite(scores).all()
    assert scores[1] > scores[0]
