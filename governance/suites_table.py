"""The tables of benchmark scores in the report, from ``suites.json``."""

from __future__ import annotations

from dataclasses import dataclass

from fedethos.governance.charts import Table
from fedethos.suite_names import EVERYTHING
from fedethos.suite_record import SuiteScores, SuitesReport
from fedethos.suite_words import HEAD, groups, notes, rows


@dataclass(frozen=True)
class SuiteTables:
    """``by_group`` is None where a suite has no groups of its own."""

    name: str
    items: str
    overall: Table
    by_group: Table | None
    notes: tuple[str, ...]


def suite_tables(report: SuitesReport) -> list[SuiteTables]:
    """Benchmarks by name, then scenarios."""
    ordered = sorted(report.suites.items(), key=lambda one: (one[1].limit is not None, one[0]))
    return [SuiteTables(name, f"{scores.items:,}", _overall(scores), _by_group(scores), tuple(notes(scores))) for name, scores in ordered]


def _overall(scores: SuiteScores) -> Table:
    return Table(HEAD, tuple(rows(scores.groups[EVERYTHING])))


def _by_group(scores: SuiteScores) -> Table | None:
    own = tuple((name, *row) for name, group in groups(scores) for row in rows(group))
    return Table(("Group", *HEAD), own) if own else None
