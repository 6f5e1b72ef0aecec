"""Rates of every label where a job has more than two: recall, precision and F1 by label, their macro means, the worst recall.

Names and definitions as in scikit-learn's ``classification_report``; the true positive rate of a label is its recall. A label without
people has no recall, which is NaN here (scikit-learn: 0 and a warning), and so is a macro mean with such a label in it.
Tables and their noise are those of ``counts.py``. Next on the path: ``summary.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedethos.fairness.counts import Count, Rates
from fedethos.fairness.histograms import IntArray
from fedethos.fairness.intervals import (
    UNDEFINED,
    Estimate,
    Interval,
    critical,
    difference_band,
    estimate,
    mean_band,
    minimum_band,
    proportion,
)
from fedethos.fairness.metrics import difference


@dataclass(frozen=True)
class ClassCounts:
    """Counts per (group, label, predicted label), ``cells`` [G, K, K]. Rates and people are [G, K]."""

    cells: Count

    @classmethod
    def of(cls, table: IntArray, *, noise_variance: float = 0.0) -> ClassCounts:
        """``noise_variance``: of the noise in one cell of ``table``."""
        return cls(Count(table.astype(np.float64), np.full(table.shape, noise_variance)))

    def take(self, groups: Sequence[int]) -> ClassCounts:
        """These groups, in this order."""
        return ClassCounts(self.cells[np.asarray(groups, dtype=np.int64), :, :])

    def total(self) -> ClassCounts:
        """Everybody as one group."""
        return ClassCounts(Count(self.cells.value.sum(axis=0, keepdims=True), self.cells.variance.sum(axis=0, keepdims=True)))

    @property
    def people(self) -> Count:
        """With each label."""
        return self._sum(np.ones_like(self._own), axis=-1)

    @property
    def recall(self) -> Rates:
        """Of the people with a label, those for whom it is predicted."""
        return Rates(self._right, self._sum(~self._own, axis=-1))

    @property
    def precision(self) -> Rates:
        """Of the people for whom a label is predicted, those who have it."""
        return Rates(self._right, self._sum(~self._own, axis=-2))

    @property
    def jaccard(self) -> Rates:
        """TP / (TP + FP + FN) of each label; F1 = 2J / (1 + J)."""
        return Rates(self._right, self._sum(~self._own, axis=-1) + self._sum(~self._own, axis=-2))

    @property
    def _own(self) -> npt.NDArray[np.bool_]:
        return np.eye(self.cells.value.shape[-1], dtype=np.bool_)

    @property
    def _right(self) -> Count:
        return self._sum(self._own, axis=-1)

    def _sum(self, where: npt.NDArray[np.bool_], *, axis: int) -> Count:
        return Count(np.where(where, self.cells.value, 0.0).sum(axis=axis), np.where(where, self.cells.variance, 0.0).sum(axis=axis))


@dataclass(frozen=True)
class ClassSummary:
    """``labels``: precision, recall, f1 and count by label. ``gaps`` and ``groups``: by attribute and label, how recall differs between
    groups, and the recall of each group, undefined where it is withheld."""

    worst_class_recall: Estimate
    labels: Mapping[str, Mapping[str, Estimate]]
    gaps: Mapping[str, Mapping[str, Estimate]]
    groups: Mapping[str, Mapping[str, Mapping[str, Estimate]]]


def macro_estimates(everyone: ClassCounts, accuracy: Rates) -> dict[str, Estimate]:
    """accuracy, balanced_accuracy (macro recall) and f1 (macro F1) of all people as one group.

    One error moves the F1 of two labels. Limits of macro F1 are the means of the labels' limits, which holds under any dependence:
    a mean of variables never has a larger standard deviation than their standard deviations' mean.
    """
    recall, f1 = everyone.recall[0, :], everyone.jaccard[0, :]
    limits = _f1(proportion(f1, z=critical()))
    return {
        "accuracy": estimate(float(accuracy.value[0]), proportion(accuracy, z=critical())),
        "balanced_accuracy": estimate(float(recall.value.mean()), mean_band(recall)),
        "f1": estimate(float((2.0 * f1.value / (1.0 + f1.value)).mean()), Interval(limits.low.mean(), limits.high.mean())),
    }


def summarise_classes(
    labels: Sequence[str],
    everyone: ClassCounts,
    attributes: Mapping[str, tuple[Sequence[str], Sequence[int], ClassCounts]],
    *,
    tolerance: float,
) -> ClassSummary:
    """Every rate by label.

    Parameters
    ----------
    attributes : mapping
        Per attribute the names of its groups, the indices of those that may be shown, and their counts.
    tolerance : float
        A half-width above it abstains; applies to what compares or shows groups or labels' worst.
    """
    z = critical()
    recall = everyone.recall[0, :]
    defined = recall.where_defined()
    worst = estimate(float(defined.value.min()), minimum_band(defined), tolerance=tolerance) if len(defined.value) else UNDEFINED
    return ClassSummary(
        worst_class_recall=worst,
        labels={label: _of_label(everyone, place, z) for place, label in enumerate(labels)},
        gaps={
            attribute: {label: _gap(counts.take(shown).recall[:, place], tolerance) for place, label in enumerate(labels)}
            for attribute, (_, shown, counts) in attributes.items()
        },
        groups={
            attribute: {
                label: {
                    name: _shown(counts.recall[np.array([group]), place], z, tolerance) if group in shown else UNDEFINED
                    for group, name in enumerate(names)
                }
                for place, label in enumerate(labels)
            }
            for attribute, (names, shown, counts) in attributes.items()
        },
    )


def _of_label(everyone: ClassCounts, place: int, z: float) -> dict[str, Estimate]:
    only = (slice(None), place)
    jaccard = everyone.jaccard[only]
    people, half = everyone.people[only], z * np.sqrt(everyone.people[only].variance.item())
    size = people.value.item()
    return {
        "precision": _shown(everyone.precision[only], z),
        "recall": _shown(everyone.recall[only], z),
        "f1": estimate((2.0 * jaccard.value / (1.0 + jaccard.value)).item(), _f1(proportion(jaccard, z=z))),
        "count": Estimate(size, max(0.0, size - half), size + half, abstained=False),
    }


def _shown(rate: Rates, z: float, tolerance: float = np.inf) -> Estimate:
    return estimate(rate.value.item(), proportion(rate, z=z), tolerance=tolerance)


def _gap(recall: Rates, tolerance: float) -> Estimate:
    defined = recall.where_defined()
    return estimate(difference(recall), difference_band(defined), tolerance=tolerance) if len(defined.value) > 1 else UNDEFINED


def _f1(jaccard: Interval) -> Interval:
    return Interval(*(2.0 * limit / (1.0 + limit) for limit in jaccard))
