"""q-FedAvg (Li, Sanjabi, Beirami and Smith 2020, ICLR, arXiv:1905.10497, algorithm 2): sites with a larger risk F_k count F_k^q as much.

With p_k a site's approved share, L = 1 / (learning rate of the sites), and d_k = w_k - w what site k has learned in a round,

    w <- w + sum_k L p_k F_k^q d_k / sum_k p_k h_k,    h_k = q F_k^(q-1) L^2 |d_k|^2 + L F_k^q.

With c_k = p_k F_k^q / sum_i p_i F_i^q that is the same as

    w <- w + s sum_k c_k d_k,    s = 1 / sum_k c_k (1 + q L |d_k|^2 / F_k):

weights of sites, and a step that is shortened where the objective bends. q = 0 is FedAvg. In the paper p_k is the chance that a site takes
part. Here c is capped by ``robustness.weight_cap``, F_k is the 0-1 risk of the counts that each site releases (``risks.py``), as old as the
last release and at least ``LEAST_RISK``. All of it is post-processing. Next on the path: ``server/steering_rules.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedethos.messages import Arrays

LEAST_RISK = 0.01
"""Below it noise would decide, and the step vanishes with F_k."""


def weighted(approved: Mapping[str, float], risks: Mapping[str, float], *, q: float) -> dict[str, float]:
    """p_k F_k^q by site, before they are normalised."""
    return {name: share * risks[name] ** q for name, share in approved.items()}


def shortened(
    before: Arrays,
    updates: Mapping[str, Arrays],
    shares: Mapping[str, float],
    mean: Arrays,
    risks: Mapping[str, float],
    *,
    q: float,
    lipschitz: float,
) -> Arrays:
    """w + s (mean - w), name to float32 array.

    Parameters
    ----------
    before, updates : the adapter w, and w_k by site
    shares : c_k, normalised here over ``updates``
    mean : the updates averaged by ``shares``
    lipschitz : L
    """
    total = sum(shares[name] for name in updates)
    squared = {
        name: sum(float(np.square(array.astype(np.float64) - before[key]).sum()) for key, array in update.items())
        for name, update in updates.items()
    }
    bends = sum(shares[name] / total * q * lipschitz * squared[name] / risks[name] for name in updates)
    return {key: (before[key] + (array.astype(np.float64) - before[key]) / (1.0 + bends)).astype(np.float32) for key, array in mean.items()}
