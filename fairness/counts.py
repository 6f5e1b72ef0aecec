"""Confusion counts per group, and the proportions made from them. Noise of the counts, when they have any, travels along.

The positive class is the job's favorable label. Next on the path: ``metrics.py`` (point values),
``intervals.py`` (their uncertainty).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedethos.fairness.histograms import FloatArray, IntArray, confusion


@dataclass(frozen=True)
class Count:
    """Counts float64[..., G] and the variance of the privacy noise in each (zero when exact)."""

    value: FloatArray
    variance: FloatArray

    def __add__(self, other: Count) -> Count:
        return Count(self.value + other.value, self.variance + other.variance)

    def total(self) -> Count:
        """All groups as one, [..., 1]."""
        return Count(self.value.sum(axis=-1, keepdims=True), self.variance.sum(axis=-1, keepdims=True))

    def take(self, groups: Sequence[int]) -> Count:
        index = np.asarray(groups, dtype=np.int64)
        return Count(self.value[..., index], self.variance[..., index])


@dataclass(frozen=True)
class Rates:
    """Proportions [..., G]: ``value``, number of ``trials``, noise variance of ``value``; all NaN without trials."""

    value: FloatArray
    trials: FloatArray
    noise_variance: FloatArray

    @classmethod
    def of(cls, successes: Count, failures: Count) -> Rates:
        """successes / (successes + failures). The noise variance is the delta method's, for independent noise in the two counts."""
        trials = successes.value + failures.value
        defined = np.where(trials >= 1.0, trials, np.nan)
        value = np.clip(successes.value / defined, 0.0, 1.0)
        noise = ((1.0 - value) ** 2 * successes.variance + value**2 * failures.variance) / defined**2
        return cls(value, defined, noise)

    def where_defined(self) -> Rates:
        """Only the groups with a denominator. For one table ([G], not [..., G])."""
        defined = np.isfinite(self.value)
        return Rates(self.value[defined], self.trials[defined], self.noise_variance[defined])


@dataclass(frozen=True)
class GroupCounts:
    """True and false positives and negatives per group; a positive is the favorable label."""

    true_positives: Count
    false_positives: Count
    false_negatives: Count
    true_negatives: Count

    @classmethod
    def of(cls, table: IntArray, *, edge: int, favorable: int, noise_variance: float = 0.0) -> GroupCounts:
        """From a pooled score histogram int64[G, 2, B] cut at ``edge``.

        Parameters
        ----------
        favorable : int
            Index of the favorable label.
        noise_variance : float
            Variance of the noise in one cell of ``table`` (the sum over the sites' variances); 0 for exact counts.
        """
        groups, _, bins = table.shape
        predicted = confusion(table, edge)
        positive, negative = predicted[:, favorable], predicted.sum(axis=1) - predicted[:, favorable]

        def count(values: IntArray, cells: int) -> Count:
            return Count(values.astype(np.float64), np.full(groups, cells * noise_variance))

        above, below = bins - edge, edge
        return cls(
            true_positives=count(positive[:, 1], above),
            false_positives=count(negative[:, 1], above),
            false_negatives=count(positive[:, 0], below),
            true_negatives=count(negative[:, 0], below),
        )

    def take(self, groups: Sequence[int]) -> GroupCounts:
        """These groups, in this order."""
        return GroupCounts(*(count.take(groups) for count in self._counts))

    def total(self) -> GroupCounts:
        """Everybody as one group."""
        return GroupCounts(*(count.total() for count in self._counts))

    @property
    def positives(self) -> Count:
        return self.true_positives + self.false_negatives

    @property
    def negatives(self) -> Count:
        return self.false_positives + self.true_negatives

    @property
    def people(self) -> Count:
        return self.positives + self.negatives

    @property
    def selection_rate(self) -> Rates:
        return Rates.of(self.true_positives + self.false_positives, self.false_negatives + self.true_negatives)

    @property
    def tpr(self) -> Rates:
        return Rates.of(self.true_positives, self.false_negatives)

    @property
    def fpr(self) -> Rates:
        return Rates.of(self.false_positives, self.true_negatives)

    @property
    def accuracy(self) -> Rates:
        return Rates.of(self.true_positives + self.true_negatives, self.false_positives + self.false_negatives)

    @property
    def jaccard(self) -> Rates:
        """TP / (TP + FP + FN); F1 = 2J / (1 + J)."""
        return Rates.of(self.true_positives, self.false_positives + self.false_negatives)

    @property
    def _counts(self) -> tuple[Count, Count, Count, Count]:
        return self.true_positives, self.false_positives, self.false_negatives, self.true_negatives
