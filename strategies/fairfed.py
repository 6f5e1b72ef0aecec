"""FairFed (Ezzeldin et al. 2023, AAAI, arXiv:2110.00857): sites whose local gap is far from the global one count less.

With F the global gap, F_k the gap at site k, Acc and Acc_k the accuracies, K sites and beta > 0 (equations 6 and 7 of the paper):

    Delta_k = |F - F_k|, or |Acc - Acc_k| where F_k is undefined,
    w_k <- w_k - beta * (Delta_k - sum_i Delta_i / K),    aggregation weights w_k / sum_i w_i, w from the approved weights on.

A gap is that of two groups, first minus second as declared; of more, the largest minus the smallest rate. Differences from the paper:
counts are released on the training people and may be noisy, a group below ``min_group_size`` leaves F_k undefined, a w_k below 0
aggregates as (nearly) 0, and no site gets more than ``robustness.weight_cap``. The paper's local debiasing (reweighing at each site by
its own exact table) is left out: weights here are functions of released counts only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedethos.fairness.counts import GroupCounts
from fedethos.strategies.averaging import capped_shares
from fedethos.strategies.controller import Constraint

_LEAST = 1e-6  # not 0: what a cap takes away is dealt out in proportion, and there has to be one


@dataclass(frozen=True, kw_only=True)
class FairFed:
    """``learning_rate``: beta. ``constraint``: ``equal_opportunity`` (the paper's EOD) or ``demographic_parity`` (its SPD)."""

    constraint: Constraint
    learning_rate: float
    min_group_size: int

    def updated(self, weights: Mapping[str, float], sites: Mapping[str, GroupCounts], everybody: GroupCounts) -> dict[str, float]:
        """The next w_k, before they are normalised. A site without counts in this round keeps its own."""
        overall, accuracy = self.gap(everybody), _accuracy(everybody)
        mismatch: dict[str, float] = {}
        for name, counts in sites.items():
            local = self.gap(counts)
            distance = abs(accuracy - _accuracy(counts)) if local is None or overall is None else abs(overall - local)
            if np.isfinite(distance):
                mismatch[name] = distance
        mean = sum(mismatch.values()) / len(mismatch) if mismatch else 0.0
        return {name: weight - self.learning_rate * (mismatch.get(name, mean) - mean) for name, weight in weights.items()}

    def gap(self, counts: GroupCounts) -> float | None:
        """F or F_k of the declared groups, the last one (``unknown``) left out; None when fewer than two have a rate."""
        known = [group for group in range(len(counts.people.value) - 1) if counts.people.value[group] >= self.min_group_size]
        groups = counts.take(known)
        rates = groups.tpr if self.constraint == "equal_opportunity" else groups.selection_rate
        values = rates.where_defined().value
        if len(values) < 2:
            return None
        return float(values[0] - values[1]) if len(counts.people.value) == 3 else float(values.max() - values.min())


def aggregation_shares(weights: Mapping[str, float], cap: float) -> dict[str, float]:
    """Shares of the sites that take part, at most ``cap``; those without a positive weight get next to nothing."""
    return capped_shares({name: max(weight, _LEAST) for name, weight in weights.items()}, cap)


def _accuracy(counts: GroupCounts) -> float:
    return float(counts.total().accuracy.value[0])
