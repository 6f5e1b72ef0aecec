"""ROC curve of one group from its (possibly noisy) score histogram, and its concave hull.

Cells of a noisy table may be negative, so that rates would fall where they have to rise. The cells of each label are projected onto
those that are not negative and have the same sum: the nearest ones in least squares, and the most likely ones under the noise
(Duchi et al. 2008). Exact counts stay what they are. Next on the path: ``group_thresholds.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedethos.fairness.histograms import FloatArray, IntArray


@dataclass(frozen=True)
class Roc:
    """Points float64[K] from "nobody selected" to "everybody", by falling ``thresholds`` in log-odds; rates never fall.

    ``positives`` and ``negatives``: how many people have the favorable label and how many do not.
    """

    thresholds: FloatArray
    fpr: FloatArray
    tpr: FloatArray
    positives: float
    negatives: float

    @classmethod
    def of(cls, counts: IntArray, edges: FloatArray, *, favorable: int) -> Roc:
        """From counts int64[2, B] per (label, bin), the bins bounded by ``edges`` float64[B + 1]; both labels have people."""
        cells = [nonnegative(counts[label].astype(np.float64)) for label in (1 - favorable, favorable)]
        fpr, tpr = (np.r_[0.0, np.cumsum(one[::-1]) / one.sum()] for one in cells)
        fpr[-1] = tpr[-1] = 1.0
        return cls(edges[::-1].copy(), np.minimum(fpr, 1.0), np.minimum(tpr, 1.0), float(cells[1].sum()), float(cells[0].sum()))

    @property
    def selection_rate(self) -> FloatArray:
        return (self.positives * self.tpr + self.negatives * self.fpr) / (self.positives + self.negatives)

    def correct(self, fpr: FloatArray, tpr: FloatArray) -> FloatArray:
        """People decided as their label says at these rates."""
        return self.positives * tpr + self.negatives * (1.0 - fpr)

    def hull(self) -> Roc:
        """Only the points of the least concave function above the curve: what mixing thresholds can reach."""
        kept: list[int] = []
        for point in range(len(self.fpr)):
            while len(kept) >= 2 and not self._turns_down(kept[-2], kept[-1], point):
                kept.pop()
            kept.append(point)
        return Roc(self.thresholds[kept], self.fpr[kept], self.tpr[kept], self.positives, self.negatives)

    def _turns_down(self, first: int, second: int, third: int) -> bool:
        rise = (self.tpr[second] - self.tpr[first]) * (self.fpr[third] - self.fpr[first])
        return bool(rise > (self.tpr[third] - self.tpr[first]) * (self.fpr[second] - self.fpr[first]) + 1e-15)


def nonnegative(cells: FloatArray) -> FloatArray:
    """The nearest cells (least squares) that are not negative and have the sum of ``cells``, which is positive."""
    total = cells.sum()
    if cells.min() >= 0.0:
        return cells
    falling = np.sort(cells)[::-1]
    shift = (np.cumsum(falling) - total) / np.arange(1, len(cells) + 1)
    last = np.flatnonzero(falling > shift)[-1]
    return np.asarray(np.maximum(cells - shift[last], 0.0), dtype=np.float64)
