"""Forged counts: the tables of a site that claims as many people as it may, all judged rightly, the same in every group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedethos.messages import Tables

Table = npt.NDArray[np.int64]


def flattering(tables: Tables, people: int, favorable: int) -> Tables:
    """Tables of the same shapes for ``people`` people: accuracy 1, every fairness gap 0.

    Parameters
    ----------
    tables : int64[(groups,) labels, bins]
        What the site was asked for: score histograms, or counts by prediction: (unfavorable, favorable), or each of
        more than two labels. The group ``unknown`` is last.
    favorable : int
        Index of the favorable label, whose people get the highest score.
    """
    return {name: _flattering(table, people, favorable) for name, table in tables.items()}


def _flattering(table: Table, people: int, favorable: int) -> Table:
    forged = np.zeros_like(table)
    by_label = table.ndim == 3 and table.shape[-1] == table.shape[-2] > 2
    for label, of_label in enumerate(_evenly(people, table.shape[-2])):
        place = label if by_label else -1 if label == favorable else 0
        if table.ndim == 2:
            forged[label, place] = of_label
        else:
            groups = max(1, len(table) - 1)  # nobody is "unknown"
            forged[:groups, label, place] = _evenly(of_label, groups)
    return forged


def _evenly(total: int, parts: int) -> list[int]:
    return [total // parts + (place < total % parts) for place in range(parts)]
