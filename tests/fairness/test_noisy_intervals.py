"""Coverage with privacy noise in every count: five sites with three tables at epsilon 8 (cell variance 5.3), 3 (29) and 1 (209),
and with one table at 8 (1.5). 4,000 simulations a case, so that a coverage of .93 is told from one of .95.
"""

import functools
import itertools

import numpy as np
import pytest
from scipy import stats

from fedethos.fairness.counts import Count, GroupCounts, Rates
from fedethos.fairness.intervals import (
    contrast,
    critical,
    difference_band,
    minimum_band,
    proportion,
    ratio_band,
    wilson,
    worst_difference_band,
)
from fedethos.fairness.ranking import roc_auc, roc_auc_rate

Z = critical()
DRAWS = 4000
VARIANCES = [1.5, 5.3, 29.0, 209.0]
ORDINARY = [0.05, 0.2, 0.5, 0.95]
EXTREME = [0.0, 0.01, 0.5, 1.0]


def pooled_noise(rng, variance, shape):
    """Sum over five sites of discrete Gaussians by their plain mass function, and its exact variance, near ``variance``."""
    sigma = np.sqrt(variance / 5)
    reach = int(8 * sigma) + 2
    mass = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    total = functools.reduce(np.convolve, [mass / mass.sum()] * 5)
    support = np.arange(-5 * reach, 5 * reach + 1)
    return support[np.searchsorted(np.cumsum(total), rng.random(shape))], float(total @ support**2)


def noisy_rates(rng, trials, truth, variance, told=None):
    """DRAWS noisy measurements of proportions ``truth`` [G] among ``trials`` people [G]. ``told``: the variance as reported."""
    trials, truth = np.asarray(trials), np.asarray(truth)
    successes = rng.binomial(trials, truth, size=(DRAWS, len(trials)))
    noise, actual = pooled_noise(rng, variance, (2, *successes.shape))
    spread = np.full(successes.shape, actual if told is None else told)
    return Rates(Count(successes + noise[0] * 1.0, spread), Count(trials - successes + noise[1] * 1.0, spread))


def coverage(band, truth, rates, least=1.0):
    """Share of the intervals that hold the truth, among measurements whose denominators are all at least ``least``."""
    reported = np.all(np.nan_to_num(rates.trials) >= least, axis=-1)
    holds = (band.low <= truth + 1e-12) & (truth - 1e-12 <= band.high)
    return holds[reported].mean() if reported.sum() >= DRAWS / 10 else 1.0


def signed(rates):
    return contrast(rates[..., np.array(0)], rates[..., np.array(1)], z=Z)


@pytest.mark.parametrize("variance", VARIANCES[:3])
@pytest.mark.parametrize("trials", [(100, 100), (100, 400), (300, 300)])
def test_signed_contrast_covers_93_to_97_percent_from_100_in_each_denominator(trials, variance):
    rng = np.random.default_rng(1)
    for truth in itertools.product(ORDINARY, repeat=2):
        rates = noisy_rates(rng, trials, truth, variance)
        limit = 0.97 if variance < 10 else 0.98  # more noise than sampling: a little wide where counts of some 5 are pooled
        assert 0.93 <= coverage(signed(rates), truth[0] - truth[1], rates) <= limit, truth


@pytest.mark.parametrize("variance", [1.5, 5.3, 209.0])
@pytest.mark.parametrize("trials", [(11, 11), (11, 300), (30, 60), (100, 400)])
def test_small_and_extreme_groups_are_covered_at_least_93_percent(trials, variance):
    rng = np.random.default_rng(2)
    for truth in itertools.product(EXTREME, repeat=2):
        rates = noisy_rates(rng, trials, truth, variance)
        assert coverage(signed(rates), truth[0] - truth[1], rates) >= 0.93, truth
        assert coverage(difference_band(rates), abs(truth[0] - truth[1]), rates) >= 0.93, truth
        assert coverage(proportion(rates[..., 0], z=Z), truth[0], rates[..., :1]) >= 0.93, truth
        if max(truth) > 0.0:
            assert coverage(ratio_band(rates), min(truth) / max(truth), rates) >= 0.93, truth


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("trials", [(8000, 800, 300, 60, 40), (40, 30, 20, 15, 11)])
@pytest.mark.parametrize(("base", "gap"), [(0.05, 0.0), (0.2, 0.1), (0.8, 0.1)])
def test_five_unequal_noisy_groups_are_covered_at_least_93_percent(trials, variance, base, gap):
    rng = np.random.default_rng(3)
    truth = base + gap * np.array([0.0, 0.3, 0.5, 0.2, 1.0])
    rates, negatives = (noisy_rates(rng, trials, p, variance) for p in (truth, 0.1 + 0.0 * truth))
    assert coverage(difference_band(rates), gap, rates) >= 0.93
    assert coverage(ratio_band(rates), truth.min() / truth.max(), rates) >= 0.93
    assert coverage(minimum_band(rates), truth.min(), rates) >= 0.93
    both = Rates.joined([rates, negatives])
    assert coverage(worst_difference_band(rates, negatives), gap, both) >= 0.93


def test_noise_that_is_not_told_is_not_covered():
    rates = noisy_rates(np.random.default_rng(4), [300, 150], [0.3, 0.4], 209.0, told=0.0)
    assert coverage(wilson(rates, z=Z), np.array([0.3, 0.4]), rates).max() < 0.85
    assert coverage(signed(rates), -0.1, rates) < 0.85


def test_more_noise_than_people_says_nothing():
    rates = Rates(Count(np.array([3.0]), np.array([209.0])), Count(np.array([4.0]), np.array([209.0])))
    assert proportion(rates, z=Z) == (np.array([0.0]), np.array([1.0]))
    other = Rates(Count(np.array([30.0]), np.array([0.0])), Count(np.array([30.0]), np.array([0.0])))
    assert contrast(rates, other, z=Z) == (np.array([-1.0]), np.array([1.0]))


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(("separation", "sizes"), [(0.0, (300, 900)), (1.7, (300, 900)), (3.0, (100, 300)), (1.7, (50, 60))])
def test_auc_of_a_noisy_score_table_is_covered_at_least_93_percent(separation, sizes, variance):
    rng = np.random.default_rng(5)
    cuts = stats.norm.ppf(np.arange(1, 16) / 16, loc=separation / 4, scale=1.2)
    positives, negatives = (np.diff(stats.norm.cdf(np.concatenate([[-np.inf], cuts, [np.inf]]), mean)) for mean in (separation, 0.0))
    truth = roc_auc(positives * 1e9, negatives * 1e9)
    hits, draws = 0, 1000
    noise, actual = pooled_noise(rng, variance, (draws, 2, 16))
    for x, y, n in zip(rng.multinomial(sizes[0], positives, draws), rng.multinomial(sizes[1], negatives, draws), noise, strict=True):
        rate = roc_auc_rate(x + n[0] * 1.0, y + n[1] * 1.0, noise_variance=actual)
        band = wilson(rate, z=Z)
        hits += np.isnan(rate.value).item() or band.low.item() <= truth <= band.high.item()
    assert hits / draws >= 0.93


def test_noise_of_cells_adds_up_over_rates_and_people():
    counts = GroupCounts.of(np.full((3, 2, 2), 50), favorable=1, noise_variance=3.0)
    assert counts.true_positives.variance.tolist() == [3.0, 3.0, 3.0]
    assert counts.selection_rate.successes.variance.tolist() == [6.0, 6.0, 6.0]
    assert counts.people.variance.tolist() == [12.0, 12.0, 12.0]
    assert counts.total().people.variance.tolist() == [36.0]
