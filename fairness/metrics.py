"""Point values of the metrics, named and defined as in fairlearn and scikit-learn.

Differences from fairlearn, all where a denominator is empty: fairlearn counts the true positive rate of a group without positives
as 0, which turns a missing measurement into the largest possible gap. Here such a rate is NaN, the group is left out of that
metric, and a metric with fewer than two groups left is NaN. ``equalized_odds_difference`` is fairlearn's ``worst_case``; it is
NaN when either of its two gaps is.
"""

from __future__ import annotations

import numpy as np

from fedethos.fairness.counts import GroupCounts, Rates


def demographic_parity_difference(groups: GroupCounts) -> float:
    """Largest minus smallest selection rate."""
    return difference(groups.selection_rate)


def demographic_parity_ratio(groups: GroupCounts) -> float:
    """Smallest over largest selection rate; NaN when nobody is selected."""
    rates = groups.selection_rate.where_defined().value
    if len(rates) < 2 or rates.max() == 0.0:
        return float("nan")
    return float(rates.min() / rates.max())


def equal_opportunity_difference(groups: GroupCounts) -> float:
    """Largest minus smallest true positive rate."""
    return difference(groups.tpr)


def equalized_odds_difference(groups: GroupCounts) -> float:
    """The larger of the gaps in true and in false positive rates."""
    return float(np.maximum(difference(groups.tpr), difference(groups.fpr)))


def accuracy(everyone: GroupCounts) -> float:
    return float(everyone.accuracy.value[0])


def balanced_accuracy(everyone: GroupCounts) -> float:
    """Mean of true positive and true negative rate; NaN when a class is empty."""
    return float((everyone.tpr.value[0] + 1.0 - everyone.fpr.value[0]) / 2.0)


def f1(everyone: GroupCounts) -> float:
    """F1 of the favorable label; NaN when it is neither present nor predicted."""
    jaccard = float(everyone.jaccard.value[0])
    return 2.0 * jaccard / (1.0 + jaccard)


def worst_group_accuracy(accuracies: Rates) -> float:
    """Smallest accuracy of the given groups; NaN without any."""
    rates = accuracies.where_defined().value
    return float(rates.min()) if len(rates) else float("nan")


def difference(rates: Rates) -> float:
    """Largest minus smallest of the defined rates; NaN with fewer than two."""
    defined = rates.where_defined().value
    return float(defined.max() - defined.min()) if len(defined) > 1 else float("nan")
