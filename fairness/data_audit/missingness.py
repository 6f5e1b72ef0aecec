"""What is missing, by group, and how long the texts are: a model that reads less about a group serves it worse."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedethos.fairness.data_audit.rates import RateComparison, compare_rates
from fedethos.fairness.data_audit.table import AuditTable
from fedethos.job_data import UNKNOWN


@dataclass(frozen=True)
class Missing:
    """``by_attribute``: the share of missing cells compared between groups; the attribute's own column is never compared with itself."""

    column: str
    rows: int
    by_attribute: dict[str, RateComparison]


@dataclass(frozen=True)
class TextLength:
    """Words per record: tenth percentile, median, ninetieth."""

    group: str
    rows: int
    low: float
    median: float
    high: float


def missing_columns(table: AuditTable, *, min_people: int) -> tuple[Missing, ...]:
    """Columns with a missing cell: the model's inputs and the sensitive attributes."""
    holes = {column.name: column.missing for column in table.columns}
    holes |= {attribute: table.groups[attribute] == names.index(UNKNOWN) for attribute, names in table.categories.items()}
    return tuple(
        Missing(
            column=name,
            rows=int(hole.sum()),
            by_attribute={
                attribute: compare_rates(hole, table, attribute, min_people=min_people) for attribute in table.groups if attribute != name
            },
        )
        for name, hole in sorted(holes.items())
        if hole.any()
    )


def text_lengths(table: AuditTable, attribute: str) -> tuple[TextLength, ...]:
    """Per group that has rows; empty where the model reads no text."""
    if not table.text:
        return ()
    words = np.array([len(text.split()) for text in table.text])
    group = table.groups[attribute]
    return tuple(
        TextLength(name, len(part), *(float(value) for value in np.quantile(part, (0.1, 0.5, 0.9))))
        for place, name in enumerate(table.categories[attribute])
        if len(part := words[group == place])
    )
