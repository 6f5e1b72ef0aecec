"""Counterfactual flips: how often a decision changes when only the sensitive attribute of a record reads differently.

flip rate = #{swapped records whose decision changes} / #{swapped records}, a decision being log-odds >= threshold. It is the
counterfactual flip rate of "Counterfactual Fairness in Text Classification through Robustness" (Garg et al. 2019, whose token
fairness gap is the score change here). Records in which nothing could be swapped say nothing and are in no denominator.

Intervals are 95 % ones of sampling alone, as if records were independent: Wilson's for shares (with the hull of ``intervals.py`` where
counts are few), normal for the mean. Records are made by ``fedethos.data.counterfactual``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from fedethos.fairness.counts import Count, Rates
from fedethos.fairness.histograms import FloatArray
from fedethos.fairness.intervals import UNDEFINED, Estimate, Interval, critical, estimate, proportion

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Flips:
    """``estimates``: swapped_share, flip_rate, favorable_to_unfavorable, unfavorable_to_favorable, mean_absolute_score_change."""

    records: int
    swapped: int
    estimates: Mapping[str, Estimate]


def flips(before: FloatArray, after: FloatArray, swapped: Bools, *, threshold: float) -> Flips:
    """Decisions and scores of n records against those of their counterfactuals.

    Parameters
    ----------
    before, after : float[n]
        Log-odds of the favorable label; ``after`` is read only where ``swapped``.
    swapped : bool[n]
        Whether anything could be swapped.
    threshold : float
        Log-odds from which the decision is favorable.
    """
    was, now = before[swapped] >= threshold, after[swapped] >= threshold
    change = np.abs(expit(after[swapped]) - expit(before[swapped]))
    count = len(was)
    return Flips(
        records=len(before),
        swapped=count,
        estimates={
            "swapped_share": share(count, len(before)),
            "flip_rate": share(int((was != now).sum()), count),
            "favorable_to_unfavorable": share(int((was & ~now).sum()), count),
            "unfavorable_to_favorable": share(int((~was & now).sum()), count),
            "mean_absolute_score_change": _mean(change),
        },
    )


def share(successes: int, trials: int) -> Estimate:
    """``successes / trials`` with its interval; undefined without trials."""
    if not trials:
        return UNDEFINED
    exact = np.zeros(1)
    rates = Rates(Count(np.array([float(successes)]), exact), Count(np.array([float(trials - successes)]), exact))
    return estimate(rates.value.item(), proportion(rates, z=critical()))


def _mean(values: FloatArray) -> Estimate:
    """Mean of values in [0, 1]; undefined for fewer than two, which say nothing about their spread."""
    if len(values) < 2:
        return UNDEFINED
    mean, reach = float(values.mean()), critical() * float(values.std(ddof=1)) / math.sqrt(len(values))
    return estimate(mean, Interval(np.array(max(0.0, mean - reach)), np.array(min(1.0, mean + reach))))
