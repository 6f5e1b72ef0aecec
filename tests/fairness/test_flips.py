"""Flips of decisions counted by hand, intervals against SciPy, and planted models at both ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from fedethos.fairness.flips import flips

EVERY = np.ones(6, dtype=bool)


def test_by_hand() -> None:
    before = np.array([2.0, 1.0, 0.5, -1.0, -2.0, 0.0])
    after = np.array([-1.0, 3.0, 0.4, 1.0, -3.0, np.nan])
    swapped = np.array([True, True, True, True, True, False])
    found = flips(before, after, swapped, threshold=0.5)
    assert (found.records, found.swapped) == (6, 5)
    # decisions before: + + + - -; after: - + - + -
    values = {name: one.value for name, one in found.estimates.items()}
    assert values["swapped_share"] == pytest.approx(5 / 6)
    assert values["flip_rate"] == pytest.approx(3 / 5)
    assert values["favorable_to_unfavorable"] == pytest.approx(2 / 5)
    assert values["unfavorable_to_favorable"] == pytest.approx(1 / 5)

    def score(log_odds: float) -> float:
        return 1 / (1 + math.exp(-log_odds))

    changes = [abs(score(a) - score(b)) for a, b in zip(after[:5], before[:5], strict=True)]
    assert values["mean_absolute_score_change"] == pytest.approx(np.mean(changes))
    item = found.estimates["mean_absolute_score_change"]
    assert item.high == pytest.approx(np.mean(changes) + norm.ppf(0.975) * np.std(changes, ddof=1) / math.sqrt(5))


@given(st.integers(20, 400), st.integers(0, 400), st.integers(0, 2**32 - 1))
def test_the_flip_rate_has_wilsons_interval(count: int, changing: int, seed: int) -> None:
    flipped = np.arange(count) < min(changing, count)
    before = np.random.default_rng(seed).normal(size=count)
    after = np.where(flipped, -before, before)
    item = flips(before, after, np.ones(count, dtype=bool), threshold=0.0).estimates["flip_rate"]
    hits = int(flipped.sum())
    wilson = binomtest(hits, count).proportion_ci(method="wilson")
    assert item.value == pytest.approx(hits / count)
    if 6 <= hits <= count - 6:
        assert (item.low, item.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    else:  # few flips: never narrower than Wilson's
        assert item.low <= wilson.low + 1e-12
        assert item.high >= wilson.high - 1e-12


def test_nothing_swapped_is_undefined_not_zero() -> None:
    found = flips(np.zeros(6), np.full(6, np.nan), ~EVERY, threshold=0.0)
    assert found.estimates["swapped_share"].value == 0.0
    assert all(one.value is None for name, one in found.estimates.items() if name != "swapped_share")


def test_one_record_has_no_interval_of_its_mean() -> None:
    found = flips(np.zeros(1), np.ones(1), np.ones(1, dtype=bool), threshold=0.5)
    assert found.estimates["flip_rate"].value == 1.0
    assert found.estimates["mean_absolute_score_change"].value is None


def test_infinite_scores_are_scores() -> None:
    found = flips(np.full(6, -np.inf), np.full(6, np.inf), EVERY, threshold=0.0)
    assert found.estimates["unfavorable_to_favorable"].value == 1.0
    assert found.estimates["mean_absolute_score_change"].value == 1.0
