"""Decision rules per group against fairlearn's ThresholdOptimizer, by hand, and under noise."""

import warnings

import numpy as np
import pytest
from fairlearn.postprocessing import ThresholdOptimizer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import BaseEstimator, ClassifierMixin

from fedethos.errors import FedethosError
from fedethos.fairness.decision_rules import DecisionRule, GroupRules
from fedethos.fairness.group_thresholds import Noise, group_rules, solve
from fedethos.fairness.roc import Roc, nonnegative

BINS = 6
EDGES = np.arange(BINS + 1.0) - 3.0
EXACT = Noise(variance=0.0, tolerance=100.0, min_group_size=1)
FAIRLEARN = {
    "demographic_parity": "demographic_parity",
    "equal_opportunity": "true_positive_rate_parity",
    "equalized_odds": "equalized_odds",
}


class Given(ClassifierMixin, BaseEstimator):
    """Scores that are known already."""

    def __sklearn_is_fitted__(self):
        return True

    def fit(self, X, y):
        return self

    def predict(self, X):
        return np.asarray(X)[:, 0]


def records(table):
    """One record per count: group, label, bin."""
    return np.repeat(np.indices(table.shape).reshape(3, -1).T, table.ravel(), axis=0).T


def fairlearn_rates(table, constraint):
    """(accuracy, true and false positive rate per group) of fairlearn's randomised predictor, as probabilities."""
    group, label, score = records(table)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = ThresholdOptimizer(
            estimator=Given(), constraints=FAIRLEARN[constraint], grid_size=50_000, prefit=True, predict_method="predict"
        ).fit(score[:, None].astype(float), label, sensitive_features=group)
        chance = fitted._pmf_predict(score[:, None].astype(float), sensitive_features=group)[:, 1]
    return rates(group, label, chance)


def rates(group, label, chance):
    accuracy = np.where(label == 1, chance, 1.0 - chance).mean()
    return accuracy, *(np.array([chance[(group == g) & (label == y)].mean() for g in np.unique(group)]) for y in (1, 0))


def our_rates(table, constraint, *, randomized=True):
    rules = group_rules(
        "sex",
        np.concatenate([table, np.zeros_like(table[:1])]),
        EDGES,
        constraint=constraint,
        favorable=1,
        pooled=0.0,
        randomized=randomized,
        noise=EXACT,
    )
    group, label, score = records(table)
    return rates(group, label, rules.chance(EDGES[score] + 0.5, group))


tables = hnp.arrays(np.int64, st.tuples(st.integers(2, 3), st.just(2), st.just(BINS)), elements=st.integers(0, 12))


@pytest.mark.parametrize("constraint", FAIRLEARN)
@settings(max_examples=25, deadline=None)
@given(table=tables)
def test_randomised_rules_are_fairlearns(constraint, table):
    table[:, :, 2] += 1  # fairlearn needs both labels in each group
    accuracy, tpr, fpr = our_rates(table, constraint)
    best, *_ = fairlearn_rates(table, constraint)
    assert accuracy == pytest.approx(best, abs=3e-5)  # fairlearn looks at 50,000 rates only
    assert accuracy >= best - 1e-9
    assert unfairness(table, constraint, tpr, fpr) < 1e-9


def unfairness(table, constraint, tpr, fpr):
    """The largest difference between groups in what the constraint equalises."""
    selected = (tpr * table[:, 1].sum(axis=-1) + fpr * table[:, 0].sum(axis=-1)) / table.sum(axis=(1, 2))
    gaps = {"demographic_parity": [selected], "equal_opportunity": [tpr], "equalized_odds": [tpr, fpr]}
    return max(np.ptp(one) for one in gaps[constraint])


@pytest.mark.parametrize("constraint", ["demographic_parity", "equal_opportunity"])
@settings(max_examples=20, deadline=None)
@given(shares=hnp.arrays(np.float64, (3, 2, BINS), elements=st.floats(0.01, 1.0)), seed=st.integers(0, 9))
def test_where_fairlearns_grid_holds_every_rate_the_rules_agree_to_rounding(constraint, shares, seed):
    rng = np.random.default_rng(seed)
    table = np.array([[rng.multinomial(people, one / one.sum()) for people, one in zip((30, 20), group, strict=True)] for group in shares])
    ours, theirs = our_rates(table, constraint), fairlearn_rates(table, constraint)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-9)
    assert unfairness(table, constraint, *ours[1:]) < 1e-9


# women: favorable label in bins 5, 4, 3 and 2 (10 people each), others below; men: everything one bin higher
BY_HAND = np.array(
    [
        [[0, 60, 40, 0, 0, 0], [0, 0, 10, 10, 10, 10]],
        [[0, 0, 60, 40, 0, 0], [0, 0, 0, 10, 10, 20]],
        [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]],
    ]
)


def deterministic(table, constraint="equal_opportunity", noise=EXACT, pooled=0.25):
    return group_rules("sex", table, EDGES, constraint=constraint, favorable=1, pooled=pooled, randomized=False, noise=noise)


def test_deterministic_thresholds_by_hand():
    """A common true positive rate of 3/4 misses 10 women and 10 men; the next higher, 1, favors 80 others for them."""
    rules = deterministic(BY_HAND)
    assert [rule.randomized for rule in rules.rules] == [False] * 3
    assert rules.rules[0] == DecisionRule.at(0.0)  # bins 3 to 5: 30 of 40 women, no false positive
    assert rules.rules[1] == DecisionRule.at(1.0)  # bins 4 and 5: 30 of 40 men, no false positive
    assert rules.rules[2] == DecisionRule.at(0.25)  # unknown keeps everybody's
    assert rules.pooled == (2,)


@settings(max_examples=60, deadline=None)
@given(
    table=hnp.arrays(np.int64, (4, 2, BINS), elements=st.integers(1, 40)),
    constraint=st.sampled_from(["demographic_parity", "equal_opportunity"]),
)
def test_deterministic_thresholds_equalise_the_rate_when_scores_are_spread_evenly_in_a_bin(table, constraint):
    rules = deterministic(table, constraint)
    places = [np.clip(rule.low - EDGES[:-1], 0.0, 1.0) for rule in rules.rules[:3]]  # share of each bin below the threshold
    kept = np.array([(counts * (1.0 - below)).sum(axis=-1) for counts, below in zip(table[:3], places, strict=True)])
    people = table[:3].sum(axis=-1)
    rate = kept[:, 1] / people[:, 1] if constraint == "equal_opportunity" else kept.sum(axis=-1) / people.sum(axis=-1)
    assert np.ptp(rate) < 1e-9


def test_equalized_odds_without_a_coin_is_refused():
    with pytest.raises(FedethosError, match="AGG-761"):
        deterministic(BY_HAND, "equalized_odds")


def test_a_table_with_other_bins_is_refused():
    with pytest.raises(FedethosError, match="AGG-762"):
        deterministic(BY_HAND[..., :4])


@pytest.mark.parametrize(
    ("people", "variance", "own"),
    [
        (97, 0.0, True),  # 1.96 * sqrt(1 / 4 / 97) = .0995
        (95, 0.0, False),
        (300, 100.0, True),  # 1.96 * sqrt(1 / 1200 + 6 * 25 / 300^2) = .098
        (300, 130.0, False),
    ],
)
def test_a_group_whose_rate_is_not_known_to_the_tolerance_keeps_the_pooled_threshold(people, variance, own):
    table = np.full((4, 2, BINS), 2000)
    table[1, 1] = np.array([0, 0, 0, 0, 0, people])
    rules = deterministic(table, noise=Noise(variance=variance, tolerance=0.1, min_group_size=11))
    assert rules.pooled == ((3,) if own else (1, 3))
    assert (rules.rules[1] == DecisionRule.at(0.25)) is not own


def test_one_known_group_has_nobody_to_be_equal_to():
    table = np.concatenate([BY_HAND[:1] * 100, BY_HAND[1:2] * 0, BY_HAND[2:]])
    rules = deterministic(table)
    assert rules.pooled == (0, 1, 2)
    assert set(rules.rules) == {DecisionRule.at(0.25)}


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(-50, 50)))
def test_the_projection_is_the_nearest_of_all_cells_that_are_not_negative(cells):
    cells = cells + max(0.0, 1.0 - cells.sum() / len(cells))
    found = nonnegative(cells)
    assert found.min() >= 0.0
    assert found.sum() == pytest.approx(cells.sum())
    step = cells - found  # optimal exactly when no direction that keeps the sum and the signs comes nearer (Karush, Kuhn and Tucker)
    level = step[found > 1e-9].max()
    assert step[found > 1e-9].min() == pytest.approx(level, abs=1e-6)
    assert (step[found <= 1e-9] <= level + 1e-6).all()


@settings(max_examples=100, deadline=None)
@given(
    table=hnp.arrays(np.int64, (3, 2, BINS), elements=st.integers(-60, 200)),
    constraint=st.sampled_from(list(FAIRLEARN)),
    randomized=st.booleans(),
)
def test_any_noisy_table_gives_rules(table, constraint, randomized):
    if constraint == "equalized_odds" and not randomized:
        return
    noise = Noise(variance=400.0, tolerance=1.0, min_group_size=1)
    rules = group_rules("sex", table, EDGES, constraint=constraint, favorable=1, pooled=0.0, randomized=randomized, noise=noise)
    assert all(EDGES[0] <= rule.low <= rule.high <= EDGES[-1] for rule in rules.rules)
    assert GroupRules.of_numbers("sex", rules.numbers).rules == rules.rules


@pytest.mark.parametrize(
    "numbers",
    [
        (),
        (0.0,) * 4,
        (1.0, 0.0, 0.0, 1.0, 1.0),
        (0.0, np.inf, 0.0, 1.0, 1.0),
        (0.0, 0.0, 0.5, 0.2, 1.0),
        (0.0, 0.0, -0.1, 0.2, 1.0),
        (np.nan,) * 5,
    ],
)
def test_rules_that_are_none_are_refused(numbers):
    with pytest.raises(FedethosError, match="AGG-760"):
        GroupRules.of_numbers("sex", numbers)


def test_a_rule_gives_each_score_its_chance():
    rule = DecisionRule(-1.0, 2.0, (0.1, 0.4, 0.9))
    assert rule.randomized
    assert rule.chance(np.array([-np.inf, -1.1, -1.0, 1.9, 2.0, np.inf])).tolist() == [0.1, 0.1, 0.4, 0.4, 0.9, 0.9]
    assert DecisionRule.at(0.5).chance(np.array([0.4, 0.5])).tolist() == [0.0, 1.0]


def test_the_hull_keeps_only_points_that_a_mixture_does_not_beat():
    roc = Roc(EDGES[::-1][:5], np.array([0.0, 0.1, 0.4, 0.5, 1.0]), np.array([0.0, 0.5, 0.6, 0.9, 1.0]), 10.0, 10.0)
    assert roc.hull().fpr.tolist() == [0.0, 0.1, 0.5, 1.0]
    assert solve([], "equal_opportunity", randomized=True) == []
