"""The whole room: tables of several sites in, the sections of result.json out."""

import json

import fairlearn.metrics as fl
import numpy as np
import pytest
import sklearn.metrics as sk

from fedethos.errors import FedethosError
from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.estimates import gap_estimates
from fedethos.fairness.histograms import EDGES, OVERALL, histogram, pool, table_shapes
from fedethos.fairness.intervals import Estimate
from fedethos.fairness.layout import FINE, Layout
from fedethos.fairness.summary import summarise
from fedethos.fairness.verdict import four_fifths_rule, judge

CATEGORIES = {"sex": ["Female", "Male"], "race": ["White", "Black", "Other"]}
METRICS = {"accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy"}
GAPS = {"demographic_parity_difference", "demographic_parity_ratio", "equalized_odds_difference", "equal_opportunity_difference"}
RATES = {"selection_rate", "tpr", "fpr", "accuracy", "count"}
EDGE = 32


class World:
    """2,000 people, of whom ``few`` are of race Other and nobody's sex is missing; women are selected less often."""

    def __init__(self, few=100):
        rng = np.random.default_rng(4)
        self.groups = {"sex": rng.integers(0, 2, 2000), "race": rng.choice([0, 1, 3], 2000, p=[0.7, 0.2, 0.1])}
        self.groups["race"][:few] = 2
        self.label = (rng.random(2000) < 0.4).astype(np.int64)
        self.scores = rng.normal(self.label * 4.0 - 2.4 + 0.8 * self.groups["sex"], 2.0)
        shapes = table_shapes(CATEGORIES, labels=2)
        self.sites = [
            {
                name: histogram(self.scores[rows], self.label[rows], self.groups[name][rows], groups=shape[0], labels=2)
                for name, shape in shapes.items()
            }
            for rows in np.array_split(np.arange(2000), 4)
        ]
        self.tables = pool(self.sites, shapes)

    def summary(self, **changes):
        arguments = {
            "edge": EDGE,
            "categories": CATEGORIES,
            "label_values": ["no", "yes"],
            "favorable": "yes",
            "min_group_size": 11,
            "tolerance": 0.1,
        }
        return summarise(self.tables, **(arguments | changes))


def test_plain_numbers_equal_fairlearn_and_sklearn_on_all_people():
    world = World()
    exact_auc = sk.roc_auc_score(world.label, world.scores)
    plain = world.summary(exact_auc=exact_auc).plain()
    predicted = world.scores >= EDGES[EDGE]
    assert plain["metrics"]["accuracy"] == pytest.approx(sk.accuracy_score(world.label, predicted), abs=1e-12)
    assert plain["metrics"]["f1"] == pytest.approx(sk.f1_score(world.label, predicted), abs=1e-12)
    assert plain["metrics"]["roc_auc"] == exact_auc
    worst = []
    for attribute, group in world.groups.items():
        for name in GAPS:
            reference = getattr(fl, name)(world.label, predicted, sensitive_features=group)
            assert plain["fairness"][attribute][name] == pytest.approx(reference, abs=1e-12)
        worst += [sk.accuracy_score(world.label[group == g], predicted[group == g]) for g in set(group)]
    assert plain["metrics"]["worst_group_accuracy"] == pytest.approx(min(worst), abs=1e-12)


def test_sections_hold_exactly_the_keys_of_result_json():
    summary = World().summary()
    for rendered in (summary.as_json(), summary.plain()):
        assert json.loads(json.dumps(rendered, allow_nan=False)) == rendered
        assert set(rendered) == {"metrics", "fairness"}
        assert set(rendered["metrics"]) == METRICS
        assert list(rendered["fairness"]) == ["sex", "race"]
        for attribute, names in CATEGORIES.items():
            section = rendered["fairness"][attribute]
            assert set(section) == GAPS | {"groups"}
            assert list(section["groups"]) == [*names, "unknown"]
            assert all(set(group) == RATES for group in section["groups"].values())
    assert set(summary.as_json()["metrics"]["accuracy"]) == {"value", "low", "high", "abstained"}


def test_intervals_hold_the_value_and_the_auc_of_the_bins_is_near_the_exact_one():
    world = World()
    metrics = world.summary().metrics
    assert all(one.low <= one.value <= one.high for one in metrics.values())
    assert metrics["roc_auc"].value == pytest.approx(sk.roc_auc_score(world.label, world.scores), abs=0.003)


def test_the_smaller_label_index_can_be_the_favorable_one():
    world = World()
    turned = {name: table[:, ::-1] for name, table in world.tables.items()}
    world_with_labels_turned = World()
    world_with_labels_turned.tables = turned
    assert world_with_labels_turned.summary(label_values=["yes", "no"]) == world.summary()


def test_an_empty_group_is_shown_as_empty():
    unknown = World().summary().fairness["sex"].groups["unknown"]
    assert unknown["count"] == Estimate(0.0, 0.0, 0.0, abstained=False)
    assert unknown["tpr"] == Estimate(None, None, None, abstained=True)


def test_a_small_group_is_withheld_with_its_complement_and_enters_no_comparison():
    world = World(few=5)
    race = world.summary().fairness["race"]
    assert race.withheld == ("Other", "unknown")
    assert set(race.groups["Other"].values()) == set(race.groups["unknown"].values()) == {Estimate(None, None, None, abstained=True)}
    shown = world.groups["race"] < 2
    reference = fl.demographic_parity_difference(
        world.label[shown], world.scores[shown] >= EDGES[EDGE], sensitive_features=world.groups["race"][shown]
    )
    assert race.gaps["demographic_parity_difference"].value == pytest.approx(reference, abs=1e-12)
    assert world.summary().verdicts_json()["race"]["withheld"] == ["Other", "unknown"]


def test_tolerance_abstains_from_gaps_and_group_rates_and_worst_group_only():
    strict, lax = World().summary(tolerance=1e-6), World().summary(tolerance=0.9)
    assert {name for name, one in strict.metrics.items() if one.abstained} == {"worst_group_accuracy"}
    assert all(one.abstained for one in strict.fairness["sex"].gaps.values())
    assert not any(one.abstained for one in lax.fairness["sex"].gaps.values())
    female = strict.fairness["sex"].groups["Female"]
    assert {name for name, one in female.items() if one.abstained} == RATES - {"count"}


def test_noise_widens_every_interval():
    def widths(summary):
        return [one.high - one.low for one in [*summary.metrics.values(), *summary.fairness["sex"].gaps.values()]]

    world = World()
    world.tables = Layout(FINE, EDGE).tables(world.tables)
    noisy, exact = (world.summary(edge=None, noise_variance=variance) for variance in (9.0, 0.0))
    assert all(wide > narrow for wide, narrow in zip(widths(noisy), widths(exact), strict=True))
    count = noisy.fairness["sex"].groups["Female"]["count"]
    assert count.high - count.value == pytest.approx(1.959964 * np.sqrt(9.0 * 4), rel=1e-6)


def test_full_histograms_are_never_taken_for_noisy_tables():
    with pytest.raises(FedethosError, match="AGG-736"):
        World().summary(noise_variance=9.0)


def test_a_job_without_sensitive_attributes_has_overall_metrics_only():
    world = World()
    overall = {OVERALL: world.tables["sex"].sum(axis=0, keepdims=True)}
    world.tables = overall
    summary = world.summary(categories={})
    assert summary.fairness == {}
    assert summary.metrics["worst_group_accuracy"].value == summary.metrics["accuracy"].value


def test_nobody_means_nothing_is_defined():
    world = World()
    world.tables = {name: table * 0 for name, table in world.tables.items()}
    summary = world.summary()
    assert all(one.value is None and one.abstained for one in summary.metrics.values())
    assert summary.fairness["sex"].verdict.status == "none"


def groups_of(rows):
    """GroupCounts from rows of (tp, fn, fp, tn)."""
    return GroupCounts.of(np.array([[(tn, fp), (fn, tp)] for tp, fn, fp, tn in rows]), favorable=1)


def verdict_of(rows, tolerance=0.1):
    groups = groups_of(rows)
    names = [f"group {index}" for index in range(len(rows))]
    return judge(groups, names, groups.total(), gap_estimates(groups, tolerance=tolerance), min_group_size=11)


def test_a_measured_verdict_names_the_largest_gap():
    verdict = verdict_of([(800, 200, 100, 900), (500, 500, 100, 900)])
    assert verdict.status == "measured"
    assert verdict.four_fifths == "fail"  # selection rates .30 and .45
    assert "equal-opportunity difference" in verdict.sentence
    assert "true positive rate is lowest for group 1 and highest for group 0" in verdict.sentence
    by_false_positives = verdict_of([(800, 200, 100, 900), (780, 220, 500, 500)])
    assert "equalized-odds difference" in by_false_positives.sentence
    assert "false positive rate is lowest for group 0 and highest for group 1" in by_false_positives.sentence


def test_no_gap_is_named_when_none_is_measurable():
    assert "No gap between groups is measurable" in verdict_of([(9, 3, 2, 20), (8, 4, 3, 19)]).sentence


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([(500, 500, 480, 520), (800, 200, 100, 900)], "in group 0 the true positive rate"),
        ([(1000, 0, 1000, 0), (1000, 0, 1000, 0)], "in group 0 and group 1"),  # constant: every gap is 0
        ([(90, 10, 500, 1500), (90, 10, 500, 1500)], "selects 28.1% of the people"),  # .28 against a base rate of .048
        ([(200, 800, 10, 990), (200, 800, 10, 990)], "selects 10.5% of the people"),  # .1 against .5
        ([(9, 1, 10, 900), (9, 1, 10, 900)], "no group has 11 people"),
    ],
)
def test_a_near_constant_model_gets_no_verdict(rows, reason):
    verdict = verdict_of(rows)
    assert (verdict.status, verdict.four_fifths) == ("none", None)
    assert verdict.sentence.startswith("No verdict: ")
    assert reason in verdict.sentence


def test_a_group_with_too_few_of_a_label_is_not_held_against_the_model():
    assert verdict_of([(800, 200, 100, 900), (790, 210, 100, 900), (0, 5, 1, 30)]).status == "measured"


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(0.8, 0.9, "pass"), (0.5, 0.79, "fail"), (0.79, 0.81, "cannot tell"), (0.5, 0.8, "cannot tell"), (None, None, "cannot tell")],
)
def test_four_fifths_rule_uses_the_whole_interval(low, high, answer):
    assert four_fifths_rule(Estimate(None if low is None else 0.8, low, high, abstained=False)) == answer
