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
    best, their_tpr, their_fpr = fairlearn_rates(table, constraint)
    assert accuracy == pytest.approx(best, abs=3e-5)  # fairlearn looks at 50,000 rates only
    assert accuracy >= best - 1e-9
    selected = [(tpr[g] * table[g, 1].sum() + fpr[g] * table[g, 0].sum()) / table[g].sum() for g in range(len(table))]
    assert constraint != "demographic_parity" or np.ptp(selected) < 1e-9
    assert constraint == "demographic_parity" or np.ptp(tpr) < 1e-9
    assert constraint != "equalized_odds" or np.ptp(fpr) < 1e-9
