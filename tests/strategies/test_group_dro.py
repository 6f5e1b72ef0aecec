"""Group DRO: its weights by the paper's recursion, its losses by scikit-learn, and what it does to the worst group."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from fedethos.fairness.histograms import EDGES, histogram
from fedethos.fairness.layout import Layout
from fedethos.strategies.group_dro import CUTS, MAX_LOSS, group_losses, group_weights, updated

PEOPLE = np.array([300.0, 100.0, 0.0])


def test_the_weights_follow_the_recursion_of_the_paper() -> None:
    """q <- q exp(eta l) / Z from the groups' shares; a person's weight is q over the share."""
    losses = [np.array([0.3, 0.9, 0.0]), np.array([0.4, 0.6, 0.0])]
    theta = np.zeros(3)
    q = PEOPLE[:2] / 400
    for loss in losses:
        theta = updated(theta, loss, PEOPLE, learning_rate=0.5, max_weight=4.0, least=11)
        q = q * np.exp(0.5 * loss[:2])
        q /= q.sum()
        weights = group_weights(theta, PEOPLE, max_weight=4.0)
        np.testing.assert_allclose(weights[:2], q / (PEOPLE[:2] / 400), rtol=1e-12)
        assert (weights[:2] * PEOPLE[:2]).sum() == pytest.approx(400)


def test_weights_stay_bounded_and_can_come_back() -> None:
    theta = np.zeros(3)
    for _ in range(50):
        theta = updated(theta, np.array([0.1, 2.0, 0.0]), PEOPLE, learning_rate=3.0, max_weight=4.0, least=11)
    weights = group_weights(theta, PEOPLE, max_weight=4.0)
    assert weights.max() <= 4.0
    assert weights.min() > 0.0
    for _ in range(3):
        theta = updated(theta, np.array([2.0, 0.1, 0.0]), PEOPLE, learning_rate=3.0, max_weight=4.0, least=11)
    back = group_weights(theta, PEOPLE, max_weight=4.0)
    assert back[0] > back[1]


def test_small_groups_and_unknown_move_with_the_average() -> None:
    people = np.array([300.0, 100.0, 4.0, 50.0])
    theta = updated(np.zeros(4), np.array([0.2, 0.6, 4.0, 4.0]), people, learning_rate=1.0, max_weight=4.0, least=11)
    np.testing.assert_allclose(theta, [-0.1, 0.3, 0.0, 0.0], atol=1e-12)
    few = np.full(4, -2.0)  # noise alone
    np.testing.assert_array_equal(updated(theta, np.ones(4), few, learning_rate=1.0, max_weight=4.0, least=11), theta)
    np.testing.assert_allclose(group_weights(np.zeros(4), few, max_weight=4.0), 1.0)


@pytest.mark.parametrize("favorable", [0, 1])
def test_losses_are_cross_entropies_of_the_middle_of_the_bins(favorable: int) -> None:
    inner = EDGES[list(CUTS)]
    middle = np.r_[inner[0] - 1, (inner[1:] + inner[:-1]) / 2, inner[-1] + 1]
    rng = np.random.default_rng(0)
    scores, group = rng.choice(middle[1:-1], 400), rng.integers(0, 2, 400)
    label = rng.integers(0, 2, 400)
    full = {"sex": histogram(scores, label, group, groups=3, labels=2)}
    (table,) = Layout(attribute="sex", group_cuts=CUTS).tables(full).values()
    losses, people = group_losses(table, favorable)
    for one in (0, 1):
        own = group == one
        expected = log_loss(label[own] == favorable, 1 / (1 + np.exp(-scores[own])))
        assert losses[one] == pytest.approx(expected, rel=1e-9)
        assert people[one] == own.sum()
    assert losses[2] == people[2] == 0.0


def test_no_person_counts_more_than_the_bound_and_noise_gives_no_loss_outside_it() -> None:
    table = np.zeros((2, 2, len(CUTS) + 1), dtype=np.int64)
    table[0, 1, 0] = 7  # surely wrong
    table[1, 0, 3], table[1, 1, 4] = -5, 6  # noise
    losses, _ = group_losses(table, 1)
    assert losses[0] == MAX_LOSS
    assert 0.0 <= losses[1] <= MAX_LOSS


def test_a_larger_step_leaves_the_worst_group_a_smaller_loss() -> None:
    """Two groups whose labels follow different columns: a linear model serves the many, until the few weigh more."""
    rng = np.random.default_rng(1)
    group = (rng.random(4000) < 0.15).astype(np.int64)
    x = rng.normal(size=(4000, 2))
    label = (x[np.arange(4000), group] + 0.3 * rng.normal(size=4000) > 0).astype(np.int64)
    worst = []
    for rate in (0.0, 0.5, 2.0):
        theta, weights = np.zeros(3), np.ones(3)
        for _ in range(5):
            scores = LogisticRegression().fit(x, label, sample_weight=weights[group]).decision_function(x)
            (table,) = Layout(attribute="g", group_cuts=CUTS).tables({"g": histogram(scores, label, group, groups=3, labels=2)}).values()
            losses, people = group_losses(table, 1)
            theta = updated(theta, losses, people, learning_rate=rate, max_weight=6.0, least=11)
            weights = group_weights(theta, people, max_weight=6.0)
        worst.append(max(log_loss(label[group == one], 1 / (1 + np.exp(-scores[group == one]))) for one in (0, 1)))
    assert worst[0] > worst[1] + 0.05 > worst[2] + 0.1
