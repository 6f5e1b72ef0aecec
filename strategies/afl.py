"""Agnostic federated learning (Mohri, Sivek and Suresh 2019, ICML, arXiv:1902.00146): the model is to be as good as it can for the worst
mixture of sites,

    min over w, max over lambda in the simplex of sum_k lambda_k L_k(w),    lambda <- projection onto the simplex (lambda + gamma L),

L_k the risk of site k. Here lambda starts at the approved shares, L is the 0-1 risk of the counts that each site releases (``risks.py``),
lambda weighs the updates of whole rounds instead of single gradients, and no site gets more than ``robustness.weight_cap``. All of it is
post-processing. Next on the path: ``server/steering_rules.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedethos.strategies.simplex import projected


def updated(weights: Mapping[str, float], risks: Mapping[str, float], *, learning_rate: float) -> dict[str, float]:
    """The next lambda by site; ``learning_rate``: gamma. Sites without a (finite) risk keep theirs, and the others share the rest."""
    known = [name for name in sorted(weights) if np.isfinite(risks.get(name, np.nan))]
    before = np.array([weights[name] for name in known])
    if len(known) < 2 or before.sum() <= 0.0:
        return dict(weights)
    after = projected(before + learning_rate * np.array([risks[name] for name in known]), float(before.sum()))
    return {**weights, **dict(zip(known, after.tolist(), strict=True))}
