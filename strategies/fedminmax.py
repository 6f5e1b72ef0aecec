"""FedMinMax (Papadaki et al. 2022, FAccT, arXiv:2201.08304): the model is to be as good as it can for the group it is worst for.

It solves min over theta, max over mu in the simplex of sum_a mu_a r_a(theta), with r_a the risk of group a. After a release

    mu <- projection onto the simplex (mu + eta r),    a person of group a weighs mu_a / rho_a,

rho_a the share of the group, at which mu starts. Here r is the 0-1 risk of the released counts (``risks.py``), no weight is above
``max_weight``, and mu is what the weights of the last release say with the counts of this one. All of it is post-processing.
Next on the path: ``server/steering_rules.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import FloatArray
from fedethos.strategies.risks import known_groups, risks
from fedethos.strategies.simplex import projected


@dataclass(frozen=True, kw_only=True)
class FedMinMax:
    """``learning_rate``: eta. Groups with fewer people than ``min_group_size`` keep their weights."""

    learning_rate: float
    max_weight: float
    min_group_size: int

    def updated(self, weights: FloatArray, groups: GroupCounts) -> FloatArray:
        """The next weights of the cells, float64[G, 2]: the labels of a group weigh the same."""
        known = known_groups(groups, self.min_group_size)
        if len(known) < 2:
            return weights
        counts, moved = groups.take(known), weights.copy()
        share = counts.people.value / counts.people.value.sum()
        mixture = projected(weights[known, 0] * share + self.learning_rate * risks(counts))
        moved[known] = np.minimum(mixture / share, self.max_weight)[:, None]
        return moved
