"""Group-blind fairness controller: one multiplier per (group, label) cell, moved against the released gaps.

The model never reads the group. Where a group's rate is behind, its people weigh more in training; decisions have one threshold for all.
With theta the log multipliers, r_g a group's rate, r the rate of all groups together, and v_g the variance of r_g (sampling and
privacy noise), every release moves

    theta[g, y] += eta * s * d_g,    d_g = (r - r_g) * (r - r_g)^2 / ((r - r_g)^2 + v_g),    |theta| <= log W,

with s = +1 or -1 by constraint and label (``_SIGNALS``). A gap inside its noise hardly moves anything. It is exponentiated-gradient ascent
on the constraint's Lagrange multipliers (Agarwal et al. 2018, arXiv:1803.02453), as a feedback loop over the rounds. The weights are

    w[g, y] = min(W, exp(theta[g, y]) * sum_h n[h, y] / sum_h n[h, y] exp(theta[h, y])),

n the released counts: each label weighs in total what it weighed before. All of it is post-processing of released counts.
Next on the path: ``server/steering.py`` asks for the counts, ``client/cell_weights.py`` bounds and applies the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedethos.fairness.counts import GroupCounts, Rates
from fedethos.fairness.histograms import FloatArray

Constraint = Literal["demographic_parity", "equal_opportunity", "equalized_odds", "worst_group"]

_Signal = tuple[Callable[[GroupCounts], Rates], float, float]  # a rate, and its sign for the favorable and the other label

_SIGNALS: Mapping[Constraint, tuple[_Signal, ...]] = {
    "demographic_parity": ((lambda groups: groups.selection_rate, 1.0, -1.0),),
    "equal_opportunity": ((lambda groups: groups.tpr, 1.0, 0.0),),
    "equalized_odds": ((lambda groups: groups.tpr, 1.0, 0.0), (lambda groups: groups.fpr, 0.0, -1.0)),
    "worst_group": ((lambda groups: groups.accuracy, 1.0, 1.0),),
}


@dataclass(frozen=True, kw_only=True)
class Controller:
    """``learning_rate``: eta; ``max_weight``: W; groups with fewer people than ``min_group_size`` keep their multipliers."""

    constraint: Constraint
    favorable: int
    learning_rate: float
    max_weight: float
    min_group_size: int

    def updated(self, log_multipliers: FloatArray, groups: GroupCounts) -> FloatArray:
        """The next log multipliers, float64[G, 2] by (group, label). The last group, ``unknown``, keeps those it has."""
        known = [group for group in range(len(log_multipliers) - 1) if groups.people.value[group] >= self.min_group_size]
        moved = log_multipliers.copy()
        for rate, on_favorable, on_other in _SIGNALS[self.constraint]:
            gap = damped_gap(rate(groups.take(known)))
            moved[known, self.favorable] += self.learning_rate * on_favorable * gap
            moved[known, 1 - self.favorable] += self.learning_rate * on_other * gap
        limit = np.log(self.max_weight)
        return np.asarray(np.clip(moved, -limit, limit), dtype=np.float64)

    def weights(self, log_multipliers: FloatArray, groups: GroupCounts) -> FloatArray:
        """Weights of the cells, float64[G, 2]."""
        people = np.empty_like(log_multipliers)
        people[:, self.favorable], people[:, 1 - self.favorable] = groups.positives.value, groups.negatives.value
        people = np.maximum(people, 0.0)
        multipliers = np.exp(log_multipliers)
        before, after = people.sum(axis=0), (people * multipliers).sum(axis=0)
        neutral = np.divide(before, after, out=np.ones_like(before), where=after > 0.0)
        return np.asarray(np.minimum(multipliers * neutral, self.max_weight), dtype=np.float64)


def damped_gap(rates: Rates) -> FloatArray:
    """How far each group is behind the rate of all, float64[G], shrunk by how uncertain its own rate is; 0 where a rate is undefined."""
    trials = rates.trials
    defined = np.isfinite(trials)
    if defined.sum() < 2:
        return np.zeros(len(trials))
    common = float(np.clip(rates.successes.value[defined].sum() / trials[defined].sum(), 0.0, 1.0))
    gap = np.where(defined, common - rates.value, 0.0)
    sampling = common * (1.0 - common) / trials
    noise = ((1.0 - common) ** 2 * rates.successes.variance + common**2 * rates.failures.variance) / trials**2
    variance = np.where(defined, sampling + noise, 1.0)
    size = gap**2 + variance
    return np.asarray(np.divide(gap**3, size, out=np.zeros_like(gap), where=size > 0.0), dtype=np.float64)
