"""Confusion counts per group, and the proportions made from them. Noise of the counts, when they have any, travels along.

The positive class is the job's favorable label, whatever the number of labels; ``classes.py`` has the rates of each label. Next on the
path: ``metrics.py`` (point values), ``intervals.py`` (their uncertainty).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedethos.errors import FedethosError
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
    """True and false positives and negatives per group: the favorable label against the rest.

    ``mislabeled``: people without the favorable label who get neither it nor their own; nobody where there are two labels.
    """

    true_positives: Count
    false_positives: Count
    false_negatives: Count
    true_negatives: Count
    mislabeled: Count

    @classmethod
    def of(cls, table: IntArray, *, favorable: int, noise_variance: float | FloatArray = 0.0) -> GroupCounts:
        """From counts per (group, label, prediction), int64[..., G, L, P].

        P = 2: decisions, 1 is "favorable" (``histograms.confusion``), and every other one is right for the other labels.
        P = L > 2: the predicted label.

        Parameters
        ----------
        favorable : int
            Index of the favorable label.
        noise_variance : float or float[2]
            Variance of the noise in one cell of ``table`` (the sum over the sites' variances), or by prediction; 0 for exact counts.

        Raises
        ------
        FedethosError
            AGG-781 for another number of predictions.
        """
        labels, predictions = table.shape[-2:]
        if predictions not in (2, labels):
            raise FedethosError("AGG-781", "A table of predictions has neither two of them nor one for each label.")
        values, variances = table.astype(np.float64), np.broadcast_to(np.asarray(noise_variance, dtype=np.float64), table.shape)
        positive = (np.arange(labels) == favorable)[:, None]
        selected = np.arange(predictions) == (1 if predictions == 2 else favorable)
        right = ~selected if predictions == 2 else np.eye(labels, dtype=np.bool_)

        def count(cells: npt.NDArray[np.bool_]) -> Count:
            where = np.broadcast_to(cells, (labels, predictions))
            return Count(values[..., where].sum(axis=-1), variances[..., where].sum(axis=-1))

        return cls(
            true_positives=count(positive & selected),
            false_positives=count(~positive & selected),
            false_negatives=count(positive & ~selected),
            true_negatives=count(~positive & ~selected & right),
            mislabeled=count(~positive & ~selected & ~right),
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
        return self.false_positives + self.rejected

    @property
    def rejected(self) -> Count:
        """Without the favorable label, and not predicted to have it."""
        return self.true_negatives + self.mislabeled

    @property
    def people(self) -> Count:
        return self.positives + self.negatives

    @property
    def selection_rate(self) -> Rates:
        return Rates(self.true_positives + self.false_positives, self.false_negatives + self.rejected)

    @property
    def tpr(self) -> Rates:
        return Rates(self.true_positives, self.false_negatives)

    @property
    def fpr(self) -> Rates:
        return Rates(self.false_positives, self.rejected)

    @property
    def accuracy(self) -> Rates:
        """People who get their own label."""
        return Rates(self.true_positives + self.true_negatives, self.false_positives + self.false_negatives + self.mislabeled)

    @property
    def jaccard(self) -> Rates:
        """TP / (TP + FP + FN); F1 = 2J / (1 + J)."""
        return Rates(self.true_positives, self.false_positives + self.false_negatives)

    @property
    def _counts(self) -> tuple[Count, Count, Count, Count, Count]:
        return self.true_positives, self.false_positives, self.false_negatives, self.true_negatives, self.mislabeled
