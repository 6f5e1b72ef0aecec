"""The table of counterfactual flips in the report, from ``flips.json``."""

from __future__ import annotations

from fedethos.flip_record import FlipReport
from fedethos.governance.charts import Table
from fedethos.wording import FLIPS, flip_rows


def flips_table(report: FlipReport) -> Table:
    """One row for everybody and one per group, of each attribute."""
    rows = [
        (attribute, group, f"{measures.records:,}", *(text for _, text in flip_rows(measures)))
        for attribute, one in report.attributes.items()
        for group, measures in {f"all {report.split} records": one, **one.groups}.items()
    ]
    return Table(("By", "Records of", "Records", *FLIPS.values()), tuple(rows))
