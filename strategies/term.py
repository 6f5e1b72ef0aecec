"""TERM (Li et al. 2021, ICLR, arXiv:2007.01162), tilted over groups: its hierarchical form with no tilt within a group,

    minimise (1/t) log sum_g rho_g exp(t R_g),    so that a person of group g weighs exp(t R_g) / sum_h rho_h exp(t R_h),

R_g a group's risk, rho_g its share. A tilt t near 0 is the usual average, a large one the worst group. Here R is the 0-1 risk of the
released counts (``risks.py``), and no weight is above ``max_weight``. The weights are a function of the last release alone, without the
paper's moving average over batches: a release covers all people. All of it is post-processing. Next: ``server/steering_rules.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import FloatArray
from fedethos.strategies.risks import known_groups, risks


@dataclass(frozen=True, kw_only=True)
class Tilted:
    """``tilt``: t > 0. Groups with fewer people than ``min_group_size`` keep their weights."""

    tilt: float
    max_weight: float
    min_group_size: int

    def updated(self, weights: FloatArray, groups: GroupCounts) -> FloatArray:
        """The next weights of the cells, float64[G, 2]: the labels of a group weigh the same."""
        known = known_groups(groups, self.min_group_size)
        if len(known) < 2:
            return weights
        counts, moved = groups.take(known), weights.copy()
        risk = risks(counts)
        tilted = np.exp(self.tilt * (risk - risk.max()))  # the common factor cancels
        moved[known] = np.minimum(tilted / np.average(tilted, weights=counts.people.value), self.max_weight)[:, None]
        return moved
