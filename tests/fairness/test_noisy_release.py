"""From a site's records to a released summary, with the real sampler: layout, threshold, suppression, 1,000 whole releases."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fedethos.errors import FedethosError
from fedethos.fairness.counts import Count, GroupCounts, Rates
from fedethos.fairness.histograms import BINS, EDGES, OVERALL, check_tables, confusion, histogram, pool
from fedethos.fairness.intervals import contrast, critical, difference_band
from fedethos.fairness.layout import DEFAULT_CUTS, FINE, SCORES, Layout, score_cuts
from fedethos.fairness.precision import GAPS, half_widths, people_needed, scenario_half_width, smallest_share
from fedethos.fairness.ranking import roc_auc
from fedethos.fairness.scenarios import outcome
from fedethos.fairness.summary import summarise, summarise_scores
from fedethos.fairness.suppression import withheld
from fedethos.fairness.threshold import base_rate_edge
from fedethos.job_scenarios import RecordScenario
from fedethos.privacy.counts import noisy_tables, sigma_for
from fedethos.privacy.discrete_gaussian import discrete_gaussian, discrete_gaussian_variance
from fedethos.privacy.events import CountRelease
from fedethos.privacy.randomness import SeededSource

CATEGORIES = {"sex": ["Female", "Male"], "race": ["White", "Black", "Other"]}
SITES = 5
ASKED = {
    "categories": CATEGORIES,
    "label_values": ["no", "yes"],
    "favorable": "yes",
    "min_group_size": 11,
    "tolerance": 0.1,
}


def people(rng, count, scale=2.0, offset=0.0):
    """Labels (a quarter favorable), scores (AUC about .88) and groups of so many people; nobody's sex is missing."""
    label = (rng.random(count) < 0.25).astype(np.int64)
    sex = (rng.random(count) < 0.67).astype(np.int64)
    race = rng.choice([0, 1, 2, 3], count, p=[0.86, 0.1, 0.039, 0.001])
    scores = scale * rng.normal(1.66 * label - 1.2 + 0.3 * sex, 1.0) + offset
    return label, scores, {"sex": sex, "race": race}


def full_tables(label, scores, groups):
    return {name: histogram(scores, label, groups[name], groups=len(CATEGORIES[name]) + 1, labels=2) for name in CATEGORIES}


def released(exact, layout, epsilon, seed):
    """Pooled noisy tables of sites that each hold a fifth of the counts, and the variance of a cell."""
    tables = layout.tables(exact)
    sigma = sigma_for(tables=len(tables), rows=1, epsilon=epsilon, delta=1e-5, adjacency="add-remove")
    release = CountRelease(sigma=sigma, rows=1, tables=len(tables), population="test")
    empty = {name: table * 0 for name, table in tables.items()}
    sites = [noisy_tables(tables if site == 0 else empty, release, SeededSource(seed, site)) for site in range(SITES)]
    shapes = {name: table.shape for name, table in tables.items()}
    return pool(sites, shapes, charged=True), SITES * discrete_gaussian_variance(sigma)


edges = st.integers(1, BINS - 1)
table = hnp.arrays(np.int64, (3, 2, BINS), elements=st.integers(0, 9))


@given(table, st.sets(edges, max_size=20), edges)
def test_a_layout_only_adds_up_bins(full, cuts, edge):
    layout = Layout(tuple(sorted(cuts)), edge)
    parts = layout.parts({"sex": full})
    bounds = [0, *sorted(cuts), BINS]
    for place, (low, high) in enumerate(itertools.pairwise(bounds)):
        assert parts["scores"][SCORES][:, place].tolist() == full[:, :, low:high].sum(axis=(0, 2)).tolist()
    assert (parts["groups"]["sex"] == confusion(full, edge)).all()
    shapes = layout.shapes({"sex": ["Female", "Male"]}, 2)
    assert shapes == {name: one.shape for name, one in layout.tables({"sex": full}).items()}


def test_parts_that_are_not_asked_for_are_not_built():
    full = {"sex": np.ones((3, 2, BINS), dtype=np.int64)}
    assert set(Layout(cuts=FINE).tables(full)) == {SCORES}
    assert set(Layout(edge=30).tables(full)) == {"sex"}
    assert Layout().tables(full) == {}
    assert Layout(edge=30).shapes({}, 2) == {OVERALL: (1, 2, 2)}


@pytest.mark.parametrize("layout", [{"cuts": (0, 5)}, {"cuts": (5, BINS)}, {"cuts": (5, 5)}, {"cuts": (9, 5)}, {"edge": 0}, {"edge": BINS}])
def test_edges_outside_the_bins_are_refused(layout):
    with pytest.raises(FedethosError, match="AGG-734"):
        Layout(**layout)


def test_default_cuts_are_symmetric_and_hold_the_fixed_threshold():
    assert EDGES[list(DEFAULT_CUTS)].tolist() == (-EDGES[list(DEFAULT_CUTS)][::-1]).tolist()
    assert 0.0 in EDGES[list(DEFAULT_CUTS)]


def test_without_noise_a_release_says_what_the_full_histograms_say():
    label, scores, groups = people(np.random.default_rng(1), 3000)
    full = full_tables(label, scores, groups)
    whole = summarise(full, edge=30, **ASKED).plain()
    release = summarise(Layout(FINE, 30).tables(full), edge=None, **ASKED).plain()
    assert release == whole


def test_noisy_tables_pool_as_they_are_and_exact_ones_may_not_be_noisy():
    shapes = {"sex": (1, 2, 2)}
    noisy = {"sex": np.array([[[-3, 4], [0, 9]]])}
    assert (pool([noisy, noisy], shapes, charged=True)["sex"] == 2 * noisy["sex"]).all()
    with pytest.raises(FedethosError, match="AGG-731"):
        pool([noisy], shapes)
    with pytest.raises(FedethosError, match="AGG-731"):
        check_tables({"sex": noisy["sex"] * 2**45}, shapes, charged=True)
    with pytest.raises(FedethosError, match="AGG-730"):
        check_tables({"sex": noisy["sex"] * 1.0}, shapes, charged=True)


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (2.0, 6.0), (8.0, 0.0)])
@pytest.mark.parametrize(("epsilon", "loss"), [(8.0, 0.005), (1.0, 0.02)])
def test_the_threshold_and_the_auc_survive_the_noise(scale, offset, epsilon, loss):
    """1,330 validation and 4,000 test people; mean loss of balanced accuracy against exact counts, and bias of the AUC."""
    rng = np.random.default_rng(3)
    losses, errors = [], []
    for seed in range(12):
        validation, test = (people(rng, count, scale, offset) for count in (1330, 4000))
        exact = full_tables(*validation)
        noisy, _ = released(exact, Layout(cuts=FINE), epsilon, seed)
        edge = base_rate_edge(noisy[SCORES], favorable=1)
        best, ours = (balanced_accuracy_score(test[0], test[1] >= EDGES[at]) for at in (base_rate_edge(exact["sex"], favorable=1), edge))
        losses.append(best - ours)
        scored, _ = released(full_tables(*test), Layout(score_cuts(noisy[SCORES]), edge), epsilon, seed + 100)
        errors.append(roc_auc(*(scored[SCORES][at].astype(float) for at in (1, 0))) - roc_auc_score(test[0], test[1]))
    assert np.mean(losses) < loss
    assert abs(np.mean(errors)) < 0.01 + loss


def test_scores_alone_give_the_overall_metrics_and_their_noise():
    label, scores, groups = people(np.random.default_rng(12), 3000)
    full = full_tables(label, scores, groups)
    table = full["sex"].sum(axis=0)
    whole = summarise(full, edge=30, **ASKED).metrics
    exact = summarise_scores(table, edge=30, favorable=1, noise_variance=0.0)
    assert exact == {name: whole[name] for name in exact}
    assert set(exact) == {"accuracy", "balanced_accuracy", "f1", "roc_auc"}
    rng, hits, truth = np.random.default_rng(13), dict.fromkeys(exact, 0), {name: one.value for name, one in exact.items()}
    for _ in range(1000):
        noisy = table + np.rint(rng.normal(0.0, 10.0, table.shape)).astype(np.int64)
        for name, one in summarise_scores(noisy, edge=30, favorable=1, noise_variance=100.0).items():
            hits[name] += one.low <= truth[name] <= one.high  # the noise alone: the interval allows for sampling too
    assert min(hits.values()) >= 930


def test_score_cuts_divide_the_people_and_need_some():
    _, scores, groups = people(np.random.default_rng(4), 20_000)
    table = histogram(scores, groups["sex"], groups["sex"] * 0, groups=1, labels=2)[0]
    cuts = score_cuts(table)
    inside = np.add.reduceat(table.sum(axis=0), [0, *cuts])
    assert 8 <= len(cuts) <= 15
    assert inside.max() < 2.5 * 20_000 / 16
    assert score_cuts(table * 0 - 1) == DEFAULT_CUTS


@given(hnp.arrays(np.int64, (2, BINS), elements=st.integers(-40, 40)))
def test_score_cuts_of_any_noisy_table_are_a_layout(scores):
    Layout(cuts=score_cuts(scores))


def test_1000_whole_releases_are_covered_and_small_groups_withheld():
    """Five sites of 800 test people, epsilon 8, real noise: signed contrasts 93 to 97 %, largest differences at least 93 %."""
    rng, draws = np.random.default_rng(6), 1000
    sigma = sigma_for(tables=3, rows=1, epsilon=8.0, delta=1e-5, adjacency="add-remove")
    variance = SITES * discrete_gaussian_variance(sigma)
    share, base = np.array([0.86, 0.1, 0.039, 0.001]), np.array([0.29, 0.2, 0.3, 0.2])  # of the people; with the favorable label
    fpr, tpr = np.array([0.05, 0.07, 0.07, 0.07]), np.array([0.62, 0.65, 0.5, 0.6])
    negatives = np.stack([(1 - base) * (1 - fpr), (1 - base) * fpr], axis=-1)
    positives = np.stack([base * (1 - tpr), base * tpr], axis=-1)
    cells = share[:, None, None] * np.stack([negatives, positives], axis=1)
    tables = rng.multinomial(4000, cells.ravel(), draws).reshape(draws, 4, 2, 2)
    noise = discrete_gaussian(sigma, SITES * tables.size, SeededSource(8)).reshape(SITES, *tables.shape).sum(axis=0)
    selection = base * tpr + (1 - base) * fpr

    counts = GroupCounts.of(tables + noise, favorable=1, noise_variance=variance)
    for rates, true in ((counts.selection_rate, selection), (counts.tpr, tpr), (counts.fpr, fpr)):
        low, high = contrast(rates[..., np.array(0)], rates[..., np.array(1)], z=critical())
        assert 0.93 <= np.mean((low <= true[0] - true[1]) & (true[0] - true[1] <= high)) <= 0.97

    hits = []
    shown = [tuple(sorted({0, 1, 2, 3} - set(withheld(counts.people[draw], 11)))) for draw in range(draws)]
    for groups in set(shown):
        here = [draw for draw in range(draws) if shown[draw] == groups]
        taken = counts.take(groups)
        for rates, true in ((taken.selection_rate, selection), (taken.tpr, tpr)):
            low, high = difference_band(rates[(np.array(here),)])
            gap = max(true[list(groups)]) - min(true[list(groups)])
            hits.append((low <= gap) & (gap <= high))
    assert np.mean(np.concatenate(hits)) >= 0.93
    assert sum(3 in groups for groups in shown) < 0.1 * draws  # some four people
    assert all({0, 1} <= set(groups) for groups in shown)


def test_an_empty_group_is_withheld_and_costs_nobody_else():
    label, scores, groups = people(np.random.default_rng(9), 4000)
    for seed in range(20):
        tables, variance = released(full_tables(label, scores, groups), Layout(DEFAULT_CUTS, 30), 8.0, seed)
        summary = summarise(tables, edge=None, noise_variance=variance, **ASKED)
        assert summary.fairness["sex"].withheld == ("unknown",)
        assert summary.fairness["sex"].gaps["demographic_parity_difference"].value is not None
        exact = summarise(full_tables(label, scores, groups), edge=30, **ASKED)
        assert summary.metrics["accuracy"].value == pytest.approx(exact.metrics["accuracy"].value, abs=0.01)
        assert summary.fairness["sex"].groups["Female"]["count"].value == pytest.approx((groups["sex"] == 0).sum(), abs=25)


def test_little_epsilon_abstains_instead_of_printing():
    label, scores, groups = people(np.random.default_rng(10), 1500)
    tables, variance = released(full_tables(label, scores, groups), Layout(DEFAULT_CUTS, 30), 0.2, 1)
    gaps = summarise(tables, edge=None, noise_variance=variance, **ASKED).fairness["race"].gaps
    assert all(gap.abstained for gap in gaps.values())


@pytest.mark.parametrize("variance", [0.0, 5.3, 209.0])
def test_expected_half_widths_are_what_simulations_give(variance):
    rng, shares, draws = np.random.default_rng(11), np.array([0.33, 0.67]), 400
    expected = half_widths(shares, 4000, favorable_share=0.25, noise_variance=variance)
    size, rate = 4000 * shares, {"demographic_parity_difference": (0.25, 1.0, 2), "equal_opportunity_difference": (0.5, 0.25, 1)}
    for gap, (p, part, cells) in rate.items():
        trials = np.rint(size * part).astype(int)
        hits = rng.binomial(trials, p, (draws, 2))
        noise, spread = rng.normal(0.0, np.sqrt(cells * variance), (2, draws, 2)), np.full((draws, 2), cells * variance)
        rates = Rates(Count(hits + noise[0], spread), Count(trials - hits + noise[1], spread))
        low, high = contrast(rates[..., np.array(0)], rates[..., np.array(1)], z=critical())
        assert np.mean(high - low) / 2 == pytest.approx(expected[gap], rel=0.05)


def test_planned_precision_is_consistent():
    facts = {"favorable_share": 0.25, "noise_variance": 5.3}
    for gap in GAPS:
        share = smallest_share(gap, 2, 4000, tolerance=0.1, **facts)
        assert (
            half_widths([share, 1 - share], 4000, **facts)[gap] <= 0.1 < half_widths([0.97 * share, 1 - 0.97 * share], 4000, **facts)[gap]
        )
        needed = people_needed(gap, [0.3, 0.7], 10_000, tolerance=0.05, **facts)
        assert half_widths([0.3, 0.7], needed, **facts)[gap] <= 0.05 < half_widths([0.3, 0.7], 0.97 * needed, **facts)[gap]
        assert people_needed(gap, [0.3, 0.7], 20, tolerance=0.05, **facts) is None
        assert smallest_share(gap, 5, 100, tolerance=0.05, **facts) is None


@pytest.mark.parametrize("variance", [0.0, 5.3])
@pytest.mark.parametrize("metric", ["error_rate", "false_positive_rate", "false_negative_rate"])
def test_a_scenarios_expected_half_width_is_what_releases_give(metric, variance):
    """300 releases of 4,000 people, of whom one tenth match; every decision is a coin, so that each rate is one half."""
    facts = {"favorable_share": 0.25, "noise_variance": variance}
    found = [_half(_outcome(metric, [[300, 100], [2700, 900], [0, 0]], seed, variance)) for seed in range(300)]
    assert np.mean(found) == pytest.approx(scenario_half_width(metric, 0.1, 4000, **facts), rel=0.05)


@pytest.mark.parametrize("variance", [0.0, 5.3])
def test_where_everybody_is_right_or_not_a_scenario_has_one_label(variance):
    facts = {"favorable_share": 0.25, "noise_variance": variance, "labels": 1}
    found = [_half(_outcome("error_rate", [[400], [3600], [0]], seed, variance)) for seed in range(300)]
    assert np.mean(found) == pytest.approx(scenario_half_width("error_rate", 0.1, 4000, **facts), rel=0.05)
    apart = half_widths([0.1, 0.9], 4000, **facts)["demographic_parity_difference"]
    spread = np.sqrt(0.25 / 400 + 0.25 / 3600 + 2 * variance / 4 * (1 / 400**2 + 1 / 3600**2))  # of right / (right + wrong)
    assert apart == pytest.approx(1.96 * spread, rel=0.02)


def test_a_scenarios_difference_is_that_of_two_groups():
    facts = {"favorable_share": 0.25, "noise_variance": 5.3}
    widths = {gap: scenario_half_width(gap, 0.2, 4000, **facts) for gap in (*GAPS, "equalized_odds_difference")}
    both = half_widths([0.2, 0.8], 4000, **facts)
    assert {gap: widths[gap] for gap in GAPS} == pytest.approx(both)
    assert widths["equalized_odds_difference"] > widths["equal_opportunity_difference"], "two differences have to hold at once"
    assert scenario_half_width("error_rate", 0.0001, 4000, **facts) == 0.5, "nothing is known of nobody"


def _outcome(metric, people, seed, variance):
    """Of a noisy release: ``people`` by group and label, decided by a coin."""
    rng = np.random.default_rng(seed)
    size = np.array(people)
    yes = rng.binomial(size, 0.5)
    exact = np.stack([size - yes, yes], axis=-1)
    table = exact + np.rint(rng.normal(0.0, np.sqrt(variance), exact.shape)).astype(np.int64)
    labels = ["no", "yes"][-size.shape[1] :]
    asked = RecordScenario(name="some", filter={"x": ["y"]}, metric=metric, limit=0.5)
    words = {"categories": {}, "slices": {asked.table: ["matching", "others"]}, "label_values": labels, "favorable": "yes"}
    tables = {asked.table: table, SCORES: np.zeros((len(labels), 2), dtype=np.int64)}
    summary = summarise(tables, edge=None, noise_variance=variance, min_group_size=10, tolerance=1.0, **words)
    return outcome(asked, summary.slices[asked.table])


def _half(found):
    return (found.value.high - found.value.low) / 2
