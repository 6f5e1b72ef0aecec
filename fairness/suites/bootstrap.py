"""95 % intervals of benchmark scores, of the untouched base model's, and of the change from one to the other.

Percentile bootstrap over units (Efron & Tibshirani 1993, chapter 13): both models are resampled with the same units, so the change is a
paired comparison. Intervals are of the choice of units alone: another prompt or another seed of training is another number.

Where no resample differs, because all units agree, the bootstrap would claim certainty. There the limits reach as far into the measure's
range as Clopper & Pearson's do from 0 of n: 1 - 0.025^(1/n).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedethos.fairness.intervals import CONFIDENCE, UNDEFINED, Estimate, Interval, estimate
from fedethos.fairness.suites.tally import Floats, Measure, Tally

RESAMPLES = 2000
_AT_ONCE = 100  # resamples in memory together
_FEWEST_UNITS = 10  # the percentile bootstrap of fewer covers far less than it says
_MOST_UNDEFINED = 0.05  # share of resamples in which a measure may be undefined


@dataclass(frozen=True)
class Compared:
    """One measure of the released adapter, of the base model without it, and adapter minus base."""

    adapter: Estimate
    base: Estimate
    change: Estimate


def compare(adapter: Tally, base: Tally, *, seed: int) -> dict[str, Compared]:
    """All measures of two models on the same units, with intervals; undefined for fewer than 10 units."""
    if adapter.sums.shape != base.sums.shape:
        raise ValueError("the two models answered different units")
    drawn_adapter, drawn_base = _resampled(adapter, base, seed)
    units = len(adapter.sums)
    found = {}
    for name, measure in adapter.measures.items():
        values = [measure.value(tally.sums.sum(axis=0)).item() for tally in (adapter, base)]
        draws = [measure.value(drawn_adapter), measure.value(drawn_base)]
        width = measure.highest - measure.lowest
        difference = Measure(measure.value, -width, width)
        found[name] = Compared(
            adapter=_estimate(values[0], draws[0], measure, units),
            base=_estimate(values[1], draws[1], measure, units),
            change=_estimate(values[0] - values[1], draws[0] - draws[1], difference, units),
        )
    return found


def _resampled(adapter: Tally, base: Tally, seed: int) -> tuple[Floats, Floats]:
    """Sums of the resamples, each float64[RESAMPLES, c]."""
    rng = np.random.default_rng(seed)
    units = len(adapter.sums)
    parts = []
    for _ in range(RESAMPLES // _AT_ONCE):
        counts = rng.multinomial(units, np.full(units, 1.0 / units), size=_AT_ONCE).astype(np.float64)
        parts.append((counts @ adapter.sums, counts @ base.sums))
    return np.concatenate([one for one, _ in parts]), np.concatenate([one for _, one in parts])


def _estimate(value: float, draws: Floats, measure: Measure, units: int) -> Estimate:
    defined = draws[np.isfinite(draws)]
    if units < _FEWEST_UNITS or not np.isfinite(value) or len(defined) < (1.0 - _MOST_UNDEFINED) * len(draws):
        return UNDEFINED
    low, high = np.quantile(defined, [(1.0 - CONFIDENCE) / 2.0, (1.0 + CONFIDENCE) / 2.0])
    if np.ptp(defined) <= 1e-12 * max(1.0, abs(value)):
        reach = 1.0 - ((1.0 - CONFIDENCE) / 2.0) ** (1.0 / units)
        low, high = value - reach * (value - measure.lowest), value + reach * (measure.highest - value)
    return estimate(value, Interval(np.asarray(low), np.asarray(high)))
