"""The fairness controller: its steps and weights by hand, and a planted gap that it closes, measured by fairlearn."""

import math

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, equal_opportunity_difference
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

from fedethos.fairness.counts import Count, GroupCounts, Rates
from fedethos.strategies.controller import Constraint, Controller, damped_gap

TABLE = np.array([[[80, 20], [60, 40]], [[70, 30], [20, 80]], [[0, 0], [0, 0]]])  # (group, label, prediction), unknown last
EXACT = GroupCounts.of(TABLE, favorable=1)


def rule(constraint: Constraint = "equal_opportunity", **changes: object) -> Controller:
    values = {"constraint": constraint, "favorable": 1, "learning_rate": 2.0, "max_weight": 4.0, "min_group_size": 1}
    return Controller(**(values | changes))


def test_a_gap_is_shrunk_by_its_own_uncertainty() -> None:
    """TPR .4 and .8 of 100 each, together .6: (.2)^3 / (.04 + .6 * .4 / 100)."""
    by_hand = 0.2**3 / (0.04 + 0.0024)
    np.testing.assert_allclose(damped_gap(EXACT.take([0, 1]).tpr), [by_hand, -by_hand])
    noisy = GroupCounts.of(TABLE, favorable=1, noise_variance=400.0)
    by_hand = 0.2**3 / (0.04 + 0.0024 + (0.4**2 + 0.6**2) * 400.0 / 100**2)
    np.testing.assert_allclose(damped_gap(noisy.take([0, 1]).tpr), [by_hand, -by_hand])


def test_a_gap_within_its_noise_hardly_moves_anything() -> None:
    noise = np.full(2, 100.0**2)
    rates = Rates(Count(np.array([49.0, 51.0]), noise), Count(np.array([51.0, 49.0]), noise))
    assert np.abs(damped_gap(rates)).max() < 1e-5


@pytest.mark.parametrize(
    ("constraint", "signs"),
    [
        ("equal_opportunity", [[0, 1], [0, -1]]),
        ("equalized_odds", [[-1, 1], [1, -1]]),  # false positive rates .2 and .3: the second group's negatives weigh more
        ("demographic_parity", [[-1, 1], [1, -1]]),
        ("worst_group", [[1, 1], [-1, -1]]),  # accuracies .6 and .75
    ],
)
def test_who_is_behind_weighs_more(constraint: Constraint, signs: list[list[int]]) -> None:
    moved = rule(constraint).updated(np.zeros((3, 2)), EXACT)
    np.testing.assert_array_equal(np.sign(moved[:2]), signs)
    np.testing.assert_array_equal(moved[2], 0.0)


def test_the_favorable_label_may_stand_first() -> None:
    flipped = GroupCounts.of(TABLE[:, ::-1], favorable=0)
    moved = rule("equalized_odds", favorable=0).updated(np.zeros((3, 2)), flipped)
    np.testing.assert_allclose(moved[:, ::-1], rule("equalized_odds").updated(np.zeros((3, 2)), EXACT))


def test_steps_add_up_within_the_bound() -> None:
    step = 2.0 * 0.2**3 / 0.0424
    once = rule().updated(np.zeros((3, 2)), EXACT)
    assert once[0, 1] == pytest.approx(step)
    assert rule().updated(once, EXACT)[0, 1] == pytest.approx(2 * step)
    assert rule(learning_rate=1e3).updated(once, EXACT)[0, 1] == pytest.approx(math.log(4.0))


def test_small_and_missing_groups_keep_their_multipliers() -> None:
    before = np.array([[0.0, 0.3], [0.0, 0.1], [0.0, 0.0]])
    np.testing.assert_array_equal(rule(min_group_size=201).updated(before, EXACT), before)
    nobody = GroupCounts.of(np.zeros_like(TABLE), favorable=1)
    np.testing.assert_array_equal(rule().updated(before, nobody), before)


def test_each_label_weighs_in_total_what_it_weighed() -> None:
    multipliers = np.log([[1.0, 2.0], [1.0, 0.5], [1.0, 1.0]])
    weights = rule().weights(multipliers, EXACT)
    np.testing.assert_allclose(weights[:2], [[1.0, 1.6], [1.0, 0.4]])  # 100 * 1.6 + 100 * .4 = 200
    assert rule(max_weight=1.5).weights(multipliers, EXACT).max() == 1.5
    noisy = GroupCounts.of(-TABLE, favorable=1)
    assert np.isfinite(rule().weights(multipliers, noisy)).all()


@pytest.mark.parametrize("constraint", ["equal_opportunity", "demographic_parity"])
def test_a_planted_gap_is_closed_without_looking_at_the_group(constraint: Constraint) -> None:
    """Two features; the second one is a proxy of the group, and the first says less of the smaller group's positives."""
    rng = np.random.default_rng(0)
    people = 6_000
    group = (rng.random(people) < 0.7).astype(np.int64)
    label = (rng.random(people) < np.where(group == 1, 0.45, 0.25)).astype(np.int64)
    features = np.c_[label * np.where(group == 1, 1.6, 1.0) + rng.normal(size=people), group + 0.5 * rng.normal(size=people)]
    gap = {"equal_opportunity": equal_opportunity_difference, "demographic_parity": demographic_parity_difference}[constraint]

    def decisions(weights: np.ndarray) -> np.ndarray:
        return LogisticRegression().fit(features, label, sample_weight=weights[group, label]).predict(features)

    steering, multipliers, weights = rule(constraint, learning_rate=4.0, max_weight=10.0), np.zeros((3, 2)), np.ones((3, 2))
    before = decisions(weights)
    for _ in range(15):
        table = np.zeros((3, 2, 2), dtype=np.int64)
        np.add.at(table, (group, label, decisions(weights)), 1)
        counts = GroupCounts.of(table, favorable=1)
        multipliers = steering.updated(multipliers, counts)
        weights = steering.weights(multipliers, counts)
    after = decisions(weights)
    assert gap(label, before, sensitive_features=group) > 0.2
    assert gap(label, after, sensitive_features=group) < 0.03
    assert accuracy_score(label, after) > accuracy_score(label, before) - 0.05
