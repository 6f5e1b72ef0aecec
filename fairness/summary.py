"""From pooled count tables to the ``metrics`` and ``fairness`` sections of ``result.json``.

The room's front door. It sees counts only, never a record. ``summarise`` reads top-down: cut the tables at the threshold
(``layout.py``, ``counts.py``), withhold small groups (``suppression.py``), estimate (``estimates.py``), judge (``verdict.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedethos.errors import FedethosError
from fedethos.fairness.classes import ClassCounts, ClassSummary, macro_estimates, summarise_classes
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
from fedethos.fairness.intervals import UNDEFINED, Estimate
from fedethos.fairness.layout import FINE, SCORES, Layout
from fedethos.fairness.responses import response_perplexity
from fedethos.fairness.suppression import withheld, withheld_combinations
from fedethos.fairness.verdict import Verdict, judge
from fedethos.intersections import parts_of
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
    """``metrics`` by name; ``fairness`` by attribute (empty when the job declares none); ``classes`` with more than two labels; ``slices``:
    tables of the job's scenarios."""

    metrics: Mapping[str, Estimate]
    fairness: Mapping[str, AttributeSummary]
    classes: ClassSummary | None = None
    slices: Mapping[str, AttributeSummary] = field(default_factory=dict)

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
    """Counts of one attribute's groups; ``hidden`` are the indices of those that are withheld."""

    names: tuple[str, ...]
    counts: GroupCounts
    hidden: tuple[int, ...]

    @property
    def shown(self) -> tuple[int, ...]:
        return tuple(group for group in range(len(self.names)) if group not in self.hidden)

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
    slices: Mapping[str, Sequence[str]] | None = None,
    noise_variance: float = 0.0,
    exact_auc: float | None = None,
    responses: bool = False,
) -> Summary:
    """Every metric of the pooled ``tables``, with 95 % intervals.

    Parameters
    ----------
    tables : mapping
        Pooled tables (``histograms.pool``): full histograms int64[G, L, BINS], one per key of ``categories`` and ``slices``, or
        ``overall`` alone when both are empty; or the scores and groups of a ``Layout``, which the sites have cut already.
    edge : int, optional
        Threshold (``threshold.py``) at which full histograms are cut; None for the tables of a ``Layout``.
        With more than two labels only those, by predicted label (AGG-780).
    categories : mapping
        Declared groups per attribute (``Job.attributes``: intersections last), without ``unknown``, which stands last in the table.
    slices : mapping, optional
        The same of the job's scenarios (``Job.slices``): summarised like attributes, but no part of ``fairness`` or of the worst group.
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
    responses : bool
        The score table is of response losses (``responses.py``): ``metrics`` has ``response_perplexity`` too, and no AUC.

    Raises
    ------
    FedethosError
        AGG-736 for full histograms with noise: what is cut from them has the noise of many cells.
    """
    positive, several = label_values.index(favorable), len(label_values) > 2
    if edge is not None:
        if responses:
            raise ValueError("full histograms do not tell how likely responses were")
        if noise_variance > 0.0:
            raise FedethosError("AGG-736", "Full histograms were given as noisy ones.", why="Their intervals would be too narrow.")
        tables = Layout(FINE, edge).tables(tables)

    declared = {name: (*groups, UNKNOWN) for name, groups in {**categories, **(slices or {})}.items()} or {OVERALL: (OVERALL,)}
    attributes: dict[str, _Attribute] = {}
    for attribute, names in declared.items():
        counts = GroupCounts.of(tables[attribute], favorable=positive, noise_variance=noise_variance)
        hidden = withheld(counts.people, min_group_size)
        if len(parts := parts_of(attribute)) > 1:
            own = [(len(categories[part]), attributes[part].hidden) for part in parts]
            hidden = withheld_combinations(counts.people, hidden, own)
        attributes[attribute] = _Attribute(names, counts, hidden)
    everyone = min(attributes.values(), key=lambda one: len(one.names)).counts.total()  # the same people, with the least noise
    classes = {attribute: ClassCounts.of(tables[attribute], noise_variance=noise_variance) for attribute in attributes} if several else {}
    compared = [attributes[name].shown_counts for name in categories] or [everyone]
    all_classes = min(classes.values(), key=lambda one: len(one.cells.value)).total() if several else None
    summaries = {
        name: _attribute_summary(one, everyone, min_group_size=min_group_size, tolerance=tolerance) for name, one in attributes.items()
    }
    return Summary(
        metrics=(macro_estimates(all_classes, everyone.accuracy) if all_classes else overall_estimates(everyone))
        | {
            "roc_auc": UNDEFINED if responses else _auc(tables[SCORES], positive, noise_variance, exact_auc),
            **({"response_perplexity": response_perplexity(tables[SCORES][0], noise_variance=noise_variance)} if responses else {}),
            "worst_group_accuracy": worst_group_estimate(compared, tolerance=tolerance),
        },
        fairness={name: summaries[name] for name in categories},
        slices={name: summaries[name] for name in slices or ()},
        classes=summarise_classes(
            label_values,
            all_classes,
            {name: (attributes[name].names, attributes[name].shown, classes[name]) for name in categories},
            tolerance=tolerance,
        )
        if all_classes
        else None,
    )


def summarise_scores(scores: IntArray, *, edge: int, favorable: int, noise_variance: float) -> dict[str, Estimate]:
    """accuracy, balanced_accuracy, f1 and roc_auc of everybody, from a score table int64[L, BINS] alone (``layout.FINE``).

    For early stopping: nothing about groups is asked for. ``favorable`` is the index of the favorable label. With more than two labels
    only roc_auc: the scores do not tell which label is predicted.
    """
    auc = _auc(scores, favorable, noise_variance, None)
    if len(scores) > 2:
        return {"roc_auc": auc}
    noise = noise_variance * np.array([edge, BINS - edge])  # of all the bins on one side of the threshold
    everyone = GroupCounts.of(confusion(scores, edge)[None], favorable=favorable, noise_variance=noise)
    return overall_estimates(everyone) | {"roc_auc": auc}


def _auc(scores: IntArray, favorable: int, noise_variance: float, exact: float | None) -> Estimate:
    """roc_auc of the favorable label against the rest, from a score table int64[L, B]."""
    positives = scores[favorable].astype(np.float64)
    negatives = np.delete(scores, favorable, axis=0).sum(axis=0).astype(np.float64)
    return auc_estimate(positives, negatives, noise_variance=noise_variance * np.array([1.0, len(scores) - 1.0]), exact=exact)


def _attribute_summary(attribute: _Attribute, everyone: GroupCounts, *, min_group_size: int, tolerance: float) -> AttributeSummary:
    gaps = gap_estimates(attribute.shown_counts, tolerance=tolerance)
    rates = dict(zip(attribute.shown_names, group_estimates(attribute.shown_counts, tolerance=tolerance), strict=True))
    return AttributeSummary(
        gaps=gaps,
        groups={name: rates.get(name) or withheld_group() for name in attribute.names},
        withheld=tuple(name for name in attribute.names if name not in rates),
        verdict=judge(attribute.shown_counts, attribute.shown_names, everyone, gaps, min_group_size=min_group_size),
    )
