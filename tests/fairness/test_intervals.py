"""Coverage of the intervals for exact counts: by exact enumeration for two groups, by seeded simulation for more."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedethos.fairness.counts import Count, GroupCounts, Rates
from fedethos.fairness.estimates import gap_estimates, overall_estimates
from fedethos.fairness.histograms import EDGES
from fedethos.fairness.intervals import (
    UNDEFINED,
    Estimate,
    Interval,
    contrast,
    critical,
    critical_for_pairs,
    difference_band,
    estimate,
    minimum_band,
    proportion,
    ratio_band,
    wilson,
    worst_difference_band,
)
from fedethos.fairness.ranking import roc_auc, roc_auc_rate

Z = critical()
ORDINARY = np.linspace(0.05, 0.95, 19)
EXTREME = np.concatenate([np.geomspace(1e-4, 0.05, 10), [0.1, 0.3, 0.5, 0.7, 0.9], 1 - np.geomspace(1e-4, 0.05, 10)])


def rates(successes, trials):
    def exact(values):
        return Count(values, np.zeros_like(values))

    successes = np.asarray(successes, dtype=np.float64)
    return Rates(exact(successes), exact(np.asarray(trials, dtype=np.float64) - successes))


def covers(band, truth):
    return (band.low <= truth + 1e-12) & (truth - 1e-12 <= band.high)


def all_outcomes(n1, n2):
    """Every pair of success counts as [n1 + 1, n2 + 1, 2]."""
    return rates(np.stack(np.meshgrid(np.arange(n1 + 1), np.arange(n2 + 1), indexing="ij"), axis=-1), np.array([n1, n2]))


def exact_coverage(band, target, trials, grid):
    """Probability that ``band`` holds ``target(p1, p2)``, for every pair of true rates on the grid."""
    first, second = (stats.binom.pmf(np.arange(n + 1), n, grid[:, None]) for n in trials)
    return np.array(
        [[first[i] @ covers(band, target(p1, p2)) @ second[j] for j, p2 in enumerate(grid)] for i, p1 in enumerate(grid)],
    )


def signed(outcomes):
    return contrast(*(outcomes[..., np.array(group)] for group in (0, 1)), z=Z)


@pytest.mark.parametrize("trials", [(100, 100), (100, 130), (150, 150), (100, 300), (300, 600)])
def test_signed_contrast_covers_93_to_97_percent_from_100_in_each_denominator(trials):
    coverage = exact_coverage(signed(all_outcomes(*trials)), lambda p, q: p - q, trials, ORDINARY)
    assert coverage.min() >= 0.93
    assert coverage.max() <= 0.97


@pytest.mark.parametrize("trials", [(1, 1), (1, 200), (5, 5), (11, 11), (11, 300), (30, 60), (50, 50), (100, 100), (100, 400), (300, 300)])
def test_signed_contrast_covers_at_least_93_percent_elsewhere(trials):
    assert exact_coverage(signed(all_outcomes(*trials)), lambda p, q: p - q, trials, EXTREME).min() >= 0.93


@pytest.mark.parametrize("trials", [(1, 1), (11, 11), (11, 300), (50, 50), (100, 100), (100, 400), (300, 300)])
def test_two_group_bands_cover_at_least_93_percent_at_any_gap(trials):
    outcomes, grid = all_outcomes(*trials), np.concatenate([EXTREME, ORDINARY[::3]])
    assert exact_coverage(difference_band(outcomes), lambda p, q: abs(p - q), trials, grid).min() >= 0.93
    band = ratio_band(outcomes)
    band.high[0, 0], band.low[0, 0] = 1.0, 0.0  # nobody selected: the ratio is undefined and nothing is reported
    assert exact_coverage(band, lambda p, q: min(p, q) / max(p, q), trials, grid).min() >= 0.93


@pytest.mark.parametrize("trials", [(400, 200, 100, 60, 40), (8000, 800, 300, 60, 40), (40, 30, 20, 15, 11)])
@pytest.mark.parametrize("base", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_five_unequal_groups_are_covered_at_least_93_percent(trials, base, gap):
    rng = np.random.default_rng(11)
    truth = base + gap * np.array([0.0, 0.3, 0.5, 0.2, 1.0])
    other = 0.1 + gap * np.array([0.5, 0.0, 0.1, 0.3, 0.2])
    drawn, negatives = (rates(rng.binomial(trials, p, size=(2000, 5)), trials) for p in (truth, other))
    assert covers(difference_band(drawn), gap).mean() >= 0.93
    assert covers(ratio_band(drawn), truth.min() / truth.max()).mean() >= 0.93
    assert covers(minimum_band(drawn), truth.min()).mean() >= 0.93
    assert covers(worst_difference_band(drawn, negatives), gap).mean() >= 0.93


@pytest.mark.parametrize(("separation", "sizes"), [(0.0, (50, 150)), (1.5, (50, 150)), (3.0, (50, 150)), (4.5, (20, 60)), (1.5, (11, 11))])
def test_auc_is_covered_at_least_93_percent(separation, sizes):
    rng = np.random.default_rng(2)
    positives, negatives = (np.diff(stats.norm.cdf(np.append(np.insert(EDGES[1:-1], 0, -np.inf), np.inf), m, 1.5)) for m in (separation, 0))
    truth = roc_auc(positives * 1e9, negatives * 1e9)
    hits, draws = 0, 1500
    for x, y in zip(rng.multinomial(sizes[0], positives, draws), rng.multinomial(sizes[1], negatives, draws), strict=True):
        hits += covers(wilson(roc_auc_rate(x * 1.0, y * 1.0), z=Z), truth).item()
    assert hits / draws >= 0.93


@pytest.mark.parametrize("cells", [(0.2, 0.1, 0.1, 0.6), (0.02, 0.02, 0.06, 0.9), (0.3, 0.02, 0.05, 0.63)])
def test_overall_metrics_are_covered_at_least_93_percent(cells):
    rng = np.random.default_rng(8)
    tp, fn, fp, tn = cells
    truth = {
        "accuracy": tp + tn,
        "balanced_accuracy": (tp / (tp + fn) + tn / (tn + fp)) / 2,
        "f1": 2 * tp / (2 * tp + fp + fn),
    }
    hits, nobody = dict.fromkeys(truth, 0), Count(np.zeros(1), np.zeros(1))
    for counts in rng.multinomial(400, cells, 600):
        parts = [Count(np.array([float(c)]), np.zeros(1)) for c in counts]
        everyone = GroupCounts(
            true_positives=parts[0], false_negatives=parts[1], false_positives=parts[2], true_negatives=parts[3], mislabeled=nobody
        )
        for name, one in overall_estimates(everyone).items():
            hits[name] += one.low <= truth[name] <= one.high
    assert min(hits.values()) / 600 >= 0.93


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_and_its_hull_equal_scipy(counts):
    k, n = counts
    one, test = rates([k], [n]), stats.binomtest(k, n)
    reference, exact = test.proportion_ci(method="wilson"), test.proportion_ci(method="exact")
    assert np.ravel(wilson(one, z=Z)) == pytest.approx([reference.low, reference.high], abs=1e-12)
    few = min(k, n - k) < 6
    hull = [min(reference.low, exact.low), max(reference.high, exact.high)] if few else [reference.low, reference.high]
    assert np.ravel(proportion(one, z=Z)) == pytest.approx(hull, abs=1e-9)


def test_newcombe_published_example():
    band = contrast(rates([56], [70]), rates([48], [80]), z=Z)
    assert np.ravel(band) == pytest.approx([0.0524, 0.3339], abs=5e-5)  # Newcombe (1998), table II (a), method 10


def test_critical_values():
    assert critical() == pytest.approx(1.959964, abs=1e-6)
    assert critical_for_pairs(2) == pytest.approx(critical(), abs=1e-6)
    assert critical_for_pairs(5) == pytest.approx(3.858 / math.sqrt(2), abs=5e-4)  # Tukey's table, infinite degrees of freedom
    assert critical(at_once=3) == pytest.approx(stats.norm.isf((1 - 0.95 ** (1 / 3)) / 2), abs=1e-12)


cell = st.integers(0, 200)


@given(st.lists(st.tuples(cell, cell, cell, cell), min_size=2, max_size=5), st.sampled_from([0.0, 2.0]))
def test_estimates_are_ordered_and_within_their_range_or_undefined(rows, noise):
    groups = GroupCounts.of(np.array([[(tn, fp), (fn, tp)] for tp, fn, fp, tn in rows]), favorable=1, noise_variance=noise)
    for one in [*gap_estimates(groups, tolerance=0.1).values(), *overall_estimates(groups.total()).values()]:
        if one.value is None:
            assert one == UNDEFINED
        else:
            assert 0.0 <= one.low <= one.value + 1e-12
            assert one.value - 1e-12 <= one.high <= 1.0


def test_a_wide_interval_abstains_and_an_undefined_value_has_no_numbers():
    band = Interval(np.array([0.1]), np.array([0.31]))
    assert estimate(0.2, band, tolerance=0.1) == Estimate(0.2, 0.1, 0.31, abstained=True)
    assert estimate(0.2, band, tolerance=0.11).as_json() == {"value": 0.2, "low": 0.1, "high": 0.31, "abstained": False}
    assert estimate(math.nan, band) == UNDEFINED
    assert UNDEFINED.as_json() == {"value": None, "low": None, "high": None, "abstained": True}
