"""Shares of rows per group where one person may have many rows.

A person's rows are alike, so n rows say less than n people. The effective number of trials is p (1 - p) / v, with v the linearised
variance of the ratio of sums over people (Kish 1965); with one row each it is the number of rows. Wilson's interval on it is Korn &
Graubard's (1998) way for clustered samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from fedethos.fairness.counts import Count, Rates
from fedethos.fairness.data_audit.table import AuditTable, BoolArray, FloatArray, IntArray
from fedethos.fairness.intervals import UNDEFINED, Estimate, Interval, critical, difference_band, estimate, proportion, ratio_band


@dataclass(frozen=True)
class GroupRate:
    """``rate`` is a share of the group's rows. ``small``: fewer people than the job shows; not compared."""

    group: str
    people: int
    rows: int
    rate: Estimate
    small: bool


@dataclass(frozen=True)
class RateComparison:
    """Rates per group; largest minus smallest, smallest over largest, and the p-value of equality (chi-square) over the compared groups."""

    groups: tuple[GroupRate, ...]
    difference: Estimate
    ratio: Estimate
    p_value: float | None


def compare_rates(hit: BoolArray, table: AuditTable, attribute: str, *, min_people: int) -> RateComparison:
    """How the share of rows with ``hit`` bool[n] differs between the groups of ``attribute``."""
    names, group, people = table.categories[attribute], table.groups[attribute], table.people_in(attribute)
    rates = clustered_rates(hit, group, table.people, len(names))
    low, high = proportion(rates, z=critical())
    rows = np.bincount(group, minlength=len(names))
    shown = tuple(
        GroupRate(
            name, int(people[g]), int(rows[g]), estimate(rates.value[g].item(), Interval(low[g], high[g])), bool(people[g] < min_people)
        )
        for g, name in enumerate(names)
    )
    compared = table.compared(attribute, min_people)
    if len(compared) < 2:
        return RateComparison(shown, UNDEFINED, UNDEFINED, None)
    chosen = rates[..., compared]
    smallest, largest = float(chosen.value.min()), float(chosen.value.max())
    ratio = estimate(smallest / largest, ratio_band(chosen)) if largest > 0.0 else UNDEFINED
    return RateComparison(shown, estimate(largest - smallest, difference_band(chosen)), ratio, _p_value(chosen))


def clustered_rates(hit: BoolArray, group: IntArray, people: IntArray, groups: int) -> Rates:
    """Share of rows with ``hit`` per group [G], as a proportion of effectively independent trials; NaN for an empty group."""
    rows = np.bincount(group, minlength=groups).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share: FloatArray = np.bincount(group, weights=hit, minlength=groups) / rows
    pair, place = np.unique(people * groups + group, return_inverse=True)
    of_pair = pair % groups
    hits, sizes = np.bincount(place, weights=hit), np.bincount(place)
    variance = np.bincount(of_pair, weights=(hits - share[of_pair] * sizes) ** 2, minlength=groups)
    members = np.bincount(of_pair, minlength=groups).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        trials = np.where(share * (1.0 - share) > 0.0, share * (1.0 - share) * rows**2 / variance, members)
    trials = np.minimum(trials, rows)
    share, nothing = np.nan_to_num(share), np.zeros(groups)
    return Rates(Count(share * trials, nothing), Count((1.0 - share) * trials, nothing))


def _p_value(rates: Rates) -> float | None:
    """Pearson's chi-square on the effective counts (Rao & Scott 1981, first order)."""
    observed = np.stack([rates.successes.value, rates.failures.value])
    if (observed.sum(axis=1) <= 0.0).any():
        return None
    return float(stats.chi2_contingency(observed, correction=False).pvalue)
