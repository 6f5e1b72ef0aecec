"""The 0-1 risk, a share of wrong decisions, from released counts of the training people.

Strategies of the literature read a mean loss here. Counts are what a job pays for already, and functions of them are post-processing, so
that a risk costs no more. It is bounded by [0, 1], and it does not see how sure a wrong decision was.
"""

from __future__ import annotations

import numpy as np

from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import FloatArray


def known_groups(groups: GroupCounts, least: int) -> list[int]:
    """Groups that a strategy may move: at least ``least`` people by the released count, of each label one; never ``unknown``, the last."""
    people, smaller = groups.people.value[:-1], np.minimum(groups.positives.value, groups.negatives.value)[:-1]
    return [int(group) for group in np.flatnonzero((people >= max(least, 1)) & (smaller >= 1.0))]


def risks(groups: GroupCounts) -> FloatArray:
    """Share of wrong decisions in each group, float64[G] within [0, 1]; NaN without people."""
    return 1.0 - groups.accuracy.value


def risk(groups: GroupCounts) -> float:
    """Share of wrong decisions among everybody; NaN without people."""
    return float(risks(groups.total())[0])
