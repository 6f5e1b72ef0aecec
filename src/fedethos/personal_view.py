"""The global adapter and the sites' personal ones side by side: the same rows in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedethos.result import GapName, MetricName, Personal, Result
from fedethos.wording import interval, natural, number

_METRICS: Mapping[MetricName, str] = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "roc_auc": "AUC",
    "worst_group_accuracy": "Worst-group accuracy",
}
_GAPS: Mapping[GapName, str] = {
    "demographic_parity_difference": "demographic-parity difference",
    "equalized_odds_difference": "equalized-odds difference",
    "equal_opportunity_difference": "equal-opportunity difference",
}
_RELEASED = ("global adapter", "personal adapters")
_EXACT = ("global, exact", "personal, exact")

Cells = tuple[str, ...]


def side_by_side(result: Result, personal: Personal, declared: Mapping[str, Sequence[str]], *, narrow: bool) -> tuple[Cells, list[Cells]]:
    """Headings of the columns after the first, and the rows with their labels.

    What the sites released is shown, and what only a simulation sees; either is left out where it is not there. ``narrow``: what was
    released stands alone. The last rows are the exact accuracy at each site.
    """
    known = personal.fairness or (personal.oracle.fairness if personal.oracle else {})
    attributes = [name for name in declared if name in known]
    columns: Cells = ()
    rows: list[Cells] = [(label,) for label in _METRICS.values()]
    rows += [(f"By {attribute}: {label}",) for attribute in attributes for label in _GAPS.values()]
    if released := _released(result, personal, attributes):
        columns, rows = _RELEASED, _beside(rows, released)
        if narrow:
            return columns, rows
    if exact := _exact(result, personal, attributes):
        columns, rows = columns + _EXACT, _beside(rows, exact)
        rows += _by_site(personal, empty=len(columns) - 2)
    return columns, rows


def _beside(rows: list[Cells], more: list[tuple[str, str]]) -> list[Cells]:
    return [row + pair for row, pair in zip(rows, more, strict=True)]


def _released(result: Result, personal: Personal, attributes: Sequence[str]) -> list[tuple[str, str]]:
    """Empty where the sites sent no counts of the personal adapters."""
    if personal.metrics.accuracy.low is None:
        return []
    pairs = [(result.metrics.of(name), personal.metrics.of(name)) for name in _METRICS]
    pairs += [(result.fairness[one].of(gap), personal.fairness[one].of(gap)) for one in attributes for gap in _GAPS]
    return [(interval(shared), interval(own)) for shared, own in pairs]


def _exact(result: Result, personal: Personal, attributes: Sequence[str]) -> list[tuple[str, str]]:
    """Empty outside simulations."""
    shared, own = result.oracle, personal.oracle
    if shared is None or own is None:
        return []
    pairs = [(getattr(shared.metrics, name), getattr(own.metrics, name)) for name in _METRICS]
    pairs += [(getattr(shared.fairness[one], gap), getattr(own.fairness[one], gap)) for one in attributes for gap in _GAPS]
    return [(number(before), number(after)) for before, after in pairs]


def _by_site(personal: Personal, *, empty: int) -> list[Cells]:
    if personal.oracle is None:
        return []
    sites = sorted(personal.oracle.sites.items(), key=lambda item: natural(item[0]))
    return [(f"Accuracy at {site}", *[""] * empty, number(one.global_accuracy), number(one.personal_accuracy)) for site, one in sites]
