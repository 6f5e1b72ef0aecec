"""Confusion counts per group, and the proportions made from them. Noise of the counts, when they have any, travels along.

The positive class is the job's favorable label. Next on the path: ``metrics.py`` (point values),
``intervals.py`` (their uncertainty).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedethos.fairness.histograms import FloatArray, Index, IntArray


@dataclass(frozen=True)
class Count:
    """Counts float64[..., G] and the variance of the privacy noise in each (zero when exact). Noisy counts may be negative."""

    value: FloatArray
    variance: FloatArray

    def __add__(self, other: Count) -> Count:
        return Count(self.value + other.value, self.variance + other.variance)

    def __getitem__(self, index: Index) -> Count:
        return Count(self.value[index], self.variance[index])

    def total(self) -> Count:
        """All groups as one, [..., 1]."""
        return Count(self.value.sum(axis=-1, keepdims=True), self.variance.sum(axis=-1, keepdims=True))

    @classmethod
    def joined(cls, parts: Sequence[Count]) -> Count:
        """One after the other along the groups."""
        return cls(np.concatenate([part.value for part in parts], axis=-1), np.concatenate([part.variance for part in parts], axis=-1))


@dataclass(frozen=True)
class Rates:
    """Proportions ``successes / (successes + failures)``, [..., G]; the noise in the two counts is independent.

    ``trials``, ``raw`` and ``value`` are NaN without trials. ``raw`` can lie outside [0, 1] when the counts are noisy;
    ``value`` is cut to it.
    """

    successes: Count
    failures: Count

    @classmethod
    def of_share(cls, value: FloatArray, trials: FloatArray, noise_variance: FloatArray) -> Rates:
        """A proportion known by its value, an effective number of trials, and the variance of the noise in the value."""
        spread = noise_variance * trials**2 / ((1.0 - value) ** 2 + value**2)
        return cls(Count(value * trials, spread), Count((1.0 - value) * trials, spread))

    @property
    def trials(self) -> FloatArray:
        total = self.successes.value + self.failures.value
        return np.where(total >= 1.0, total, np.nan)

    @property
    def raw(self) -> FloatArray:
        return self.successes.value / self.trials

    @property
    def value(self) -> FloatArray:
        return np.clip(self.raw, 0.0, 1.0)

    def __getitem__(self, index: Index) -> Rates:
        return Rates(self.successes[index], self.failures[index])

    def where_defined(self) -> Rates:
        """Only the groups with a denominator. For one table ([G], not [..., G])."""
        return self[np.isfinite(self.trials)]

    @classmethod
    def joined(cls, parts: Sequence[Rates]) -> Rates:
        """One after the other along the groups."""
        return cls(Count.joined([part.successes for part in parts]), Count.joined([part.failures for part in parts]))


@dataclass(frozen=True)
class GroupCounts:
    """True and false positives and negatives per group; a positive is the favorable label."""

    true_positives: Count
    false_positives: Count
    false_negatives: Count
    true_negatives: Count

    @classmethod
    def of(cls, table: IntArray, *, favorable: int, noise_variance: float | FloatArray = 0.0) -> GroupCounts:
        """From counts per (group, label, prediction), int64[..., G, 2, 2] (``histograms.confusion``).

        Parameters
        ----------
        favorable : int
            Index of the favorable label.
        noise_variance : float or float[2]
            Variance of the noise in one cell of ``table`` (the sum over the sites' variances), or by prediction; 0 for exact counts.
        """
        values, variances = table.astype(np.float64), np.broadcast_to(np.asarray(noise_variance, dtype=np.float64), table.shape)

        def count(label: int, prediction: int) -> Count:
            return Count(values[..., label, prediction], variances[..., label, prediction])

        return cls(
            true_positives=count(favorable, 1),
            false_positives=count(1 - favorable, 1),
            false_negatives=count(favorable, 0),
            true_negatives=count(1 - favorable, 0),
        )

    def take(self, groups: Sequence[int]) -> GroupCounts:
        """These groups, in this order."""
        index = np.asarray(groups, dtype=np.int64)
        return GroupCounts(*(count[..., index] for count in self._counts))

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
        return Rates(self.true_positives + self.false_positives, self.false_negatives + self.true_negatives)

    @property
    def tpr(self) -> Rates:
        return Rates(self.true_positives, self.false_negatives)

    @property
    def fpr(self) -> Rates:
        return Rates(self.false_positives, self.true_negatives)

    @property
    def accuracy(self) -> Rates:
        return Rates(self.true_positives + self.true_negatives, self.false_positives + self.false_negatives)

    @property
    def jaccard(self) -> Rates:
        """TP / (TP + FP + FN); F1 = 2J / (1 + J)."""
        return Rates(self.true_positives, self.false_positives + self.false_negatives)

    @property
    def _counts(self) -> tuple[Count, Count, Count, Count]:
        return self.true_positives, self.false_positives, self.false_negatives, self.true_negatives
