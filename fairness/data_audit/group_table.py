"""Who is in the data: people and rows per group and label, and their shares against a population that the site names.

The representation ratio is a group's share of the people whose group is known, over its share in the reference population; its interval is
that of the share (``fairness/intervals.py``: Wilson, with Clopper & Pearson where few).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedethos.fairness.counts import Count, Rates
from fedethos.fairness.data_audit.table import AuditTable
from fedethos.fairness.intervals import UNDEFINED, Estimate, Interval, critical, estimate, proportion


@dataclass(frozen=True)
class GroupRow:
    """``people`` and ``rows`` in all, ``by_label`` people per label (somebody with rows of two labels counts in both).

    ``share`` of the people whose group is known. ``reference``: the group's share in the stated population, None without one.
    """

    group: str
    people: int
    rows: int
    by_label: tuple[int, ...]
    rows_by_label: tuple[int, ...]
    share: Estimate
    reference: float | None
    representation: Estimate


def group_table(table: AuditTable, attribute: str, reference: Mapping[str, float] | None = None) -> tuple[GroupRow, ...]:
    """One row per group of ``attribute``, ``unknown`` last. ``reference``: group to its share of the population."""
    names, group, labels = table.categories[attribute], table.groups[attribute], len(table.labels)
    people, cell = table.people_in(attribute), group * labels + table.label
    cells = len(names) * labels
    rows = np.bincount(cell, minlength=cells).reshape(-1, labels)
    pairs = np.unique(table.people * cells + cell) % cells
    by_label = np.bincount(pairs, minlength=cells).reshape(-1, labels)
    known = people[:-1].astype(np.float64)
    nothing = np.zeros_like(known)
    rates = Rates(Count(known, nothing), Count(known.sum() - known, nothing))
    low, high = proportion(rates, z=critical())
    result = []
    for place, name in enumerate(names):
        share, expected = UNDEFINED, None if reference is None else reference.get(name)
        representation = UNDEFINED
        if place < len(known):
            value, limits = float(rates.value[place]), Interval(low[place], high[place])
            share = estimate(value, limits)
            if expected:
                representation = estimate(value / expected, Interval(limits.low / expected, limits.high / expected))
        result.append(
            GroupRow(
                group=name,
                people=int(people[place]),
                rows=int(rows[place].sum()),
                by_label=tuple(by_label[place].tolist()),
                rows_by_label=tuple(rows[place].tolist()),
                share=share,
                reference=expected,
                representation=representation,
            )
        )
    return tuple(result)
