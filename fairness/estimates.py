"""Metrics with their intervals: each function pairs a point value of ``metrics.py`` with its band of ``intervals.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedethos.fairness import metrics
from fedethos.fairness.counts import Count, GroupCounts, Rates
from fedethos.fairness.histograms import FloatArray
from fedethos.fairness.intervals import (
    UNDEFINED,
    Estimate,
    Interval,
    contrast,
    critical,
    difference_band,
    estimate,
    minimum_band,
    proportion,
    ratio_band,
    wilson,
    worst_difference_band,
)
from fedethos.fairness.ranking import roc_auc_rate

GROUP_RATES = ("selection_rate", "tpr", "fpr", "accuracy")


def overall_estimates(everyone: GroupCounts) -> dict[str, Estimate]:
    """accuracy, balanced_accuracy and f1 of all people as one group. No tolerance: they compare nobody."""
    z = critical()
    gap = contrast(everyone.tpr, everyone.fpr, z=z)  # balanced accuracy is (1 + TPR - FPR) / 2
    jaccard = proportion(everyone.jaccard, z=z)  # F1 is 2J / (1 + J), which rises with J
    return {
        "accuracy": estimate(metrics.accuracy(everyone), proportion(everyone.accuracy, z=z)),
        "balanced_accuracy": estimate(metrics.balanced_accuracy(everyone), Interval(*((1.0 + limit) / 2.0 for limit in gap))),
        "f1": estimate(metrics.f1(everyone), Interval(*(2.0 * limit / (1.0 + limit) for limit in jaccard))),
    }


def auc_estimate(positives: FloatArray, negatives: FloatArray, *, noise_variance: float | FloatArray, exact: float | None) -> Estimate:
    """roc_auc from counts per bin [B]; arguments as for ``roc_auc_rate``."""
    rate = roc_auc_rate(positives, negatives, noise_variance=noise_variance, exact=exact)
    return estimate(rate.value.item(), wilson(rate, z=critical()))


def worst_group_estimate(groups: Sequence[GroupCounts], *, tolerance: float) -> Estimate:
    """worst_group_accuracy over the groups of all attributes together."""
    accuracies = Rates.joined([counts.accuracy for counts in groups]).where_defined()
    if not len(accuracies.value):
        return UNDEFINED
    return estimate(metrics.worst_group_accuracy(accuracies), minimum_band(accuracies), tolerance=tolerance)


def gap_estimates(groups: GroupCounts, *, tolerance: float) -> dict[str, Estimate]:
    """The four metrics that compare the groups of one attribute. Undefined when fewer than two groups have the rates concerned."""
    selection, tpr, fpr = groups.selection_rate.where_defined(), groups.tpr.where_defined(), groups.fpr.where_defined()

    def compared(value: float, band: Callable[..., Interval], *families: Rates) -> Estimate:
        if any(len(family.value) < 2 for family in families):
            return UNDEFINED
        return estimate(value, band(*families), tolerance=tolerance)

    return {
        "demographic_parity_difference": compared(metrics.demographic_parity_difference(groups), difference_band, selection),
        "demographic_parity_ratio": compared(metrics.demographic_parity_ratio(groups), ratio_band, selection),
        "equalized_odds_difference": compared(metrics.equalized_odds_difference(groups), worst_difference_band, tpr, fpr),
        "equal_opportunity_difference": compared(metrics.equal_opportunity_difference(groups), difference_band, tpr),
    }


def group_estimates(groups: GroupCounts, *, tolerance: float) -> list[dict[str, Estimate]]:
    """Per group: selection_rate, tpr, fpr, accuracy and count. Counts never abstain."""
    z = critical()
    rates = {name: (rate, proportion(rate, z=z)) for name, rate in zip(GROUP_RATES, _rates(groups), strict=True)}
    return [
        {
            name: estimate(float(rate.value[group]), Interval(band.low[group], band.high[group]), tolerance=tolerance)
            for name, (rate, band) in rates.items()
        }
        | {"count": _count(groups.people, group, z)}
        for group in range(len(groups.people.value))
    ]


def withheld_group() -> dict[str, Estimate]:
    """The entry of a group that may not be shown."""
    return dict.fromkeys((*GROUP_RATES, "count"), UNDEFINED)


def _rates(groups: GroupCounts) -> tuple[Rates, Rates, Rates, Rates]:
    return groups.selection_rate, groups.tpr, groups.fpr, groups.accuracy


def _count(people: Count, group: int, z: float) -> Estimate:
    value, half = float(people.value[group]), z * float(np.sqrt(people.variance[group]))
    return Estimate(value, max(0.0, value - half), value + half, abstained=False)
