"""How precise a fairness metric will be, before anybody is counted: expected 95 % half-widths from public numbers alone.

The widest pair of groups decides, which is the two smallest. The pooled threshold selects about as many people as have the favorable
label, so selection rates are taken as that share; other rates as one half, where they are least certain. Where every record brings its own
right answer (one label), everybody has the favorable label, and to be selected is to be right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from fedethos.fairness.counts import Count, Rates
from fedethos.fairness.intervals import CONFIDENCE, Interval, contrast, critical, critical_for_pairs, proportion
from fedethos.job_scenarios import RecordMetric

Gap = Literal["demographic_parity_difference", "equal_opportunity_difference"]
GAPS: tuple[Gap, ...] = ("demographic_parity_difference", "equal_opportunity_difference")

_Rate = Literal["selection_rate", "tpr", "fpr", "accuracy"]
_OF_GAP: Mapping[Gap, _Rate] = {"demographic_parity_difference": "selection_rate", "equal_opportunity_difference": "tpr"}
_STEPS = 16  # of a bisection: to 0.002 % of what is searched


def half_widths(
    shares: Sequence[float], people: float, *, favorable_share: float, noise_variance: float, labels: int = 2
) -> Mapping[Gap, float]:
    """Expected half-widths of the gaps between groups.

    Parameters
    ----------
    shares : sequence of float
        Each group's share of ``people``, at least two.
    people : float
        Test people of all sites.
    favorable_share : float
        Share of the people with the favorable label; it does not matter where there is one label.
    noise_variance : float
        Variance of the noise in one cell of the pooled table group × label × prediction.
    labels : int
        As many labels, and as many predictions, but at least two of these.
    """
    z = critical_for_pairs(len(shares))

    def width(rate: _Rate) -> float:
        first, second = (_expected(rate, people * share, favorable_share, noise_variance, labels) for share in sorted(shares)[:2])
        return _half(contrast(first, second, z=z)) if _defined(first, second) else 1.0

    return {gap: width(rate) for gap, rate in _OF_GAP.items()}


def scenario_half_width(
    metric: RecordMetric, share: float, people: float, *, favorable_share: float, noise_variance: float, labels: int = 2
) -> float:
    """Expected half-width of a scenario's metric (``Job.scenarios``), where ``share`` of the ``people`` match its filter."""

    def expected(rate: _Rate) -> tuple[Rates, Rates]:
        matching, others = (_expected(rate, people * part, favorable_share, noise_variance, labels) for part in (share, 1.0 - share))
        return matching, others

    def difference(rate: _Rate, confidence: float = CONFIDENCE) -> float:
        pair = expected(rate)
        return _half(contrast(*pair, z=critical_for_pairs(2, confidence))) if _defined(*pair) else 1.0

    def of_matching(rate: _Rate) -> float:
        one, _ = expected(rate)
        return _half(proportion(one, z=critical())) if _defined(one) else 0.5

    match metric:
        case "error_rate":
            return of_matching("accuracy")
        case "false_positive_rate":
            return of_matching("fpr")
        case "false_negative_rate":
            return of_matching("tpr")
        case "equalized_odds_difference":  # the larger of two differences, whose intervals hold together
            return max(difference(rate, math.sqrt(CONFIDENCE)) for rate in ("tpr", "fpr"))
        case "demographic_parity_difference" | "equal_opportunity_difference":
            return difference(_OF_GAP[metric])


def _expected(rate: _Rate, people: float, favorable_share: float, noise_variance: float, labels: int) -> Rates:
    """Expected counts of one group, [1]."""
    predictions, favorable = max(labels, 2), favorable_share if labels > 1 else 1.0
    trials, value, successes, cells = {
        "selection_rate": (people, favorable_share if labels > 1 else 0.5, labels, labels * predictions),
        "tpr": (people * favorable, 0.5, 1, predictions),
        "fpr": (people * (1.0 - favorable), 0.5, labels - 1, (labels - 1) * predictions),
        "accuracy": (people, 0.5, labels, labels * predictions),
    }[rate]
    noise = noise_variance * np.array([successes, cells - successes], dtype=np.float64)
    return Rates(Count(np.array([trials * value]), noise[:1]), Count(np.array([trials * (1.0 - value)]), noise[1:]))


def _defined(*rates: Rates) -> bool:
    return all(np.isfinite(one.trials).all() for one in rates)


def _half(limits: Interval) -> float:
    return float(limits.high.item() - limits.low.item()) / 2.0


def smallest_share(
    gap: Gap, groups: int, people: float, *, tolerance: float, favorable_share: float, noise_variance: float, labels: int = 2
) -> float | None:
    """The smallest share of the people that the smallest group may have, the others being equal, so that ``gap`` is measurable.

    None when it is not even with equal groups.
    """

    def measurable(share: float) -> bool:
        shares = [share] + [(1.0 - share) / (groups - 1)] * (groups - 1)
        widths = half_widths(shares, people, favorable_share=favorable_share, noise_variance=noise_variance, labels=labels)
        return widths[gap] <= tolerance

    return least(measurable, 1.0 / groups)


def people_needed(
    gap: Gap, shares: Sequence[float], most: float, *, tolerance: float, favorable_share: float, noise_variance: float, labels: int = 2
) -> float | None:
    """The fewest test people with which ``gap`` is measurable; None when ``most`` are not enough."""

    def measurable(people: float) -> bool:
        widths = half_widths(shares, people, favorable_share=favorable_share, noise_variance=noise_variance, labels=labels)
        return widths[gap] <= tolerance

    return least(measurable, most)


def least(holds: Callable[[float], bool], most: float) -> float | None:
    """The least x in (0, most] that ``holds``, for something that stays true once it is true."""
    if not holds(most):
        return None
    low, high = 0.0, most
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
