"""Rates of every label against scikit-learn and fairlearn; their intervals against known truths."""

import fairlearn.metrics as fl
import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.errors import FedethosError
from fedethos.fairness.classes import ClassCounts, macro_estimates
from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.estimates import overall_estimates
from fedethos.fairness.histograms import EDGES, check_tables, histogram
from fedethos.fairness.layout import FINE, SCORES, Layout
from fedethos.fairness.summary import summarise, summarise_scores
from fedethos.fairness.threshold import FIXED_EDGE

EXACT = 1e-12
LABELS = ["low", "middle", "high"]
CATEGORIES = {"sex": ["Female", "Male"]}


class People:
    """Labels, predictions, scores and sex (2: unknown) of ``people``; every group has every label, as fairlearn's rates need."""

    def __init__(self, seed=2, people=600):
        rng = np.random.default_rng(seed)
        corners = np.array([(g, y) for g in range(3) for y in range(3)])
        self.sex = np.concatenate([corners[:, 0], rng.choice(3, people, p=[0.5, 0.4, 0.1])])
        self.label = np.concatenate([corners[:, 1], rng.choice(3, people, p=[0.6, 0.25, 0.15])])
        right = rng.random(len(self.label)) < 0.6 + 0.1 * self.sex
        self.predicted = np.where(right, self.label, rng.integers(0, 3, len(self.label)))
        self.scores = rng.normal((self.label == 2) * 2.0 - 1.0, 2.0)

    @property
    def table(self):
        counts = np.zeros((3, 3, 3), dtype=np.int64)
        np.add.at(counts, (self.sex, self.label, self.predicted), 1)
        return counts

    @property
    def tables(self):
        everybody = np.zeros(len(self.label), dtype=np.int64)
        return {SCORES: histogram(self.scores, self.label, everybody, groups=1, labels=3)[0], "sex": self.table}

    def summary(self, **changes):
        arguments = {"edge": None, "categories": CATEGORIES, "label_values": LABELS, "favorable": "high"}
        return summarise(self.tables, **(arguments | {"min_group_size": 1, "tolerance": 1.0} | changes))


def plain(estimates):
    return {name: one.value for name, one in estimates.items()}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), people=st.integers(0, 300))
def test_equals_scikit_learn_and_fairlearn_on_pooled_predictions(seed, people):
    world = People(seed, people)
    summary, report = world.summary(), sk.classification_report(world.label, world.predicted, output_dict=True, zero_division=0)
    metrics = plain(summary.metrics)
    assert metrics["accuracy"] == pytest.approx(report["accuracy"], abs=EXACT)
    assert metrics["balanced_accuracy"] == pytest.approx(report["macro avg"]["recall"], abs=EXACT)
    if set(world.predicted) == {0, 1, 2}:
        assert metrics["f1"] == pytest.approx(report["macro avg"]["f1-score"], abs=EXACT)
    in_bins = np.searchsorted(EDGES[1:-1], world.scores, side="right")
    assert metrics["roc_auc"] == pytest.approx(sk.roc_auc_score(world.label == 2, in_bins), abs=EXACT)
    assert summary.classes.worst_class_recall.value == pytest.approx(min(report[str(y)]["recall"] for y in range(3)), abs=EXACT)
    for place, label in enumerate(LABELS):
        ours, theirs = plain(summary.classes.labels[label]), report[str(place)]
        assert ours["count"] == theirs["support"]
        assert ours["recall"] == pytest.approx(theirs["recall"], abs=EXACT)
        if (world.predicted == place).any():
            assert ours["precision"] == pytest.approx(theirs["precision"], abs=EXACT)
            assert ours["f1"] == pytest.approx(theirs["f1-score"], abs=EXACT)
        one, other = world.label == place, world.predicted == place
        rates = fl.MetricFrame(metrics=fl.true_positive_rate, y_true=one, y_pred=other, sensitive_features=world.sex)
        assert list(plain(summary.classes.groups["sex"][label]).values()) == pytest.approx(rates.by_group.tolist(), abs=EXACT)
        assert summary.classes.gaps["sex"][label].value == pytest.approx(rates.difference(), abs=EXACT)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), people=st.integers(0, 300), favorable=st.integers(0, 2))
def test_fairness_is_that_of_the_favorable_label_against_the_rest(seed, people, favorable):
    world = People(seed, people)
    fairness = world.summary(favorable=LABELS[favorable]).fairness["sex"]
    truth, predicted = world.label == favorable, world.predicted == favorable
    for name, ours in fairness.gaps.items():
        reference = getattr(fl, name)(truth, predicted, sensitive_features=world.sex)
        assert ours.value is None or ours.value == pytest.approx(reference, abs=EXACT)
    rates = {"selection_rate": fl.selection_rate, "tpr": fl.true_positive_rate, "fpr": fl.false_positive_rate}
    frame = fl.MetricFrame(metrics=rates, y_true=truth, y_pred=predicted, sensitive_features=world.sex).by_group
    right = fl.MetricFrame(metrics=sk.accuracy_score, y_true=world.label, y_pred=world.predicted, sensitive_features=world.sex).by_group
    for group, name in enumerate([*CATEGORIES["sex"], "unknown"]):
        ours = plain(fairness.groups[name])
        assert [ours[rate] for rate in rates] == pytest.approx(frame.iloc[group].tolist(), abs=EXACT)
        assert ours["accuracy"] == pytest.approx(right.iloc[group], abs=EXACT)


def test_two_labels_by_prediction_are_what_decisions_are():
    """Of two labels the macro recall is the balanced accuracy, and both intervals are Newcombe's."""
    table = np.array([[(500, 120), (90, 290)]])
    everyone = GroupCounts.of(table, favorable=1)
    macro, binary = macro_estimates(ClassCounts.of(table), everyone.accuracy), overall_estimates(everyone)
    for name in ("accuracy", "balanced_accuracy"):
        assert (macro[name].value, macro[name].low, macro[name].high) == pytest.approx(
            (binary[name].value, binary[name].low, binary[name].high), abs=EXACT
        )


@pytest.mark.parametrize("noise", [0.0, 5.0])
@pytest.mark.parametrize(
    "cells",
    [
        [(0.40, 0.05, 0.05), (0.05, 0.15, 0.05), (0.05, 0.05, 0.15)],
        [(0.70, 0.04, 0.02), (0.06, 0.08, 0.02), (0.01, 0.02, 0.05)],
    ],
)
def test_macro_metrics_and_the_worst_recall_are_covered_at_least_93_percent(cells, noise):
    rng, cells = np.random.default_rng(6), np.array(cells)
    recall, precision = np.diag(cells) / cells.sum(axis=1), np.diag(cells) / cells.sum(axis=0)
    truth = {
        "accuracy": np.trace(cells),
        "balanced_accuracy": recall.mean(),
        "f1": (2 * precision * recall / (precision + recall)).mean(),
        "worst": recall.min(),
    }
    hits = dict.fromkeys(truth, 0)
    for drawn in rng.multinomial(600, cells.ravel(), 300):
        counts = np.rint(drawn + rng.normal(0.0, noise, 9)).astype(np.int64).reshape(1, 3, 3)
        world = People()
        world_tables = {SCORES: world.tables[SCORES], "overall": counts}
        summary = summarise(
            world_tables,
            edge=None,
            categories={},
            label_values=LABELS,
            favorable="high",
            min_group_size=1,
            tolerance=1.0,
            noise_variance=noise**2,
        )
        for name, one in {**summary.metrics, "worst": summary.classes.worst_class_recall}.items():
            if name in truth:
                hits[name] += one.low <= truth[name] <= one.high
    assert min(hits.values()) / 300 >= 0.93


def test_noise_in_the_rest_is_that_of_all_its_cells():
    counts = GroupCounts.of(People().table, favorable=2, noise_variance=4.0)
    assert counts.true_positives.variance.tolist() == [4.0] * 3
    assert counts.false_positives.variance.tolist() == counts.false_negatives.variance.tolist() == [8.0] * 3
    assert counts.negatives.variance.tolist() == [24.0] * 3
    assert counts.accuracy.successes.variance.tolist() == [12.0] * 3
    assert counts.accuracy.failures.variance.tolist() == [24.0] * 3


def test_a_withheld_group_shows_no_recall_either():
    world = People()
    world.sex[:] = np.where(world.sex == 2, 0, world.sex)
    world.sex[:5] = 2
    summary = world.summary(min_group_size=11)
    assert summary.fairness["sex"].withheld == ("Male", "unknown")
    assert all(summary.classes.groups["sex"][label]["unknown"].value is None for label in LABELS)
    assert all(summary.classes.gaps["sex"][label].value is None for label in LABELS)


def test_a_label_without_people_has_no_recall_and_leaves_no_macro_mean():
    world = People()
    world.label[world.label == 1] = 0
    summary = world.summary()
    assert summary.classes.labels["middle"]["recall"].value is None
    assert summary.metrics["balanced_accuracy"].value is None
    assert summary.classes.worst_class_recall.value is not None


def test_histograms_and_thresholds_never_decide_among_several_labels():
    world = People()
    full = {"sex": histogram(world.scores, world.label, world.sex, groups=3, labels=3)}
    for act in (
        lambda: Layout(FINE, FIXED_EDGE).tables(full),
        lambda: Layout(FINE, 30).shapes(CATEGORIES, 3),
        lambda: Layout(attribute="sex", group_cuts=FINE).shapes(CATEGORIES, 3),
        lambda: summarise(full, edge=32, categories=CATEGORIES, label_values=LABELS, favorable="high", min_group_size=1, tolerance=1.0),
    ):
        with pytest.raises(FedethosError, match="AGG-780"):
            act()
    with pytest.raises(FedethosError, match="AGG-781"):
        GroupCounts.of(np.zeros((1, 4, 3), dtype=np.int64), favorable=0)


def test_scores_alone_tell_the_auc_and_nothing_else():
    world = People()
    told = summarise_scores(world.tables[SCORES], edge=FIXED_EDGE, favorable=2, noise_variance=0.0)
    assert set(told) == {"roc_auc"}
    assert told["roc_auc"].value == pytest.approx(world.summary().metrics["roc_auc"].value)


def test_tables_by_predicted_label_are_what_a_layout_asks_for():
    world = People()
    shapes = Layout(FINE, FIXED_EDGE).shapes(CATEGORIES, 3)
    assert shapes == {SCORES: (3, 64), "sex": (3, 3, 3)}
    check_tables(world.tables, shapes)
