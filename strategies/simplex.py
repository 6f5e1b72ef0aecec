"""Euclidean projection onto a simplex (Duchi et al. 2008, figure 1): the nearest weights that are not negative and have a given sum."""

from __future__ import annotations

import numpy as np

from fedethos.fairness.histograms import FloatArray


def projected(point: FloatArray, total: float = 1.0) -> FloatArray:
    """The nearest float64[n] to ``point`` with entries of at least 0 that add up to ``total`` > 0."""
    falling = np.sort(point)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(point) + 1)
    shift = excess[np.flatnonzero(falling > excess)[-1]]
    return np.asarray(np.maximum(point - shift, 0.0), dtype=np.float64)
