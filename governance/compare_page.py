"""The words of a comparison: tables for terminal and page, and the page itself, one self-contained HTML file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from fedethos.governance.charts import Chart, Table
from fedethos.governance.compare import GAPS, METRICS, Comparison, Entry, Kind, Number
from fedethos.governance.pages import template
from fedethos.governance.tradeoff import Point, tradeoff_chart
from fedethos.result import GapName
from fedethos.storage import JsonValue
from fedethos.wording import duration, epsilon, number, size

NAMES = {
    "roc_auc": "AUC",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "worst_group_accuracy": "Worst-group accuracy",
    "demographic_parity_difference": "Demographic-parity difference",
    "equalized_odds_difference": "Equalized-odds difference",
    "equal_opportunity_difference": "Equal-opportunity difference",
}
DRAWN: tuple[GapName, ...] = ("equalized_odds_difference", "demographic_parity_difference")
_LISTED = 3  # more names than these in one sentence are counted
_BASES = {
    "released": "Released counts with their privacy noise",
    "unprotected": "Counts sent without protection",
    "oracle": "Exact values, which only a simulation can see",
    None: "Runs whose basis differs within a grid point",
}


@dataclass(frozen=True)
class Block:
    """Everything about the entries of one kind."""

    title: str
    note: str
    quality: Table
    gaps: dict[str, Table]
    cost: Table
    charts: tuple[Chart, ...]


def block(kind: Kind, entries: Sequence[Entry], place: int, *, draw: bool) -> Block:
    """Tables, and with ``draw`` the pictures, of one kind. ``place`` keeps ids on the page apart."""
    attributes = dict.fromkeys(attribute for entry in entries for attribute in entry.gaps)
    gaps = {attribute: _gaps_table(entries, attribute) for attribute in attributes}
    charts = (
        [_chart(entries, attribute, gap, f"c{place}-{row}-{gap}") for row, attribute in enumerate(attributes) for gap in DRAWN]
        if draw
        else []
    )
    return Block(title(kind), interval_note(kind), _quality_table(entries), gaps, _cost_table(entries), tuple(c for c in charts if c))


def title(kind: Kind) -> str:
    many = "means over seeds" if kind.over_seeds else "single runs"
    return f"{_BASES[kind.basis]}; {many}{'; thresholds that depend on the group' if kind.by_group else ''}"


def interval_note(kind: Kind) -> str:
    if kind.over_seeds:
        return "Intervals are 95 % t-intervals over seeds: how far chance in the run matters, not what other people would give."
    if kind.basis == "oracle":
        return "Single exact values have no interval."
    return f"Intervals are 95 % intervals of sampling {'and privacy noise together' if kind.basis == 'released' else 'alone'}."


def cautions(comparison: Comparison) -> list[str]:
    """What the reader must know before any number."""
    sentences = []
    if not comparison.same_people:
        sentences.append("Tested on different people: a difference between rows is not a difference between models.")
    if len(comparison.tables) > 1:
        sentences.append("The runs are of different kinds. Each kind has its own table; do not subtract across tables.")
    if len(comparison.guarantees) > 1:
        listed = "; ".join(sorted(comparison.guarantees))
        sentences.append(f"Epsilons are of different guarantees and are not comparable: {listed}.")
    silent = [entry.name for entries in comparison.tables.values() for entry in entries if entry.verdicts[0] < entry.verdicts[1]]
    if silent:
        named = ", ".join(silent) if len(silent) <= _LISTED else f"{len(silent)} rows"
        sentences.append(f"No fairness verdict in some runs of {named}: a small gap of a near-constant model is not fairness.")
    private = [entry for entries in comparison.tables.values() for entry in entries if entry.epsilon is not None]
    if len(private) > 1:
        sentences.append("Each epsilon is that of one run. On the same people, several runs, and choosing among them, cost more.")
    return sentences


def differences(comparison: Comparison) -> Table:
    """Job keys that differ: a row for each, or a column for each where there are more entries than keys."""
    names, keys = [entry.name for entries in comparison.tables.values() for entry in entries], list(comparison.differing)
    said_of = {key: {name: _said(value) for name, value in values.items()} for key, values in comparison.differing.items()}
    if keys and len(keys) < len(names):
        return Table(("Run", *keys), tuple((name, *(said_of[key][name] for key in keys)) for name in names))
    return Table(("Job key", *names), tuple((key, *(said_of[key][name] for name in names)) for key in keys))


def as_json(comparison: Comparison) -> dict[str, JsonValue]:
    """Everything that the tables show."""
    return {
        "schema": "fedethos/compare/v1",
        "same_people": comparison.same_people,
        "cautions": cautions(comparison),
        "differing": {key: {name: _plain(value) for name, value in values.items()} for key, values in comparison.differing.items()},
        "tables": [
            {
                "basis": kind.basis,
                "over_seeds": kind.over_seeds,
                "thresholds_by_group": kind.by_group,
                "rows": [_row(entry) for entry in entries],
            }
            for kind, entries in comparison.tables.items()
        ],
    }


def page(comparison: Comparison) -> str:
    """The HTML page: no script, no link, no picture from elsewhere."""
    blocks = [block(kind, entries, place, draw=True) for place, (kind, entries) in enumerate(comparison.tables.items())]
    return template("compare.html.j2").render(
        count=sum(len(entries) for entries in comparison.tables.values()),
        marks=cautions(comparison),
        guarantees=sorted(comparison.guarantees),
        blocks=blocks,
        differences=differences(comparison),
        page_note="" if comparison.same_people else "Tested on different people",
    )


def _quality_table(entries: Sequence[Entry]) -> Table:
    rows = tuple((entry.name, epsilon(entry.epsilon), *(said(entry.metrics[name]) for name in METRICS)) for entry in entries)
    return Table(("Run", "Epsilon", *(NAMES[name] for name in METRICS)), rows)


def _gaps_table(entries: Sequence[Entry], attribute: str) -> Table:
    rows = tuple(
        (entry.name, epsilon(entry.epsilon), *(said(entry.gaps[attribute][gap]) if attribute in entry.gaps else "–" for gap in GAPS))
        for entry in entries
    )
    return Table(("Run", "Epsilon", *(NAMES[gap] for gap in GAPS)), rows)


def _cost_table(entries: Sequence[Entry]) -> Table:
    rows = tuple((entry.name, duration(entry.seconds), size(entry.bytes), _verdict(entry)) for entry in entries)
    return Table(("Run", "Time of a run", "Sent and received", "Fairness verdict"), rows)


def _verdict(entry: Entry) -> str:
    measured, runs = entry.verdicts
    if runs == 1:
        return "possible" if measured else "none"
    return f"possible in {measured} of {runs}"


def _chart(entries: Sequence[Entry], attribute: str, gap: GapName, name: str) -> Chart | None:
    having = [entry for entry in entries if attribute in entry.gaps]
    points = [
        Point(
            entry.name.rpartition("/")[2],
            epsilon(entry.epsilon),
            entry.gaps[attribute][gap],
            entry.metrics["balanced_accuracy"],
            entry.verdicts[0] == entry.verdicts[1],
        )
        for entry in having
    ]
    rows = tuple((entry.name, point.epsilon, said(point.gap), said(point.quality)) for entry, point in zip(having, points, strict=True))
    quality = NAMES["balanced_accuracy"]
    return tradeoff_chart(
        name,
        f"{quality} against {NAMES[gap][0].lower()}{NAMES[gap][1:]} by {attribute}",
        "One point per row of the tables, lines are its 95 % intervals. Top left is best. Colour and shape stand for epsilon. "
        "Hollow: a run had no fairness verdict, so its gap says nothing.",
        points,
        axes=(NAMES[gap], quality),
        table=Table(("Run", "Epsilon", NAMES[gap], quality), rows),
    )


def said(item: Number) -> str:
    """``0.871 (0.860 to 0.882)``; without a value the bounds say how little is known."""
    limits = "" if item.low is None or item.high is None else f" ({item.low:.3f} to {item.high:.3f})"
    return f"{'not measurable' if item.value is None else number(item.value)}{limits}"


def _row(entry: Entry) -> dict[str, JsonValue]:
    return {
        "name": entry.name,
        "epsilon": entry.epsilon,
        "guarantee": entry.guarantee,
        "metrics": {name: vars(item) for name, item in entry.metrics.items()},
        "fairness": {attribute: {gap: vars(item) for gap, item in gaps.items()} for attribute, gaps in entry.gaps.items()},
        "runs": entry.verdicts[1],
        "runs_with_verdict": entry.verdicts[0],
        "seconds": round(entry.seconds, 1),
        "bytes": entry.bytes,
    }


def _plain(value: object) -> JsonValue:
    plain: JsonValue = json.loads(json.dumps(value))
    return plain


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
