"""FedFB: its steps by hand, for two groups and for more, and a planted gap that it closes, measured by fairlearn."""

import numpy as np
import pytest
from fairlearn.metrics import demographic_parity_difference, equal_opportunity_difference
from sklearn.linear_model import LogisticRegression

from fedethos.fairness.counts import GroupCounts
from fedethos.strategies.controller import Constraint
from fedethos.strategies.fedfb import FedFB

# (group, label, prediction), unknown last. Selection rates .3 and .6, true positive rates .4 and .7, false positive rates .2 and .4
TABLE = np.array([[[80, 20], [60, 40]], [[60, 40], [60, 140]], [[5, 5], [5, 5]]])
COUNTS = GroupCounts.of(TABLE, favorable=1)
ONES = np.ones((3, 2))


def rule(constraint: Constraint, **changes: object) -> FedFB:
    values = {"constraint": constraint, "favorable": 1, "learning_rate": 0.05, "max_weight": 4.0, "min_group_size": 1}
    return FedFB(**(values | changes))


def test_demographic_parity_moves_both_groups_by_the_same_part_of_all_people() -> None:
    """500 people, 200 and 300. F_1 = .3, mu = (-.3, .3), mu / |mu| = (-1, 1) / sqrt 2."""
    step = 0.05 / np.sqrt(2.0)
    first, second = 1.0 - step / 0.4, 1.0 + step / 0.6  # negatives: lambda / p_a
    np.testing.assert_allclose(rule("demographic_parity").updated(ONES, COUNTS), [[first, 2.0 - first], [second, 2.0 - second], [1.0, 1.0]])


def test_equal_opportunity_takes_a_step_of_alpha() -> None:
    """Losses of the positives .6 and .3: lambda of the second group falls by .05, that of the first grows; shares .2 and .4."""
    moved = rule("equal_opportunity").updated(ONES, COUNTS)
    np.testing.assert_allclose(moved, [[1.0, 1.25], [1.0, 0.875], [1.0, 1.0]])
    np.testing.assert_allclose(rule("equal_opportunity").updated(moved, COUNTS)[:2, 1], [1.5, 0.75])


def test_equalized_odds_shares_the_step_between_the_labels() -> None:
    """mu = (-.3, .2): false positive rates .2 and .4 of 100 people each."""
    size = np.hypot(0.3, 0.2)
    of_positives, of_negatives = 0.05 * 0.3 / size, 0.05 * 0.2 / size
    expected = [[1 - of_negatives / 0.2, 1 + of_positives / 0.2], [1 + of_negatives / 0.2, 1 - of_positives / 0.4], [1.0, 1.0]]
    np.testing.assert_allclose(rule("equalized_odds").updated(ONES, COUNTS), expected)


def test_lambda_stays_in_its_box() -> None:
    np.testing.assert_allclose(rule("equal_opportunity", learning_rate=9.0).updated(ONES, COUNTS)[:2, 1], [3.0, 0.0])  # all of .6 for .2
    np.testing.assert_allclose(rule("equal_opportunity", learning_rate=9.0, max_weight=1.5).updated(ONES, COUNTS)[:2, 1], [1.5, 0.0])
    np.testing.assert_allclose(rule("demographic_parity", learning_rate=9.0).updated(ONES, COUNTS)[:2], [[0.0, 2.0], [2.0, 0.0]])


def test_three_groups_and_a_favorable_label_that_stands_first() -> None:
    """Losses of the positives .6, .3 and .2 of 100 people each, 600 in all: mu = (-.3, -.4), the first group gets what both lose."""
    table = np.array([[[50, 50], [60, 40]], [[50, 50], [30, 70]], [[50, 50], [20, 80]], [[0, 0], [0, 0]]])
    expected = np.ones((4, 2))
    expected[:3, 1] = 1 + 0.05 * np.array([0.7, -0.3, -0.4]) / 0.5 * 6
    np.testing.assert_allclose(rule("equal_opportunity").updated(np.ones((4, 2)), GroupCounts.of(table, favorable=1)), expected)
    flipped = rule("equal_opportunity", favorable=0).updated(np.ones((4, 2)), GroupCounts.of(table[:, ::-1], favorable=0))
    np.testing.assert_allclose(flipped, expected[:, ::-1])


@pytest.mark.parametrize("constraint", ["demographic_parity", "equal_opportunity", "equalized_odds"])
def test_small_groups_and_equal_rates_move_nothing(constraint: Constraint) -> None:
    before = np.array([[0.9, 1.2], [1.1, 0.8], [1.0, 1.0]])
    np.testing.assert_array_equal(rule(constraint, min_group_size=201).updated(before, COUNTS), before)
    np.testing.assert_array_equal(rule(constraint).updated(before, GroupCounts.of(-TABLE, favorable=1)), before)
    equal = GroupCounts.of(np.stack([TABLE[0], TABLE[0], TABLE[2]]), favorable=1)
    np.testing.assert_allclose(rule(constraint).updated(ONES, equal), ONES)


@pytest.mark.parametrize("constraint", ["equal_opportunity", "demographic_parity"])
def test_a_planted_gap_is_closed_without_looking_at_the_group(constraint: Constraint) -> None:
    rng = np.random.default_rng(0)
    people = 6_000
    group = (rng.random(people) < 0.7).astype(np.int64)
    label = (rng.random(people) < np.where(group == 1, 0.45, 0.25)).astype(np.int64)
    features = np.c_[label * np.where(group == 1, 1.6, 1.0) + rng.normal(size=people), group + 0.5 * rng.normal(size=people)]
    gap = {"equal_opportunity": equal_opportunity_difference, "demographic_parity": demographic_parity_difference}[constraint]

    def decisions(weights: np.ndarray) -> np.ndarray:
        return LogisticRegression().fit(features, label, sample_weight=weights[group, label]).predict(features)

    weights = np.ones((3, 2))
    before = gap(label, decisions(weights), sensitive_features=group)
    for _ in range(25):
        table = np.zeros((3, 2, 2), dtype=np.int64)
        np.add.at(table, (group, label, decisions(weights)), 1)
        weights = rule(constraint, learning_rate=0.01).updated(weights, GroupCounts.of(table, favorable=1))
    after = gap(label, decisions(weights), sensitive_features=group)
    assert before > 0.2
    assert after < 0.06
