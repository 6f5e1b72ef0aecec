"""ROC AUC from the score histogram: Mann-Whitney with ties one half, and DeLong's variance.

Reference: DeLong, DeLong & Clarke-Pearson (1988), Biometrics 44. Scores in one bin count as tied, so the value is that of the
binned score.
"""

from __future__ import annotations

import numpy as np

from fedethos.fairness.counts import Rates
from fedethos.fairness.histograms import FloatArray


def roc_auc(positives: FloatArray, negatives: FloatArray) -> float:
    """P(positive scores higher) + P(tie) / 2 from counts per bin [B], lowest bin first; NaN when a class is empty."""
    if positives.sum() < 1.0 or negatives.sum() < 1.0:
        return float("nan")
    return float(positives @ _below(negatives)) / float(positives.sum() * negatives.sum())


def delong_variance(positives: FloatArray, negatives: FloatArray) -> float:
    """Sampling variance of ``roc_auc``: variance of the placements of each class; NaN with fewer than two in a class."""
    if min(positives.sum(), negatives.sum()) < 2.0:
        return float("nan")
    auc = roc_auc(positives, negatives)
    variance = 0.0
    for counts, placement in zip((positives, negatives), _placements(positives, negatives), strict=True):
        people = float(counts.sum())
        variance += float(counts @ (placement - auc) ** 2) / people / (people - 1.0)
    return variance


def roc_auc_rate(
    positives: FloatArray, negatives: FloatArray, *, noise_variance: float | FloatArray = 0.0, exact: float | None = None
) -> Rates:
    """The AUC as a proportion of an effective number of trials, so that Wilson's interval serves it (it stays inside [0, 1]).

    Parameters
    ----------
    noise_variance : float or float[2]
        Variance of the noise in each of the counts, or in those of the positives and of the negatives.
    exact : float, optional
        The AUC of the unbinned scores where the caller knows it; the histogram then only tells its uncertainty.

    Notes
    -----
    Effective trials are AUC (1 - AUC) / variance, kept between the size of the smaller class (the variance is never larger:
    van Dantzig 1951) and that of both: when all scores tie or separate, DeLong's variance is 0 and says nothing. The noise
    variance is the delta method's.
    """
    auc = roc_auc(positives, negatives)
    if np.isnan(auc):
        undefined = np.full(1, np.nan)
        return Rates.of_share(undefined, undefined, undefined)
    smaller, larger = sorted((float(positives.sum()), float(negatives.sum())))
    placed = _placements(positives, negatives)
    noise = sum(
        float(variance) * float(((placement - auc) ** 2).sum()) / float(counts.sum()) ** 2
        for variance, counts, placement in zip(np.broadcast_to(noise_variance, 2), (positives, negatives), placed, strict=True)
    )
    trials = _effective_trials(auc * (1.0 - auc), delong_variance(positives, negatives), smaller, smaller + larger)
    value = np.clip(auc if exact is None else exact, 0.0, 1.0)
    return Rates.of_share(np.array([value]), np.array([trials]), np.array([noise]))


def _effective_trials(spread: float, variance: float, least: float, most: float) -> float:
    if np.isnan(variance) or spread <= 0.0:
        return least
    return most if variance == 0.0 else float(np.clip(spread / variance, least, most))


def _placements(positives: FloatArray, negatives: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Per bin: the share of negatives that a positive there beats, and of positives that beat a negative there."""
    beaten = _below(negatives) / negatives.sum()
    beating = 1.0 - _below(positives) / positives.sum()
    return beaten, beating


def _below(counts: FloatArray) -> FloatArray:
    """Counts in lower bins plus half of those in the same bin."""
    return np.cumsum(counts) - counts / 2.0
