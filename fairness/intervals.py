"""95 % intervals from counts: sampling and privacy noise together.

One proportion: Wilson (1927); with fewer than 6 successes or failures its hull with Clopper & Pearson (1934), because Wilson's
alone covers as little as 84 % there. Two independent proportions: Newcombe's difference (1998, method 10) and the MOVER ratio
(Donner & Zou 2012), both built from the two single intervals.

Largest minus smallest over groups: an interval around the plug-in value would not cover at small gaps, because the maximum is
biased upwards. If the intervals of ALL pairs hold at once, the largest lower and the largest upper limit bound the largest
difference; the factor for k groups at once is Tukey's studentized range over sqrt(2) (conservative for unequal sizes, Hayter 1984).

Arrays are [..., G]; every function takes leading axes. Callers leave out undefined rates (``Rates.where_defined``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from fedethos.fairness.counts import Rates
from fedethos.fairness.histograms import FloatArray

CONFIDENCE = 0.95

_FEW = 6  # successes or failures; found by exact enumeration of the coverage (tests/fairness/test_intervals.py)


class Interval(NamedTuple):
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval. All three are None when it is undefined or withheld.

    ``abstained``: not measurable (undefined, withheld, or a half-width above the tolerance); show the interval, never the bare value.
    """

    value: float | None
    low: float | None
    high: float | None
    abstained: bool

    def as_json(self) -> dict[str, float | bool | None]:
        return {"value": self.value, "low": self.low, "high": self.high, "abstained": self.abstained}


UNDEFINED = Estimate(None, None, None, abstained=True)


def estimate(value: float, interval: Interval, *, tolerance: float = math.inf) -> Estimate:
    """``interval`` holds one pair of limits, however shaped. NaN anywhere makes the whole estimate undefined."""
    low, high = interval.low.item(), interval.high.item()
    if not (math.isfinite(value) and math.isfinite(low) and math.isfinite(high)):
        return UNDEFINED
    return Estimate(value, low, high, abstained=(high - low) / 2.0 > tolerance)


def critical(confidence: float = CONFIDENCE, *, at_once: int = 1) -> float:
    """Two-sided normal quantile for ``at_once`` intervals that hold together (Sidak 1967: under any dependence)."""
    return float(stats.norm.ppf((1.0 + confidence ** (1.0 / at_once)) / 2.0))


@lru_cache(maxsize=256)
def critical_for_pairs(groups: int, confidence: float = CONFIDENCE) -> float:
    """Factor for all pairwise differences of ``groups`` means at once (Tukey); ``critical()`` for two groups."""
    return float(stats.studentized_range.ppf(confidence, groups, np.inf)) / math.sqrt(2.0)


def wilson(rates: Rates, *, z: float) -> Interval:
    """All p with (value - p)^2 <= z^2 (p (1 - p) / trials + noise variance)."""
    value, shrink = rates.value, z**2 / rates.trials
    root = np.sqrt(shrink**2 + 4.0 * shrink * value * (1.0 - value) + 4.0 * (1.0 + shrink) * z**2 * rates.noise_variance)
    low, high = ((2.0 * value + shrink + sign * root) / (2.0 * (1.0 + shrink)) for sign in (-1.0, 1.0))
    return Interval(np.clip(np.minimum(low, value), 0.0, 1.0), np.clip(np.maximum(high, value), 0.0, 1.0))


def proportion(rates: Rates, *, z: float) -> Interval:
    """Wilson's interval; where successes or failures are few, its hull with Clopper & Pearson's."""
    low, high = wilson(rates, z=z)
    successes, failures = rates.value * rates.trials, (1.0 - rates.value) * rates.trials
    few = np.minimum(successes, failures) < _FEW
    tail, x, y = stats.norm.sf(z), successes[few], failures[few]
    low[few] = np.minimum(low[few], np.where(x > 0.0, stats.beta.ppf(tail, x, y + 1.0), 0.0))
    high[few] = np.maximum(high[few], np.where(y > 0.0, stats.beta.isf(tail, x + 1.0, y), 1.0))
    return Interval(low, high)


def contrast(first: Rates, second: Rates, *, z: float) -> Interval:
    """Signed difference ``first - second`` of independent proportions, broadcast against each other (Newcombe 1998, method 10).

    Where one rate is almost 0 and the other almost 1, the two errors add up instead of adding in squares: both point the same way.
    """
    gap = first.value - second.value
    (low_1, high_1), (low_2, high_2) = proportion(first, z=z), proportion(second, z=z)
    opposite = (_almost_none(first) & _almost_all(second)) | (_almost_all(first) & _almost_none(second))

    def joined(error_1: FloatArray, error_2: FloatArray) -> FloatArray:
        return np.where(opposite, error_1 + error_2, np.hypot(error_1, error_2))

    low = gap - joined(first.value - low_1, high_2 - second.value)
    high = gap + joined(high_1 - first.value, second.value - low_2)
    return Interval(np.maximum(low, -1.0), np.minimum(high, 1.0))


def ratio(first: Rates, second: Rates, *, z: float) -> Interval:
    """``first / second`` of independent proportions (Donner & Zou 2012), broadcast; no upper limit (inf) when second may be 0."""
    (low_1, high_1), (low_2, high_2) = proportion(first, z=z), proportion(second, z=z)
    product = first.value * second.value
    near, far = low_1 * (2.0 * first.value - low_1), high_1 * (2.0 * first.value - high_1)
    near_2, far_2 = low_2 * (2.0 * second.value - low_2), high_2 * (2.0 * second.value - high_2)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The lower limit in its rationalised form: far_2 passes through 0, where the textbook form is 0 / 0.
        low = near / (product + np.sqrt(product**2 - near * far_2))
        high = (product + np.sqrt(np.maximum(product**2 - far * near_2, 0.0))) / near_2
    return Interval(np.where(near > 0.0, low, 0.0), np.where(near_2 > 0.0, high, np.inf))


def difference_band(rates: Rates, *, confidence: float = CONFIDENCE) -> Interval:
    """Largest minus smallest of the rates, at least two, [..., G] to [...]."""
    pairs = contrast(*_pairs(rates), z=critical_for_pairs(rates.value.shape[-1], confidence))
    # The diagonal is the difference of a rate with itself: exactly 0, so it may not widen the band.
    low, high = (_set_diagonal(limits, 0.0) for limits in pairs)
    return Interval(low.max(axis=(-2, -1)), high.max(axis=(-2, -1)))


def worst_difference_band(*families: Rates) -> Interval:
    """The largest of the families' differences. The families count different people, so that their confidences multiply."""
    bands = [difference_band(rates, confidence=CONFIDENCE ** (1.0 / len(families))) for rates in families]
    return Interval(np.maximum.reduce([band.low for band in bands]), np.maximum.reduce([band.high for band in bands]))


def ratio_band(rates: Rates) -> Interval:
    """Smallest over largest of the rates, at least two, [..., G] to [...]."""
    pairs = ratio(*_pairs(rates), z=critical_for_pairs(rates.value.shape[-1]))
    low, high = (_set_diagonal(limits, 1.0) for limits in pairs)
    return Interval(low.min(axis=(-2, -1)), high.min(axis=(-2, -1)))


def minimum_band(rates: Rates) -> Interval:
    """Smallest of the rates, [..., G] to [...]; the groups may overlap."""
    low, high = proportion(rates, z=critical(at_once=rates.value.shape[-1]))
    return Interval(low.min(axis=-1), high.min(axis=-1))


def _almost_none(rates: Rates) -> npt.NDArray[np.bool_]:
    return rates.value * rates.trials < _FEW


def _almost_all(rates: Rates) -> npt.NDArray[np.bool_]:
    return (1.0 - rates.value) * rates.trials < _FEW


def _pairs(rates: Rates) -> tuple[Rates, Rates]:
    """All ordered pairs of groups: [..., G, 1] and [..., 1, G]."""
    parts = rates.value, rates.trials, rates.noise_variance
    return Rates(*(part[..., :, None] for part in parts)), Rates(*(part[..., None, :] for part in parts))


def _set_diagonal(limits: FloatArray, value: float) -> FloatArray:
    return np.where(np.eye(limits.shape[-1], dtype=bool), value, limits)
