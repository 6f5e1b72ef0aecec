"""Norm bounding (Sun et al. 2019, "Can you really backdoor federated learning?"): no update moves the model further than a bound.

Δ_i becomes Δ_i / max(1, ||Δ_i|| / bound). The norm is that of the update of the model, s·(B_i·A_i − B·A) and the head. Without a
bound of its own, a round takes the median of its updates' norms (Nguyen et al. 2022, "FLAME", section 4.3): one attacker among
many cannot raise it beyond the norms of the others. Next on the path: ``robust.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fedethos.messages import Arrays
from fedethos.strategies.product import Factors, Geometry, inner


def bounded(updates: Mapping[str, Arrays], sent: Arrays, geometry: Geometry, bound: float | None) -> Mapping[str, Arrays]:
    """All updates, each at most ``bound`` away from ``sent``, or the median distance when it is None; shortened when they are read."""
    if bound is None:
        bound = float(np.median([geometry.distance(update, sent) for update in updates.values()]))
    return _Shortened(updates, sent, geometry, bound)


class _Shortened(Mapping[str, Arrays]):
    def __init__(self, updates: Mapping[str, Arrays], sent: Arrays, geometry: Geometry, bound: float) -> None:
        self._updates, self._sent, self._geometry, self._bound = updates, sent, geometry, bound

    def __getitem__(self, name: str) -> Arrays:
        return shortened(self._updates[name], self._sent, self._geometry, self._bound)

    def __iter__(self) -> Iterator[str]:
        return iter(self._updates)

    def __len__(self) -> int:
        return len(self._updates)


def shortened(update: Arrays, sent: Arrays, geometry: Geometry, bound: float) -> Arrays:
    """sent + t·(update − sent) with the least t at which the model has moved by ``bound``; ``update`` itself when it never does."""
    t = _fraction_within(update, sent, geometry, bound)
    if t >= 1.0:
        return update
    return {name: (sent[name] + t * (update[name].astype(np.float64) - sent[name])).astype(np.float32) for name in sent}


def _fraction_within(update: Arrays, sent: Arrays, geometry: Geometry, bound: float) -> float:
    """Walking t from 0 to 1 moves the product by t·X + t²·Y with X = ΔB·A + B·ΔA, Y = ΔB·ΔA, so its squared norm is a polynomial in t."""
    if bound == 0.0:
        return 0.0
    linear = geometry.squared(update, sent)
    mixed = quadratic = 0.0
    for name_a, name_b in geometry.layers(sent):
        a, b = geometry.factor(sent, name_a), geometry.factor(sent, name_b)
        step_a, step_b = geometry.factor(update, name_a) - a, geometry.factor(update, name_b) - b
        x: Factors = np.hstack([step_b, b]), np.vstack([a, step_a])
        y: Factors = step_b, step_a
        linear += geometry.scale**2 * inner(x, x)
        mixed += geometry.scale**2 * inner(x, y)
        quadratic += geometry.scale**2 * inner(y, y)
    crossings = np.polynomial.Polynomial([-(bound**2), 0.0, linear, 2 * mixed, quadratic]).roots().astype(np.complex128).tolist()
    return min((root.real for root in crossings if abs(root.imag) <= 1e-9 * abs(root) and 0 < root.real < 1), default=1.0)
