"""How precise a fairness metric will be, before anybody is counted: expected 95 % half-widths from public numbers alone.

The widest pair of groups decides, which is the two smallest. The pooled threshold selects about as many people as have the favorable
label, so selection rates are taken as that share; true positive rates as one half, where they are least certain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from fedethos.fairness.counts import Count, Rates
from fedethos.fairness.intervals import contrast, critical_for_pairs

Gap = Literal["demographic_parity_difference", "equal_opportunity_difference"]
GAPS: tuple[Gap, ...] = ("demographic_parity_difference", "equal_opportunity_difference")

_TRUE_POSITIVE_RATE = 0.5
_STEPS = 16  # of a bisection: to 0.002 % of what is searched


def half_widths(
    shares: Sequence[float], people: float, *, favorable_share: float, noise_variance: float, labels: int = 2
) -> Mapping[Gap, float]:
    """Expected half-widths of the gaps between groups.

    Parameters
    ----------
    shares : sequence of float
        Each group's share of ``people``, at least two.
    people : float
        Test people of all sites.
    favorable_share : float
        Share of the people with the favorable label.
    noise_variance : float
        Variance of the noise in one cell of the pooled table group × label × prediction.
    labels : int
        As many labels, and as many predictions.
    """
    smallest = people * np.sort(np.asarray(shares, dtype=np.float64))[:2]
    z = critical_for_pairs(len(shares))

    def width(trials: np.typing.NDArray[np.float64], rate: float, cells: int) -> float:
        """``cells``: how many are summed to the successes; the failures are ``labels - 1`` times as many."""
        noise = np.full(2, cells * noise_variance)
        pair = Rates(Count(trials * rate, noise), Count(trials * (1.0 - rate), (labels - 1) * noise))
        low, high = contrast(pair[..., np.array([0])], pair[..., np.array([1])], z=z)
        return float(high.item() - low.item()) / 2.0 if np.isfinite(pair.trials).all() else 1.0

    return {
        "demographic_parity_difference": width(smallest, favorable_share, labels),
        "equal_opportunity_difference": width(smallest * favorable_share, _TRUE_POSITIVE_RATE, 1),
    }


def smallest_share(
    gap: Gap, groups: int, people: float, *, tolerance: float, favorable_share: float, noise_variance: float, labels: int = 2
) -> float | None:
    """The smallest share of the people that the smallest group may have, the others being equal, so that ``gap`` is measurable.

    None when it is not even with equal groups.
    """

    def measurable(share: float) -> bool:
        shares = [share] + [(1.0 - share) / (groups - 1)] * (groups - 1)
        widths = half_widths(shares, people, favorable_share=favorable_share, noise_variance=noise_variance, labels=labels)
        return widths[gap] <= tolerance

    return _least(measurable, 1.0 / groups)


def people_needed(
    gap: Gap, shares: Sequence[float], most: float, *, tolerance: float, favorable_share: float, noise_variance: float, labels: int = 2
) -> float | None:
    """The fewest test people with which ``gap`` is measurable; None when ``most`` are not enough."""

    def measurable(people: float) -> bool:
        widths = half_widths(shares, people, favorable_share=favorable_share, noise_variance=noise_variance, labels=labels)
        return widths[gap] <= tolerance

    return _least(measurable, most)


def _least(holds: Callable[[float], bool], most: float) -> float | None:
    """The least x in (0, most] that ``holds``, for something that stays true once it is true."""
    if not holds(most):
        return None
    low, high = 0.0, most
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
