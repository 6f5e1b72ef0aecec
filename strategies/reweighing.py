"""Reweighing (Kamiran and Calders 2012, https://doi.org/10.1007/s10115-011-0463-8, section 5.3): weights that make group and label
independent in the weighted training people,

    w(g, y) = P(g) P(y) / P(g, y).

P comes from public constants of the job, or from counts of the training people that are released once, before training; everything here
is post-processing of them. The weights multiply clipped gradients. Next on the path: ``client/cell_weights.py``.
"""

from __future__ import annotations

import numpy as np

from fedethos.fairness.histograms import FloatArray


def reweighing_weights(people: FloatArray, *, max_weight: float, least: float = 0.0) -> FloatArray:
    """The weight of each cell, float64[G, L].

    Parameters
    ----------
    people : float64[G, L]
        Shares or counts by group and label, the group ``unknown`` last. Counts may be noisy.
    max_weight : float
        No cell weighs more.
    least : float
        A cell with fewer people keeps the weight 1: noise would make its weight. ``unknown``, which is no group, does too.
    """
    known = np.where(people[:-1] >= max(least, np.finfo(np.float64).tiny), people[:-1], 0.0)
    weights = np.ones_like(people)
    if known.any():
        independent = known.sum(axis=1, keepdims=True) * known.sum(axis=0) / known.sum()
        np.divide(independent, known, out=weights[:-1], where=known > 0.0)
    return np.minimum(weights, max_weight)
