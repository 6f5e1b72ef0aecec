"""FedFB (Zeng, Chen and Lee 2021, arXiv:2110.15545): FairBatch in a federation. Each (label, group) cell has a share lambda of the loss.

With n[y, a] people in a cell, n[a] in a group and n in all, p_a = n[a] / n, p_y = n[y] / n, L[y, a] a cell's mean loss, and group 0 the
first one, a release moves lambda by a normalised gradient mu of the squared gaps:

    demographic_parity   lambda[0, a] <- lambda[0, a] + alpha mu_a / |mu|,   lambda[1, a] = 2 p_a - lambda[0, a],
                         mu_a = F_a for a > 0, mu_0 = -sum of F_a,   F_a = P(favorable | a) - P(favorable | 0)
    equal_opportunity    lambda[1, a] <- lambda[1, a] + alpha mu_a / |mu| for a > 0, lambda[1, 0] = p_1 - the others,
                         mu_a = L[1, a] - L[1, 0]
    equalized_odds       both labels as above, |mu| over both.

Lambda starts at the cell's own share (p_a for demographic parity), so that everybody weighs 1, and stays in its box. A person of a cell
weighs lambda n / n[y, a] (lambda / p_a for demographic parity). |mu| is the Euclidean norm: the step has the same length for a small gap
as for a large one, so that near the constraint the weights swing by alpha.

L is the 0-1 loss of the released counts, for which F_a, in the paper a sum of losses, is exactly the gap in selection rates. More than
two groups: lambda is projected onto its simplex. No weight is above ``max_weight``. All of it is post-processing of released counts.
Next on the path: ``server/steering_rules.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import FloatArray
from fedethos.strategies.controller import Constraint
from fedethos.strategies.risks import known_groups
from fedethos.strategies.simplex import projected


@dataclass(frozen=True, kw_only=True)
class FedFB:
    """``learning_rate``: alpha, a share of all people. Groups with fewer people than ``min_group_size`` keep their weights."""

    constraint: Constraint
    favorable: int
    learning_rate: float
    max_weight: float
    min_group_size: int

    def updated(self, weights: FloatArray, groups: GroupCounts) -> FloatArray:
        """The next weights of the cells, float64[G, 2] by (group, label), from those of the last release (1 before the first)."""
        known = known_groups(groups, self.min_group_size)
        if len(known) < 2:
            return weights
        counts, moved = groups.take(known), weights.copy()
        if self.constraint == "demographic_parity":
            moved[known] = self._by_selection(weights[known], counts)
        else:
            moved[known] = self._by_label(weights[known], counts)
        return np.minimum(moved, self.max_weight)

    def _by_selection(self, weights: FloatArray, counts: GroupCounts) -> FloatArray:
        gap = counts.selection_rate.value - counts.selection_rate.value[0]
        gradient = np.r_[-gap.sum(), gap[1:]]
        share = counts.people.value / counts.people.value.sum()
        unfavorable = np.clip(weights[:, 1 - self.favorable] + self.learning_rate * _unit(gradient) / share, 0.0, 2.0)
        moved = np.empty_like(weights)
        moved[:, 1 - self.favorable], moved[:, self.favorable] = unfavorable, 2.0 - unfavorable
        return moved

    def _by_label(self, weights: FloatArray, counts: GroupCounts) -> FloatArray:
        """Column 0 of the losses: the favorable label."""
        loss = np.stack([1.0 - counts.tpr.value, counts.fpr.value], axis=1)
        gradient = loss[1:] - loss[0]
        if self.constraint == "equal_opportunity":
            gradient[:, 1] = 0.0
        step = self.learning_rate * _unit(gradient)
        moved = weights.copy()
        for place, (label, people) in enumerate(((self.favorable, counts.positives.value), (1 - self.favorable, counts.negatives.value))):
            if not gradient[:, place].any():
                continue
            share = people / counts.people.value.sum()
            parts = weights[:, label] * share + np.r_[-step[:, place].sum(), step[:, place]]
            moved[:, label] = projected(parts, float(share.sum())) / share
        return moved


def _unit(gradient: FloatArray) -> FloatArray:
    length = float(np.linalg.norm(gradient))
    return gradient / length if length > 0.0 else gradient
