"""Coordinate-wise median and trimmed mean (Yin et al. 2018, "Byzantine-robust distributed learning", definitions 1 and 2).

Both with site weights, and equal to the unweighted ones when all weights are. On adapters:

- A frozen: the rule runs on the coordinates of B (and of the head), the parameters that the sites train. BA is a linear image of B,
  so what bounds B bounds BA; but the median of B's coordinates is not the median of BA's, and nothing here claims so. The rank
  stays r and no error arises.
- A trained too: factors of different sites are not comparable coordinate by coordinate (B·A = (B·M)(M⁻¹·A)). The rule runs on the
  dense products, and the best approximation of rank r (Eckart & Young 1936) goes back to the sites; how far it is from the rule's
  own answer is reported.

Next on the path: ``robust.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fedethos.messages import Arrays
from fedethos.strategies.product import Geometry, Matrix

Values = npt.NDArray[np.float64]
Centre = Callable[[Values, Values], Values]
"""values [n, ...] and weights [n] to one value per coordinate [...]."""

_TIE = 1e-9  # weights are sums of floats: 6 times 1/6 does not add up exactly


def weighted_median(values: Values, weights: Values) -> Values:
    """The middle of all m with at most half of the weight below and at most half above (Edgeworth 1888), per coordinate.

    These m minimise sum of w·|x − m|. With equal weights it is the ordinary median.
    """
    ordered, reached = _ordered(values, weights)
    lower = np.argmax(reached >= 0.5 - _TIE, axis=0)
    upper = np.argmax(reached > 0.5 + _TIE, axis=0)
    low, high = (np.take_along_axis(ordered, place[np.newaxis], axis=0)[0] for place in (lower, upper))
    return np.asarray(low + (high - low) / 2)


def weighted_trimmed_mean(values: Values, weights: Values, trim_share: float) -> Values:
    """Mean of what is left when ``trim_share`` of the weight is cut off at each end, per coordinate.

    A site on the boundary is cut in part. With equal weights and a whole number n·trim_share of sites it is the ordinary trimmed mean;
    towards trim_share = 1/2 it becomes the median. Every result lies within the honest values if the others weigh less than
    ``trim_share``.
    """
    ordered, reached = _ordered(values, weights)
    before = np.concatenate([np.zeros_like(reached[:1]), reached[:-1]])
    kept = np.clip(np.minimum(reached, 1 - trim_share) - np.maximum(before, trim_share), 0.0, None)
    return np.asarray((kept * ordered).sum(axis=0) / kept.sum(axis=0))


def _ordered(values: Values, weights: Values) -> tuple[Values, Values]:
    """Values sorted along the sites, and the share of the weight up to and including each."""
    order = np.argsort(values, axis=0, kind="stable")
    return np.take_along_axis(values, order, axis=0), np.cumsum((weights / weights.sum())[order], axis=0)


def coordinatewise(
    updates: Sequence[Arrays], weights: Sequence[float], centre: Centre, sent: Arrays, geometry: Geometry
) -> tuple[Arrays, float]:
    """One adapter in the middle of all, and the relative Frobenius error of bringing it back to rank r (0 with A frozen).

    Parameters
    ----------
    updates, weights : one each per site
    sent : dict of float32 array
        What the sites began from; the new A is as long as its A.
    """
    shares = np.asarray(weights, dtype=np.float64)
    dense = [pair for pair in geometry.layers(sent) if pair[0] in sent and pair[1] in sent]
    factors = {name for pair in dense for name in pair}
    result = {
        name: centre(np.stack([update[name].astype(np.float64) for update in updates]), shares).astype(np.float32)
        for name in sent
        if name not in factors
    }
    missed = norm = 0.0
    for name_a, name_b in dense:
        products = np.stack([geometry.factor(update, name_b) @ geometry.factor(update, name_a) for update in updates])
        middle = centre(products, shares)
        a, b = best_factors(middle, geometry.factor(sent, name_a))
        result |= {name_a: a.astype(np.float32), name_b: b.astype(np.float32)}
        missed += float(np.square(b @ a - middle).sum())
        norm += float(np.square(middle).sum())
    return result, float(np.sqrt(missed / norm)) if norm > 0 else 0.0


def best_factors(product: Matrix, sent_a: Matrix) -> tuple[Matrix, Matrix]:
    """A [r, in] and B [out, r] whose product is nearest to ``product`` (Eckart & Young); ||A|| is that of ``sent_a``, r its rows.

    A's rows are orthogonal and of equal length, never zero: a zero row in A and column in B would have no gradient for ever.
    """
    rank = len(sent_a)
    left, singular, right = np.linalg.svd(product, full_matrices=False)
    signs = np.where(right[:rank, :1] < 0, -1.0, 1.0)  # LAPACK's signs differ between machines
    length = np.linalg.norm(sent_a) / np.sqrt(rank) or 1.0
    return length * signs * right[:rank], left[:, :rank] * singular[:rank] * signs.T / length
