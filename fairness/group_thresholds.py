"""Decision rules per group that equalise a rate between the groups at the best accuracy, from one pooled score histogram.

Hardt, Price and Srebro 2016, "Equality of opportunity in supervised learning". With ``randomized`` the rules are those of fairlearn's
``ThresholdOptimizer``: points on the hull of each group's ROC curve, reached by a coin between two thresholds. Without it each
group has one threshold: the score at which its rate is the common one, counted as evenly spread within a bin. Equalized odds fix two
rates with one threshold, which only a coin can do.

A group that is too small to know its rate keeps everybody's threshold. So does ``unknown``, for a missing value is no reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from fedethos.errors import FedethosError
from fedethos.fairness.decision_rules import DecisionRule, GroupRules
from fedethos.fairness.histograms import FloatArray, IntArray
from fedethos.fairness.intervals import critical
from fedethos.fairness.roc import Roc

Constraint = Literal["demographic_parity", "equal_opportunity", "equalized_odds"]

_RATE: Mapping[Constraint, Callable[[Roc], FloatArray]] = {
    "demographic_parity": lambda roc: roc.selection_rate,
    "equal_opportunity": lambda roc: roc.tpr,
    "equalized_odds": lambda roc: roc.fpr,  # the common false positive rate; the true positive rate follows
}


@dataclass(frozen=True, kw_only=True)
class Noise:
    """``variance`` of the noise in one cell, 0 for exact counts; ``tolerance``: the half-width to which a group's rate has to be known."""

    variance: float
    tolerance: float
    min_group_size: int


def group_rules(
    attribute: str,
    table: IntArray,
    edges: FloatArray,
    *,
    constraint: Constraint,
    favorable: int,
    pooled: float,
    randomized: bool,
    noise: Noise,
) -> GroupRules:
    """One decision rule per group.

    Parameters
    ----------
    table : int64[G, 2, B]
        Pooled counts per (group, label, score bin), ``unknown`` last; noisy ones as they are.
    edges : float64[B + 1]
        Bounds of the bins in log-odds.
    pooled : float
        Everybody's threshold in log-odds, for the groups without their own.

    Raises
    ------
    FedethosError
        AGG-761 for equalized odds without ``randomized``; AGG-762 when table and edges do not fit.
    """
    if constraint == "equalized_odds" and not randomized:
        raise FedethosError("AGG-761", "Equalized odds need randomized decisions.", where="fairness.thresholds")
    if table.ndim != 3 or table.shape[1:] != (2, len(edges) - 1):
        raise FedethosError("AGG-762", "A table of group scores does not have the bins that were asked for.")
    own = [group for group in range(len(table) - 1) if _is_known(table[group], constraint, favorable, noise)]
    if len(own) < 2:
        own = []
    curves = [Roc.of(table[group], edges, favorable=favorable) for group in own]
    found = dict(zip(own, solve(curves, constraint, randomized=randomized), strict=True))
    return GroupRules(
        attribute,
        tuple(found.get(group, DecisionRule.at(pooled)) for group in range(len(table))),
        tuple(group for group in range(len(table)) if group not in found),
    )


def solve(curves: Sequence[Roc], constraint: Constraint, *, randomized: bool) -> list[DecisionRule]:
    """The rules of the best accuracy over all groups at which their rates are equal, one per curve; none without curves."""
    if not curves:
        return []
    if randomized:
        curves = [roc.hull() for roc in curves]
    if constraint == "equalized_odds":
        return _equalized_odds(curves)
    rates = [_RATE[constraint](roc) for roc in curves]
    common = np.unique(np.concatenate(rates))  # accuracy is linear between the points of the curves, so it is best at one of them
    correct = np.zeros(len(common))
    for roc, rate in zip(curves, rates, strict=True):
        before, after, weight = _between(rate, common)
        correct += roc.correct(_mixed(roc.fpr, before, after, weight), _mixed(roc.tpr, before, after, weight))
    best = common[[int(np.argmax(correct))]]
    places = [tuple(part.item() for part in _between(rate, best)) for rate in rates]
    if randomized:
        return [_coin(roc, int(before), int(after), weight) for roc, (before, after, weight) in zip(curves, places, strict=True)]
    thresholds = [
        (1.0 - weight) * roc.thresholds[int(before)] + weight * roc.thresholds[int(after)]
        for roc, (before, after, weight) in zip(curves, places, strict=True)
    ]
    return [DecisionRule.at(float(threshold)) for threshold in thresholds]


def _equalized_odds(curves: Sequence[Roc]) -> list[DecisionRule]:
    """Every group at the best point below all hulls; a group whose own hull is higher comes down by a coin that ignores the score."""
    common = _breakpoints(curves)
    reach = np.stack([_highest(roc, common) for roc in curves])
    lowest = reach.min(axis=0)
    correct = np.sum([roc.correct(common, lowest) for roc in curves], axis=0)
    best = int(np.argmax(correct))
    fpr, tpr = float(common[best]), float(lowest[best])
    rules = []
    for roc, own in zip(curves, reach[:, best], strict=True):
        ignored = (own - tpr) / (own - fpr) if own > fpr else 0.0
        before, after, weight = _between(roc.fpr, common[[best]], last=True)
        rules.append(_coin(roc, before.item(), after.item(), weight.item(), ignored=float(ignored), constant=fpr))
    return rules


def _breakpoints(curves: Sequence[Roc]) -> FloatArray:
    """False positive rates at which the lowest of the hulls bends: the hulls' own points, and where two of them cross."""
    grid = np.unique(np.concatenate([roc.fpr for roc in curves]))
    crossings = []
    for one, other in combinations([_highest(roc, grid) for roc in curves], 2):
        gap = one - other
        here = np.flatnonzero(gap[:-1] * gap[1:] < 0.0)
        crossings.append(grid[here] + (grid[here + 1] - grid[here]) * gap[here] / (gap[here] - gap[here + 1]))
    return np.unique(np.concatenate([grid, *crossings]))


def _highest(hull: Roc, fpr: FloatArray) -> FloatArray:
    return _mixed(hull.tpr, *_between(hull.fpr, fpr, last=True))


def _between(rate: FloatArray, wanted: FloatArray, *, last: bool = False) -> tuple[IntArray, IntArray, FloatArray]:
    """Neighbouring points of a rising ``rate`` around each wanted one, and the weight of the second of them.

    Where several points have exactly the wanted rate, the first: of equal true positive rates the fewest false positives. ``last``: the
    last of them, of equal false positive rates the most true positives.
    """
    exact = np.searchsorted(rate, wanted, side="right") - 1 if last else np.searchsorted(rate, wanted, side="left")
    hit = rate[exact] == wanted
    before = np.where(hit | last, exact, exact - 1)
    after = np.where(hit, before, before + 1)
    step = np.where(hit, 1.0, rate[after] - rate[before])
    return before, after, np.where(hit, 0.0, (wanted - rate[before]) / step)


def _mixed(values: FloatArray, before: IntArray, after: IntArray, weight: FloatArray) -> FloatArray:
    return np.asarray((1.0 - weight) * values[before] + weight * values[after], dtype=np.float64)


def _coin(roc: Roc, before: int, after: int, weight: float, *, ignored: float = 0.0, constant: float = 0.0) -> DecisionRule:
    """The lower of two thresholds with probability ``weight``, else the higher; with probability ``ignored`` the chance ``constant``.

    The first and last point of a curve select nobody and everybody, whatever the score.
    """
    everybody, nobody = after == len(roc.fpr) - 1, before == 0
    if before == after:
        weight = float(everybody)
    low, high = float(roc.thresholds[after]), float(roc.thresholds[before])
    below, above = (weight if everybody else 0.0), (weight if nobody else 1.0)
    between = weight if low < high else above
    chances = ((1.0 - ignored) * chance + ignored * constant for chance in (below, between, above))
    return DecisionRule(low, high, tuple(chances))  # type: ignore[arg-type]


def _is_known(counts: IntArray, constraint: Constraint, favorable: int, noise: Noise) -> bool:
    """Whether the group's rate is known to the tolerance (95 %) wherever the threshold falls, and the group is large enough to be shown.

    A rate r of n people is a ratio of sums over the bins above and below the threshold: its variance is at most 1/(4n) from sampling
    and bins * noise / (4 n^2) * 4 r_max^2 from noise, taken at r = 1/2.
    """
    people = counts.sum(axis=-1).astype(np.float64)
    bins = counts.shape[-1]
    if people.min() < 1.0 or people.sum() < noise.min_group_size:
        return False
    sizes = {
        "demographic_parity": ((people.sum(), 2 * bins),),
        "equal_opportunity": ((people[favorable], bins),),
        "equalized_odds": ((people[0], bins), (people[1], bins)),
    }[constraint]
    return all(critical() * np.sqrt(0.25 / size + 0.25 * cells * noise.variance / size**2) <= noise.tolerance for size, cells in sizes)
