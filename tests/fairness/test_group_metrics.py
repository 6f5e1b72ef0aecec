"""Point values against fairlearn and scikit-learn on the pooled records."""

import fairlearn.metrics as fl
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.fairness import metrics
from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import EDGES, confusion, histogram
from fedethos.fairness.ranking import delong_variance, roc_auc

EXACT = 1e-12
GROUPS = 3


def pooled(seed, people, favorable):
    """Records of three sites, and the sum of their tables. Every group has both labels, as fairlearn's rates need."""
    rng = np.random.default_rng(seed)
    corners = np.array([(g, y) for g in range(GROUPS) for y in range(2)])
    group = np.concatenate([corners[:, 0], rng.integers(0, GROUPS, people)])
    label = np.concatenate([corners[:, 1], rng.integers(0, 2, people)])
    scores = rng.normal((label == favorable) * 2.0 - 1.0 + group / 2.0, 3.0)
    site = rng.integers(0, 3, len(label))
    table = sum(histogram(scores[site == s], label[site == s], group[site == s], groups=GROUPS, labels=2) for s in range(3))
    return scores, label, group, table


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), people=st.integers(10, 300), edge=st.integers(28, 36), favorable=st.integers(0, 1))
def test_equals_fairlearn_and_sklearn_on_pooled_predictions(seed, people, edge, favorable):
    scores, label, group, table = pooled(seed, people, favorable)
    truth, predicted = (label == favorable).astype(int), (scores >= EDGES[edge]).astype(int)
    counts = GroupCounts.of(confusion(table, edge), favorable=favorable)
    everyone = counts.total()

    for ours, reference in [
        (metrics.demographic_parity_difference, fl.demographic_parity_difference),
        (metrics.equalized_odds_difference, fl.equalized_odds_difference),
        (metrics.equal_opportunity_difference, fl.equal_opportunity_difference),
        (metrics.demographic_parity_ratio, fl.demographic_parity_ratio),
    ]:
        assert ours(counts) == pytest.approx(reference(truth, predicted, sensitive_features=group), abs=EXACT, nan_ok=True)
    frame = fl.MetricFrame(
        metrics={"s": fl.selection_rate, "t": fl.true_positive_rate, "f": fl.false_positive_rate, "a": sk.accuracy_score, "n": fl.count},
        y_true=truth,
        y_pred=predicted,
        sensitive_features=group,
    ).by_group
    assert counts.selection_rate.value == pytest.approx(frame["s"].to_numpy(), abs=EXACT)
    assert counts.tpr.value == pytest.approx(frame["t"].to_numpy(), abs=EXACT)
    assert counts.fpr.value == pytest.approx(frame["f"].to_numpy(), abs=EXACT)
    assert counts.accuracy.value == pytest.approx(frame["a"].to_numpy(), abs=EXACT)
    assert counts.people.value.tolist() == frame["n"].tolist()
    assert metrics.worst_group_accuracy(counts.accuracy) == pytest.approx(frame["a"].min(), abs=EXACT)
    assert metrics.accuracy(everyone) == pytest.approx(sk.accuracy_score(truth, predicted), abs=EXACT)
    assert metrics.balanced_accuracy(everyone) == pytest.approx(sk.balanced_accuracy_score(truth, predicted), abs=EXACT)
    assert metrics.f1(everyone) == pytest.approx(sk.f1_score(truth, predicted), abs=EXACT)

    scores_in_bins = np.searchsorted(EDGES[1:-1], scores, side="right")
    by_label = table.sum(axis=0).astype(float)
    assert roc_auc(by_label[favorable], by_label[1 - favorable]) == pytest.approx(sk.roc_auc_score(truth, scores_in_bins), abs=EXACT)


def counts_of(rows):
    """GroupCounts from rows of (tp, fn, fp, tn)."""
    return GroupCounts.of(np.array([[(tn, fp), (fn, tp)] for tp, fn, fp, tn in rows]), favorable=1)


def test_a_group_without_positives_is_left_out_where_fairlearn_counts_it_as_zero():
    counts = counts_of([(8, 2, 1, 9), (6, 4, 2, 8), (0, 0, 5, 5)])
    assert metrics.equal_opportunity_difference(counts) == pytest.approx(0.2)  # fairlearn: 0.8, a gap nobody measured
    assert np.isnan(counts.tpr.value[2])
    truth, predicted = [1] * 10 + [0] * 4, [1] * 8 + [0] * 2 + [1, 0, 1, 0]
    assert fl.equal_opportunity_difference(truth, predicted, sensitive_features=["a"] * 10 + ["b"] * 4) == pytest.approx(0.8)


def test_a_gap_needs_two_groups():
    counts = counts_of([(8, 2, 1, 9), (0, 0, 5, 5), (0, 0, 0, 0)])
    assert metrics.demographic_parity_difference(counts) == pytest.approx(0.5 - 0.45)
    assert np.isnan(metrics.equal_opportunity_difference(counts))
    assert np.isnan(metrics.equalized_odds_difference(counts))
    assert np.isnan(metrics.demographic_parity_ratio(counts_of([(0, 3, 0, 3), (0, 1, 0, 9)])))


def test_overall_metrics_without_a_class():
    nobody = counts_of([(0, 0, 0, 0)])
    assert np.isnan([metrics.accuracy(nobody), metrics.balanced_accuracy(nobody), metrics.f1(nobody)]).all()
    assert np.isnan(metrics.worst_group_accuracy(nobody.accuracy))
    assert np.isnan(metrics.balanced_accuracy(counts_of([(0, 0, 3, 4)])))
    assert metrics.f1(counts_of([(0, 0, 3, 4)])) == 0.0


def test_auc_of_constant_and_of_perfect_scores():
    one, other, empty = np.zeros(64), np.zeros(64), np.zeros(64)
    one[10], other[50] = 7, 9
    assert roc_auc(one, one) == 0.5
    assert roc_auc(other, one) == 1.0
    assert roc_auc(one, other) == 0.0
    assert np.isnan(roc_auc(one, empty))


def test_delong_variance_equals_a_plain_loop_over_people():
    rng = np.random.default_rng(3)
    x, y = rng.integers(2, 9, 40), rng.integers(0, 7, 25)
    wins = (x[:, None] > y) + (x[:, None] == y) / 2  # psi of DeLong et al. (1988)
    expected = wins.mean(axis=1).var(ddof=1) / 40 + wins.mean(axis=0).var(ddof=1) / 25
    assert delong_variance(np.bincount(x, minlength=64) * 1.0, np.bincount(y, minlength=64) * 1.0) == pytest.approx(expected, abs=EXACT)
