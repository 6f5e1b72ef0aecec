"""95 % intervals from counts: sampling and privacy noise together.

One proportion: Wilson (1927); with fewer than 6 successes or failures its hull with Clopper & Pearson (1934), because Wilson's
alone covers as little as 84 % there. Two independent proportions: Newcombe's difference (1998, method 10) and the MOVER ratio
(Donner & Zou 2012), both built from the two single intervals.

Noise in the counts enters Wilson's interval as in Fieller's theorem: S - p (S + F) = (1 - p) S - p F has the noise variance
(1 - p)^2 var S + p^2 var F, whatever the noisy denominator. The limits are kept as they come, outside [0, 1] too, until an
interval is shown: a limit that was cut would hide half of an error from the difference that is built from it.

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

from fedethos.fairness.counts import Count, Rates
from fedethos.fairness.histograms import FloatArray

CONFIDENCE = 0.95

_FEW = 6  # successes or failures; found by exact enumeration of the coverage (tests/fairness/test_intervals.py)
_SMOOTH = 8.0  # variance of the noise from which small counts no longer come in steps (tests/fairness/test_noisy_intervals.py)


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
    """``interval`` holds one pair of limits, however shaped. NaN anywhere makes the whole estimate undefined.

    The interval is widened to hold the value, which rates cut to [0, 1] can move outside it.
    """
    if not (math.isfinite(value) and np.isfinite(interval.low).all() and np.isfinite(interval.high).all()):
        return UNDEFINED
    low, high = min(value, interval.low.item()), max(value, interval.high.item())
    return Estimate(value, low, high, abstained=(high - low) / 2.0 > tolerance)


def critical(confidence: float = CONFIDENCE, *, at_once: int = 1) -> float:
    """Two-sided normal quantile for ``at_once`` intervals that hold together (Sidak 1967: under any dependence)."""
    return float(stats.norm.ppf((1.0 + confidence ** (1.0 / at_once)) / 2.0))


@lru_cache(maxsize=256)
def critical_for_pairs(groups: int, confidence: float = CONFIDENCE) -> float:
    """Factor for all pairwise differences of ``groups`` means at once (Tukey); ``critical()`` for two groups."""
    return float(stats.studentized_range.ppf(confidence, groups, np.inf)) / math.sqrt(2.0)


def wilson(rates: Rates, *, z: float) -> Interval:
    """All p in [0, 1] with (S - p n)^2 <= z^2 (n p (1 - p) + noise variance of S - p n)."""
    return _shown(_wilson(rates, z))


def proportion(rates: Rates, *, z: float) -> Interval:
    """Wilson's interval; where successes or failures are few, its hull with Clopper & Pearson's."""
    return _shown(_limits(rates, z))


def contrast(first: Rates, second: Rates, *, z: float) -> Interval:
    """Signed difference ``first - second`` of independent proportions, broadcast against each other (Newcombe 1998, method 10).

    Where one rate is almost 0 and the other almost 1, the two errors add up instead of adding in squares: both point the same way.
    """
    gap = first.raw - second.raw
    (low_1, high_1), (low_2, high_2) = _limits(first, z), _limits(second, z)
    opposite = (_almost_none(first) & _almost_all(second)) | (_almost_all(first) & _almost_none(second))

    def joined(error_1: FloatArray, error_2: FloatArray) -> FloatArray:
        return np.where(opposite, error_1 + error_2, np.hypot(error_1, error_2))

    low = gap - joined(first.raw - low_1, high_2 - second.raw)
    high = gap + joined(high_1 - first.raw, second.raw - low_2)
    return Interval(np.clip(low, -1.0, 1.0), np.clip(high, -1.0, 1.0))


def ratio(first: Rates, second: Rates, *, z: float) -> Interval:
    """``first / second`` of independent proportions (Donner & Zou 2012), broadcast; no upper limit (inf) when second may be 0."""
    (low_1, high_1), (low_2, high_2) = _limits(first, z), _limits(second, z)
    product = first.raw * second.raw
    near, far = _reach(first.raw, low_1), _reach(first.raw, high_1)
    near_2, far_2 = _reach(second.raw, low_2), _reach(second.raw, high_2)
    with np.errstate(divide="ignore", invalid="ignore"):
        # The lower limit in its rationalised form: far_2 passes through 0, where the textbook form is 0 / 0.
        low = near / (product + np.sqrt(product**2 - near * far_2))
        high = (product + np.sqrt(np.maximum(product**2 - far * near_2, 0.0))) / near_2
    return Interval(np.where((low_1 > 0.0) & (second.raw > 0.0), low, 0.0), np.where(low_2 > 0.0, np.maximum(high, 0.0), np.inf))


def difference_band(rates: Rates, *, confidence: float = CONFIDENCE) -> Interval:
    """Largest minus smallest of the rates, at least two, [..., G] to [...]."""
    pairs = contrast(*_pairs(rates), z=critical_for_pairs(rates.raw.shape[-1], confidence))
    # The diagonal is the difference of a rate with itself: exactly 0, so it may not widen the band.
    low, high = (_set_diagonal(limits, 0.0) for limits in pairs)
    return Interval(low.max(axis=(-2, -1)), high.max(axis=(-2, -1)))


def worst_difference_band(*families: Rates) -> Interval:
    """The largest of the families' differences. The families count different people, so that their confidences multiply."""
    bands = [difference_band(rates, confidence=CONFIDENCE ** (1.0 / len(families))) for rates in families]
    return Interval(np.maximum.reduce([band.low for band in bands]), np.maximum.reduce([band.high for band in bands]))


def ratio_band(rates: Rates) -> Interval:
    """Smallest over largest of the rates, at least two, [..., G] to [...]."""
    pairs = ratio(*_pairs(rates), z=critical_for_pairs(rates.raw.shape[-1]))
    low, high = (_set_diagonal(limits, 1.0) for limits in pairs)
    return Interval(low.min(axis=(-2, -1)), high.min(axis=(-2, -1)))


def minimum_band(rates: Rates) -> Interval:
    """Smallest of the rates, [..., G] to [...]; the groups may overlap."""
    low, high = proportion(rates, z=critical(at_once=rates.raw.shape[-1]))
    return Interval(low.min(axis=-1), high.min(axis=-1))


def mean_band(rates: Rates) -> Interval:
    """Mean of independent rates, [..., G] to [...]: their errors add in squares (MOVER, Zou & Donner 2008).

    Errors of rates that are almost 0 or almost 1 point the same way and add up, as in ``contrast``.
    """
    low, high = _limits(rates, critical())
    extreme = _almost_none(rates) | _almost_all(rates)

    def joined(errors: FloatArray) -> FloatArray:
        together = np.where(extreme, errors, 0.0).sum(axis=-1)
        alone = (np.where(extreme, 0.0, errors) ** 2).sum(axis=-1)
        return np.asarray(np.sqrt(together**2 + alone) / rates.raw.shape[-1], dtype=np.float64)

    mean = rates.raw.mean(axis=-1)
    return _shown(Interval(mean - joined(rates.raw - low), mean + joined(high - rates.raw)))


def _wilson(rates: Rates, z: float) -> Interval:
    value, shrink = rates.raw, z**2 / rates.trials
    of_successes, of_failures = (z**2 * count.variance / rates.trials**2 for count in (rates.successes, rates.failures))
    # The limits are the roots of  square p^2 - 2 half p + constant.
    square = 1.0 + shrink - of_successes - of_failures
    half = value + shrink / 2.0 - of_successes
    root = np.sqrt(np.maximum(half**2 - square * (value**2 - of_successes), 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (half - root) / square, (half + root) / square
    bounded = ~(square <= 0.0)  # more noise than people: nothing is known
    return Interval(np.where(bounded, np.minimum(low, value), -np.inf), np.where(bounded, np.maximum(high, value), np.inf))


def _limits(rates: Rates, z: float) -> Interval:
    low, high = _wilson(rates, z)
    few = _few(rates.successes) | _few(rates.failures)
    value, trials = rates.raw[few], rates.trials[few]
    inside = np.clip(value, 0.0, 1.0)
    tail, x, y = stats.norm.sf(z), inside * trials, (1.0 - inside) * trials
    exact_low = np.where(x > 0.0, stats.beta.ppf(tail, x, y + 1.0), 0.0)
    exact_high = np.where(y > 0.0, stats.beta.isf(tail, x + 1.0, y), 1.0)

    def error(limit: FloatArray) -> FloatArray:
        noise = ((1.0 - limit) ** 2 * rates.successes.variance[few] + limit**2 * rates.failures.variance[few]) / trials**2
        return np.sqrt((limit - inside) ** 2 + z**2 * noise)

    low[few] = np.minimum(low[few], value - error(exact_low))
    high[few] = np.maximum(high[few], value + error(exact_high))
    return Interval(low, high)


def _shown(limits: Interval) -> Interval:
    return Interval(np.clip(limits.low, 0.0, 1.0), np.clip(limits.high, 0.0, 1.0))


def _reach(value: FloatArray, limit: FloatArray) -> FloatArray:
    """value^2 - (limit - value)^2."""
    return limit * (2.0 * value - limit)


def _few(count: Count) -> npt.NDArray[np.bool_]:
    return (count.value < _FEW) & (count.variance < _SMOOTH)


def _almost_none(rates: Rates) -> npt.NDArray[np.bool_]:
    return _few(rates.successes)


def _almost_all(rates: Rates) -> npt.NDArray[np.bool_]:
    return _few(rates.failures)


def _pairs(rates: Rates) -> tuple[Rates, Rates]:
    """All ordered pairs of groups: [..., G, 1] and [..., 1, G]."""
    return rates[..., :, None], rates[..., None, :]


def _set_diagonal(limits: FloatArray, value: float) -> FloatArray:
    return np.where(np.eye(limits.shape[-1], dtype=bool), value, limits)
