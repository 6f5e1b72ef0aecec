"""Labels that the rest of the data contradicts: a hint at label noise, counted per group and label.

As in confident learning (Northcutt, Jiang & Chuang 2021) probabilities come from models that did not see the person: here a
logistic regression on what the job's model reads. A row is contradicted when they give another label more than ``SURE``. Even a
perfect, calibrated model is sure and wrong at times: the number to expect from that is the sum of what it left open, over the rows
where it is sure. An excess over it is the hint. Where a group's excess is larger, its labels may be noisier, or the inputs mean
something else for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedethos.fairness.data_audit.predictors import design, folds_of, out_of_fold, sample_rows
from fedethos.fairness.data_audit.table import AuditTable, BoolArray, FloatArray, IntArray

SURE = 0.9


@dataclass(frozen=True)
class Contradicted:
    """``sure``: rows where the model is; ``contradicted``: those whose label is another; ``expected``: how many of them chance explains."""

    name: str
    rows: int
    sure: int
    contradicted: int
    expected: float


@dataclass(frozen=True)
class LabelNoise:
    """All rows, by label, and by group of each sensitive attribute (its ``unknown`` last)."""

    everybody: Contradicted
    by_label: tuple[Contradicted, ...]
    by_group: dict[str, tuple[Contradicted, ...]]


def label_noise(table: AuditTable, *, rng: np.random.Generator) -> LabelNoise | None:
    """None where the model reads nothing that differs, or all rows have one label."""
    rows = sample_rows(table.people, rng)
    label = table.label[rows]
    if len(np.unique(label)) < 2 or not table.columns:
        return None
    fold = folds_of(np.unique(table.people[rows], return_inverse=True)[1], rng)
    probability = out_of_fold(design(table.columns, rows), label, fold, len(table.labels))
    wrong, left_open = contradicted(probability, label), 1.0 - probability.max(axis=1)
    sure = left_open < 1.0 - SURE

    def count(name: str, part: BoolArray) -> Contradicted:
        expected = float(left_open[part & sure].sum())
        return Contradicted(name, int(part.sum()), int((part & sure).sum()), int((part & wrong).sum()), expected)

    return LabelNoise(
        everybody=count("all", np.full(len(rows), True)),
        by_label=tuple(count(name, label == place) for place, name in enumerate(table.labels)),
        by_group={
            attribute: tuple(count(name, table.groups[attribute][rows] == place) for place, name in enumerate(names))
            for attribute, names in table.categories.items()
        },
    )


def contradicted(probability: FloatArray, label: IntArray) -> BoolArray:
    """bool[n]: a label other than ``label`` int64[n] has more than ``SURE`` in ``probability`` float64[n, L]."""
    others = probability.copy()
    others[np.arange(len(label)), label] = 0.0
    result: BoolArray = others.max(axis=1) > SURE
    return result
