"""Which columns give a sensitive attribute away, alone and together.

Two measures per column: the share of the attribute's entropy that the column explains, I(G; X) / H(G) (Theil's U), and the AUC of a
logistic regression on the column's levels, tested on people it did not see. That regression has a parameter per level, so its fitted
probabilities are the levels' own group shares (here with one pseudo-row), and need no iteration. All columns together: a logistic
regression proper. AUC is .5 for a column that says nothing and 1 for one that gives the attribute away; over several groups it is
the mean of each group against the rest. Words of texts are in ``words.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.metrics import mutual_info_score

from fedethos.fairness.data_audit.predictors import FOLDS, design, folds_of, mean_auc, out_of_fold, sample_rows
from fedethos.fairness.data_audit.table import AuditTable, Column, FloatArray, IntArray


@dataclass(frozen=True)
class ColumnProxy:
    """``explained`` is Theil's U, None for free text. ``sensitive``: the column is a sensitive attribute itself."""

    column: str
    auc: float
    explained: float | None
    sensitive: bool


@dataclass(frozen=True)
class Proxies:
    """Columns, the strongest first; ``together``: AUC of all that are not sensitive; ``reads_itself``: the model reads the attribute."""

    columns: tuple[ColumnProxy, ...]
    together: float | None
    reads_itself: bool
    rows: int


def find_proxies(table: AuditTable, attribute: str, *, min_people: int, rng: np.random.Generator) -> Proxies | None:
    """None where fewer than two groups can be compared."""
    compared = table.compared(attribute, min_people)
    if len(compared) < 2:
        return None
    kept = np.flatnonzero(np.isin(table.groups[attribute], compared))
    rows = kept[sample_rows(np.unique(table.people[kept], return_inverse=True)[1], rng)]
    target = np.searchsorted(compared, table.groups[attribute][rows])
    fold = folds_of(np.unique(table.people[rows], return_inverse=True)[1], rng)
    columns = [column for column in table.columns if column.name != attribute]
    found = [_of_column(column, rows, target, fold, len(compared)) for column in columns]
    plain = [column for column in columns if not column.sensitive]
    return Proxies(
        columns=tuple(sorted((proxy for proxy in found if proxy is not None), key=lambda proxy: -proxy.auc)),
        together=_together(plain, rows, target, fold, len(compared)),
        reads_itself=any(column.name == attribute for column in table.columns),
        rows=len(rows),
    )


def level_shares(codes: IntArray, target: IntArray, fold: IntArray, classes: int) -> FloatArray:
    """Share of each class among the rows of the same level in the other folds, float64[n, classes], with one pseudo-row."""
    levels = int(codes.max()) + 1
    cells = np.bincount((fold * levels + codes) * classes + target, minlength=FOLDS * levels * classes).reshape(FOLDS, levels, classes)
    others = cells.sum(axis=0) - cells
    overall = (others.sum(axis=1) + 1.0) / (others.sum(axis=(1, 2)) + classes)[:, None]
    shares: FloatArray = (others + overall[:, None, :]) / (others.sum(axis=2, keepdims=True) + 1.0)
    return shares[fold, codes]


def _of_column(column: Column, rows: IntArray, target: IntArray, fold: IntArray, classes: int) -> ColumnProxy | None:
    """None for a column that is the same everywhere."""
    if column.text:
        auc = mean_auc(target, out_of_fold(design([column], rows), target, fold, classes))
        return None if auc is None else ColumnProxy(column.name, auc, None, column.sensitive)
    codes = np.unique(column.codes[rows], return_inverse=True)[1]
    auc = mean_auc(target, level_shares(codes, target, fold, classes))
    if auc is None or codes.max(initial=0) == 0:
        return None
    entropy = float(stats.entropy(np.bincount(target)))
    return ColumnProxy(column.name, auc, float(mutual_info_score(target, codes)) / entropy, column.sensitive)


def _together(columns: Sequence[Column], rows: IntArray, target: IntArray, fold: IntArray, classes: int) -> float | None:
    return mean_auc(target, out_of_fold(design(columns, rows), target, fold, classes)) if columns else None
