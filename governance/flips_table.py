"""The table of counterfactual flips in the report, from ``flips.json``."""

from __future__ import annotations

from fedethos.flip_record import FlipReport
from fedethos.governance.charts import Table
from fedethos.wording import FLIPS, flip_cells


def flips_table(report: FlipReport) -> Table:
    """One row for everybody of each attribute, and one per group where anything could be swapped."""
    rows = [
        (attribute, group, f"{measures.records:,}", *flip_cells(measures))
        for attribute, one in report.attributes.items()
        for group, measures in {f"all {report.split} records": one, **(one.groups if one.swapped else {})}.items()
    ]
    return Table(("By", "Records of", "Records", *FLIPS.values()), tuple(rows))
