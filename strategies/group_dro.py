"""Group DRO (Sagawa et al. 2020, arXiv:1911.08731, algorithm 1): groups with a larger loss weigh more.

With l_g the mean loss of a group's training people, every release moves q_g <- q_g exp(eta l_g) / Z. Here q starts at the shares P(g) of
the groups instead of at 1/G, so that everybody weighs 1 at first, and a person of group g weighs

    w_g = q_g / P(g) = exp(theta_g) / sum_h P(h) exp(theta_h),    theta_g <- theta_g + eta l_g.

Losses are read from charged counts by score bin: a person's cross-entropy is that of the middle of the bin, clipped to [0, L]. All of it
is post-processing. Next on the path: ``server/loss_weights.py``; ``client/cell_weights.py`` bounds and applies the weights.
"""

from __future__ import annotations

import numpy as np

from fedethos.fairness.histograms import EDGES, FloatArray, IntArray

CUTS = (24, 28, 30, 32, 34, 36, 40)
"""Edges of the bins: log-odds 0, ±1, ±2 and ±4. Every bin brings noise."""

MAX_LOSS = 4.0
"""L, in nats."""


def group_losses(table: IntArray, favorable: int) -> tuple[FloatArray, FloatArray]:
    """Mean loss float64[G] in nats, clipped to [0, L], and people float64[G], from counts int64[G, 2, bins] cut at ``CUTS``."""
    inner = EDGES[np.array(CUTS)]
    middle = np.r_[inner[0] - 1.0, (inner[1:] + inner[:-1]) / 2, inner[-1] + 1.0]
    loss = np.empty((2, len(middle)))
    loss[favorable], loss[1 - favorable] = np.logaddexp(0.0, -middle), np.logaddexp(0.0, middle)
    people = table.sum(axis=(1, 2)).astype(np.float64)
    total = (table * np.minimum(loss, MAX_LOSS)).sum(axis=(1, 2))
    return np.clip(np.divide(total, people, out=np.zeros_like(people), where=people > 0.0), 0.0, MAX_LOSS), people


def updated(
    log_multipliers: FloatArray, losses: FloatArray, people: FloatArray, *, learning_rate: float, max_weight: float, least: float
) -> FloatArray:
    """theta after a release, float64[G], kept within ±log ``max_weight``, so that no group is forgotten and all can come back.

    Groups with fewer than ``least`` people and ``unknown``, the last, move as everybody on average.
    """
    known = people >= least
    known[-1] = False
    if not known.any():
        return log_multipliers
    average = np.average(losses[known], weights=people[known])
    moved = log_multipliers + learning_rate * np.where(known, losses - average, 0.0)  # a common summand cancels in the weights
    limit = np.log(max_weight)
    return np.asarray(np.clip(moved, -limit, limit), dtype=np.float64)


def group_weights(log_multipliers: FloatArray, people: FloatArray, *, max_weight: float) -> FloatArray:
    """w_g, float64[G], none above ``max_weight``."""
    people = np.maximum(people, 0.0)
    multipliers = np.exp(log_multipliers - log_multipliers.max())
    total = (people * multipliers).sum()
    share = people.sum() / total if total > 0.0 else 1.0 / multipliers.max()
    return np.asarray(np.minimum(multipliers * share, max_weight), dtype=np.float64)
