"""Tables of the report where a job has more than two labels: rates by label, and the true positive rate by label and group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedethos.governance.charts import Table
from fedethos.job_data import UNKNOWN
from fedethos.result import Classes, OracleClasses
from fedethos.wording import interval, number


def labels_table(classes: Classes, labels: Sequence[str], exact: OracleClasses | None) -> Table:
    """Precision, recall and F1 of every label in the job's order, and last the worst recall."""
    columns = ("Label", "People", "Precision", "Recall", "F1")
    rows = [
        (label, f"{max(0, rates.count):,}", interval(rates.precision), interval(rates.recall), interval(rates.f1))
        for label in labels
        if (rates := classes.labels.get(label)) is not None
    ]
    rows.append(("worst of them", "", "", interval(classes.worst_class_recall), ""))
    if exact is None:
        return Table(columns, tuple(rows))
    known = [number(one.recall) if (one := exact.labels.get(label)) is not None else "" for label in labels]
    known.append(number(exact.worst_class_recall))
    return Table((*columns, "Exact recall, simulation only"), tuple((*row, value) for row, value in zip(rows, known, strict=True)))


def groups_tables(classes: Classes, labels: Sequence[str], declared: Mapping[str, Sequence[str]]) -> list[tuple[str, Table]]:
    """Per attribute its name and a table: groups by row (``unknown`` too), labels by column, the largest difference last."""
    tables = []
    for attribute, names in declared.items():
        if (by_label := classes.fairness.get(attribute)) is None:
            continue
        rows = [(name, *(interval(by_label[label].groups[name]) for label in labels)) for name in (*names, UNKNOWN)]
        rows.append(("largest difference", *(interval(by_label[label].true_positive_rate_difference) for label in labels)))
        tables.append((attribute, Table(("Group", *labels), tuple(rows))))
    return tables
