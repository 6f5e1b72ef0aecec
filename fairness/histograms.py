"""Score histograms: what a site counts about its evaluation records, and how the tables of all sites are pooled.

A site counts its records per (group, label, bin of the score); the coordinator adds the tables of all sites and derives every
metric from the sum. Ratios are never averaged over sites. Under privacy a smaller choice of tables leaves the site, with noise
(``layout.py``). Next on the path: ``counts.py`` (tables to confusion counts).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import EllipsisType

import numpy as np
import numpy.typing as npt

from fedethos.errors import FedethosError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Index = npt.NDArray[np.bool_] | tuple[EllipsisType | slice | npt.NDArray[np.int64] | int | None, ...]
Tables = Mapping[str, IntArray]

BINS = 64
EDGES: FloatArray = np.linspace(-16.0, 16.0, BINS + 1)
"""Bin b holds log-odds in [EDGES[b], EDGES[b + 1]); the first and the last bin are open to the outside."""

OVERALL = "overall"
"""Name of the only table when the job declares no sensitive attribute."""

_MOST_PEOPLE = 2**40  # far above any site; sums over thousands of sites stay exact in int64


def histogram(log_odds: npt.NDArray[np.floating], label: IntArray, group: IntArray, *, groups: int, labels: int) -> IntArray:
    """Count records per (group, label, bin).

    Parameters
    ----------
    log_odds : float[n]
        Log-odds of the favorable label. Infinite values fall into the outer bins.
    label, group : int64[n]
        Indices below ``labels`` and ``groups``.

    Returns
    -------
    int64[groups, labels, BINS]

    Raises
    ------
    FedethosError
        NODE-520 for a score that is NaN, NODE-521 for arrays of different length or an index that is not declared. Nothing is dropped.
    """
    if not log_odds.shape == label.shape == group.shape or log_odds.ndim != 1:
        raise FedethosError("NODE-521", "Scores, labels and groups do not belong to the same records.")
    if np.isnan(log_odds).any():
        raise FedethosError(
            "NODE-520", "A score is not a number.", why="It has no place among the bins.", fix="Lower training.learning_rate."
        )
    if _outside(label, labels) or _outside(group, groups):
        raise FedethosError("NODE-521", "A record has a label or group that the job does not declare.", fix="Map it under data.map.")
    bins = np.searchsorted(EDGES[1:-1], log_odds, side="right")
    cell = (group * labels + label) * BINS + bins
    return np.bincount(cell, minlength=groups * labels * BINS).reshape(groups, labels, BINS).astype(np.int64)


def confusion(table: IntArray, edge: int) -> IntArray:
    """Counts per (group, label, prediction), int64[G, L, 2]; prediction 1 is "favorable": log-odds >= EDGES[edge].

    Raises
    ------
    FedethosError
        AGG-734 when ``edge`` is not an inner edge (1 to BINS - 1): the outer bins are open, so they cannot be cut at their ends.
    """
    if not 1 <= edge < BINS:
        raise FedethosError("AGG-734", f"Threshold edge {edge} is not one of 1 to {BINS - 1}.")
    return np.stack([table[..., :edge].sum(axis=-1), table[..., edge:].sum(axis=-1)], axis=-1)


def table_shapes(categories: Mapping[str, Sequence[str]], labels: int) -> dict[str, tuple[int, int, int]]:
    """Shapes of the tables that a job asks for: one per sensitive attribute, the group ``unknown`` last; else ``overall`` alone."""
    if not categories:
        return {OVERALL: (1, labels, BINS)}
    return {attribute: (len(names) + 1, labels, BINS) for attribute, names in categories.items()}


def check_tables(tables: Tables, shapes: Mapping[str, tuple[int, ...]], *, charged: bool = False) -> None:
    """Refuse tables of one site that are not what was asked, or that cannot be counts of one set of people.

    Parameters
    ----------
    charged : bool
        The counts are noisy: they may be negative, and two attributes need not agree.

    Raises
    ------
    FedethosError
        AGG-730 for other names, shapes or dtypes than asked; AGG-731 for a count that is negative or implausibly large;
        AGG-732 when two attributes count different people (their sums over groups differ).
    """
    if {name: (table.shape, table.dtype) for name, table in tables.items()} != {
        name: (shape, np.dtype(np.int64)) for name, shape in shapes.items()
    }:
        raise FedethosError(
            "AGG-730", "Count tables have other names, shapes or types than the job asks for.", fix="Compare the fedethos versions."
        )
    least = -_MOST_PEOPLE if charged else 0
    for name, table in tables.items():
        if table.min() < least or table.max() > _MOST_PEOPLE:
            raise FedethosError("AGG-731", "A count is negative or implausibly large.", where=name)
    first, *others = [table for table in tables.values() if table.ndim == 3] or [np.zeros((1, 1, 1), dtype=np.int64)]
    if not charged and any((other.sum(axis=0) != first.sum(axis=0)).any() for other in others):
        raise FedethosError(
            "AGG-732",
            "The tables of two sensitive attributes do not count the same people.",
            why="Every record has exactly one group per attribute; a missing value is the group unknown.",
        )


def pool(sites: Sequence[Tables], shapes: Mapping[str, tuple[int, ...]], *, charged: bool = False) -> dict[str, IntArray]:
    """Sum of the sites' tables, each checked by ``check_tables`` first. Noisy cells are added as they are.

    Raises
    ------
    FedethosError
        AGG-733 when there is no site to pool; else as ``check_tables``.
    """
    if not sites:
        raise FedethosError("AGG-733", "No site sent counts.")
    for tables in sites:
        check_tables(tables, shapes, charged=charged)
    return {name: np.sum([tables[name] for tables in sites], axis=0, dtype=np.int64) for name in shapes}


def _outside(index: IntArray, size: int) -> bool:
    return bool(((index < 0) | (index >= size)).any())
