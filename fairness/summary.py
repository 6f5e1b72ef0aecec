"""From pooled count tables to the ``metrics`` and ``fairness`` sections of ``result.json``.

The room's front door. It sees counts only, never a record. ``summarise`` reads top-down: cut the tables at the threshold
(``layout.py``, ``counts.py``), withhold small groups (``suppression.py``), estimate (``estimates.py``), judge (``verdict.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedethos.errors import FedethosError
from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.estimates import (
    auc_estimate,
    gap_estimates,
    group_estimates,
    overall_estimates,
    withheld_group,
    worst_group_estimate,
)
from fedethos.fairness.histograms import BINS, OVERALL, IntArray, Tables, confusion
from fedethos.fairness.intervals import Estimate
from fedethos.fairness.layout import FINE, SCORES, Layout
from fedethos.fairness.suppression import withheld
from fedethos.fairness.verdict import Verdict, judge
from fedethos.job_data import UNKNOWN
from fedethos.storage import JsonValue


@dataclass(frozen=True)
class AttributeSummary:
    """One sensitive attribute. A withheld group stays in ``groups``, with every estimate undefined, its count too."""

    gaps: Mapping[str, Estimate]
    groups: Mapping[str, Mapping[str, Estimate]]
    withheld: tuple[str, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Summary:
    """``metrics`` by name; ``fairness`` by sensitive attribute (empty when the job declares none)."""

    metrics: Mapping[str, Estimate]
    fairness: Mapping[str, AttributeSummary]

    def as_json(self) -> dict[str, dict[str, JsonValue]]:
        """``metrics`` and ``fairness`` as ``result.json`` holds them: value, low, high, abstained."""
        return self._render(Estimate.as_json)

    def plain(self) -> dict[str, dict[str, JsonValue]]:
        """The same keys with bare numbers (None when undefined or withheld): for exact values that only a simulation sees."""
        return self._render(lambda one: one.value)

    def verdicts_json(self) -> dict[str, dict[str, JsonValue]]:
        """Per attribute: status, four_fifths, sentence, and the names of the withheld groups."""
        return {attribute: {**one.verdict.as_json(), "withheld": list(one.withheld)} for attribute, one in self.fairness.items()}

    def _render(self, render: Callable[[Estimate], JsonValue]) -> dict[str, dict[str, JsonValue]]:
        def each(estimates: Mapping[str, Estimate]) -> dict[str, JsonValue]:
            return {name: render(one) for name, one in estimates.items()}

        return {
            "metrics": each(self.metrics),
            "fairness": {
                attribute: each(one.gaps) | {"groups": {name: each(rates) for name, rates in one.groups.items()}}
                for attribute, one in self.fairness.items()
            },
        }


@dataclass(frozen=True)
class _Attribute:
    """Counts of one attribute's groups; ``shown`` are the indices of those that are not withheld."""

    names: tuple[str, ...]
    counts: GroupCounts
    shown: tuple[int, ...]

    @property
    def shown_counts(self) -> GroupCounts:
        return self.counts.take(self.shown)

    @property
    def shown_names(self) -> tuple[str, ...]:
        return tuple(self.names[group] for group in self.shown)


def summarise(
    tables: Tables,
    *,
    edge: int | None,
    categories: Mapping[str, Sequence[str]],
    label_values: Sequence[str],
    favorable: str,
    min_group_size: int,
    tolerance: float,
    noise_variance: float = 0.0,
    exact_auc: float | None = None,
) -> Summary:
    """Every metric of the pooled ``tables``, with 95 % intervals.

    Parameters
    ----------
    tables : mapping
        Pooled tables (``histograms.pool``): full histograms int64[G, L, BINS], one per key of ``categories``, or ``overall`` alone
        when that is empty; or the scores and groups of a ``Layout``, which the sites have cut already.
    edge : int, optional
        Threshold (``threshold.py``) at which full histograms are cut; None for the tables of a ``Layout``.
    categories : mapping
        Declared groups per sensitive attribute, without ``unknown``, which stands last in the table.
    label_values, favorable
        The job's labels in class order, and the favorable one.
    min_group_size : int
        Smaller groups are withheld (``suppression.py``).
    tolerance : float
        A half-width above it abstains. Applies to what compares or shows groups: everything in ``fairness`` except counts, and
        ``worst_group_accuracy``.
    noise_variance : float
        Variance of the privacy noise in one cell of the pooled tables; 0 for exact counts.
    exact_auc : float, optional
        AUC of the unbinned scores, where the caller knows it.

    Raises
    ------
    FedethosError
        AGG-736 for full histograms with noise: what is cut from them has the noise of many cells.
    """
    positive = label_values.index(favorable)
    if edge is not None:
        if noise_variance > 0.0:
            raise FedethosError("AGG-736", "Full histograms were given as noisy ones.", why="Their intervals would be too narrow.")
        tables = Layout(FINE, edge).tables(tables)

    def counted(attribute: str) -> _Attribute:
        names = (*categories[attribute], UNKNOWN) if categories else (OVERALL,)
        counts = GroupCounts.of(tables[attribute], favorable=positive, noise_variance=noise_variance)
        hidden = withheld(counts.people, min_group_size)
        return _Attribute(names, counts, tuple(group for group in range(len(names)) if group not in hidden))

    attributes = {attribute: counted(attribute) for attribute in categories or (OVERALL,)}
    everyone = min(attributes.values(), key=lambda one: len(one.names)).counts.total()  # the same people, with the least noise
    scores = tables[SCORES].astype(np.float64)
    return Summary(
        metrics=overall_estimates(everyone)
        | {
            "roc_auc": auc_estimate(scores[positive], scores[1 - positive], noise_variance=noise_variance, exact=exact_auc),
            "worst_group_accuracy": worst_group_estimate([one.shown_counts for one in attributes.values()], tolerance=tolerance),
        },
        fairness={
            attribute: _attribute_summary(attributes[attribute], everyone, min_group_size=min_group_size, tolerance=tolerance)
            for attribute in categories
        },
    )


def summarise_scores(scores: IntArray, *, edge: int, favorable: int, noise_variance: float) -> dict[str, Estimate]:
    """accuracy, balanced_accuracy, f1 and roc_auc of everybody, from a score table int64[2, BINS] alone (``layout.FINE``).

    For early stopping: nothing about groups is asked for. ``favorable`` is the index of the favorable label.
    """
    noise = noise_variance * np.array([edge, BINS - edge])  # of all the bins on one side of the threshold
    everyone = GroupCounts.of(confusion(scores, edge)[None], favorable=favorable, noise_variance=noise)
    by_label = scores.astype(np.float64)
    auc = auc_estimate(by_label[favorable], by_label[1 - favorable], noise_variance=noise_variance, exact=None)
    return overall_estimates(everyone) | {"roc_auc": auc}


def _attribute_summary(attribute: _Attribute, everyone: GroupCounts, *, min_group_size: int, tolerance: float) -> AttributeSummary:
    gaps = gap_estimates(attribute.shown_counts, tolerance=tolerance)
    rates = dict(zip(attribute.shown_names, group_estimates(attribute.shown_counts, tolerance=tolerance), strict=True))
    return AttributeSummary(
        gaps=gaps,
        groups={name: rates.get(name) or withheld_group() for name in attribute.names},
        withheld=tuple(name for name in attribute.names if name not in rates),
        verdict=judge(attribute.shown_counts, attribute.shown_names, everyone, gaps, min_group_size=min_group_size),
    )
