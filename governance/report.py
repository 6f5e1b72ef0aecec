"""``report.html``: a run on one page, drawn only from the run folder's JSON files and its job.

Self-contained (no script, no link, no picture from elsewhere), readable on screen in light and dark mode and on paper.
Equal files give equal bytes. The words are in ``templates/report.html.j2``, the drawings in ``charts.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedethos.flip_record import FlipReport
from fedethos.governance.charts import (
    CHARTED,
    CHARTED_GAPS,
    MAX_ROWS,
    RATES,
    Chart,
    Table,
    bytes_chart,
    epsilon_chart,
    gaps_chart,
    groups_chart,
    metrics_chart,
    privacy_table,
)
from fedethos.governance.class_tables import groups_tables, labels_table
from fedethos.governance.flips_table import flips_table
from fedethos.governance.pages import template
from fedethos.governance.suites_table import suite_tables
from fedethos.job import Job
from fedethos.personal_view import side_by_side
from fedethos.records import FairnessReport, GroupRule, Manifest, PrivacyReport, Round
from fedethos.result import Attribute, GapName, Interval, MetricName, Result, in_declared_order
from fedethos.runfolder import RunFolder
from fedethos.scenario_words import EXACT, HEAD, LIMITS, asked_words, rows
from fedethos.storage import write_atomically
from fedethos.suite_record import SuitesReport
from fedethos.suite_words import BASIS
from fedethos.task_words import RESPONSE_PERPLEXITY, gap_words, metric_words, rate_words
from fedethos.wording import (
    NOT_RELEASED,
    bounds,
    cautions,
    difference,
    duration,
    epsilon,
    guarantee,
    interval,
    largest_epsilon,
    loss_words,
    marks,
    natural,
    number,
    personal_words,
    size,
    steps_words,
    strategy_words,
    trained_part,
    weight_words,
)

METRICS: dict[MetricName, str] = {
    "roc_auc": "AUC",
    "balanced_accuracy": "Balanced accuracy",
    "accuracy": "Accuracy",
    "f1": "F1",
    "worst_group_accuracy": "Worst-group accuracy",
}
GAPS: dict[GapName, str] = {
    "demographic_parity_difference": "Demographic-parity difference",
    "demographic_parity_ratio": "Demographic-parity ratio",
    "equalized_odds_difference": "Equalized-odds difference",
    "equal_opportunity_difference": "Equal-opportunity difference",
}
NOTHING = "–"  # on a tile without a number
_DIFFERENCES: tuple[GapName, ...] = ("demographic_parity_difference", "equalized_odds_difference", "equal_opportunity_difference")
MAX_DRAWN_ROUNDS = 60  # of a chart per round; more would only make the page heavy
MAX_ROUND_COLUMNS = 12  # of the table of sites; longer runs are counted
_COUNTED = ("sent", "late", "refused", "not asked")
_STATES = {"sent": "+ sent", "late": "! late", "refused": "x refused"}


@dataclass(frozen=True)
class Tile:
    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Documents:
    """Everything that the page is made of."""

    job_text: str
    job: Job
    manifest: Manifest
    rounds: Sequence[Round]
    result: Result
    privacy: PrivacyReport
    fairness: FairnessReport
    flips: FlipReport | None = None
    suites: SuitesReport | None = None


def render_report(run_folder: Path) -> Path:
    """Write ``report.html`` into the run folder. RUN-903 or RUN-906 if a document is missing or damaged."""
    folder = RunFolder(run_folder)
    documents = Documents(
        job_text=folder.read_job(),
        job=folder.parse_job(),
        manifest=folder.read_manifest(),
        rounds=folder.read_rounds(),
        result=folder.read_result(),
        privacy=folder.read_privacy(),
        fairness=folder.read_fairness(),
        flips=folder.read_flips() if folder.flips.is_file() else None,
        suites=folder.read_suites() if folder.suites.is_file() else None,
    )
    write_atomically(folder.report, report_html(documents).encode("utf-8", "replace"))
    return folder.report


def report_html(documents: Documents) -> str:
    """The page as text."""
    result, privacy = documents.result, documents.privacy
    attributes = in_declared_order(result.fairness, documents.job.attributes)
    label_values = documents.job.data.label.values
    drawn = _drawn_rounds(documents.rounds)
    return template("report.html.j2").render(
        name=result.name,
        status=_status(documents),
        verdict=documents.fairness.verdict.sentences,
        marks=marks(documents.manifest, privacy),
        page_note=_page_note(documents),
        cautions=cautions(result, privacy),
        guarantee=guarantee(privacy),
        statement=privacy.statement,
        private=privacy.mode != "none",
        tiles=_tiles(documents, attributes),
        metrics=_metrics_table(result, documents.job),
        labels=labels_table(result.classes, label_values, result.oracle.classes if result.oracle and result.basis != "oracle" else None)
        if result.classes
        else None,
        label_groups=groups_tables(result.classes, label_values, documents.job.attributes) if result.classes else [],
        favorable=documents.job.data.label.favorable,
        gaps=_gaps_table(attributes, documents.fairness.tolerance, gap_words(documents.job, GAPS)),
        groups=_group_charts(result, attributes, documents.job),
        flips=None if documents.flips is None else flips_table(documents.flips),
        suites=[] if documents.suites is None else suite_tables(documents.suites),
        suites_basis=BASIS,
        scenarios=_scenarios_table(result, documents.job),
        scenario_filters=[asked_words(asked) for asked in documents.job.scenarios],
        scenario_limits=LIMITS,
        personal=_personal_table(documents),
        personal_note=personal_words(documents.job),
        metrics_chart=metrics_chart(drawn, metric_words(documents.job, CHARTED)),
        gaps_chart=gaps_chart(drawn, list(attributes), gap_words(documents.job, CHARTED_GAPS)),
        epsilon_chart=epsilon_chart(privacy),
        privacy_table=privacy_table(privacy),
        bytes_chart=bytes_chart(drawn),
        left_out=len(documents.rounds) - len(drawn),
        participation=_participation(documents.rounds),
        refusals=_refusals(documents.rounds),
        min_group_size=documents.fairness.min_group_size,
        tolerance=documents.fairness.tolerance,
        facts=_facts(documents),
        hashes=_hashes(documents),
        versions=", ".join(f"{package} {version}" for package, version in sorted(documents.manifest.versions.items())),
        simulated=result.engine != "deployment",
        job_text=documents.job_text,
    )


def _page_note(documents: Documents) -> str:
    """What stands at the foot of every printed page; only fixed words, for it is inside a style sheet."""
    if documents.privacy.mode == "none":
        return "No privacy protection"
    return "" if documents.privacy.secure_rng else "Simulation, not a guarantee"


def _status(documents: Documents) -> str:
    result, planned = documents.result, documents.job.federation.rounds
    rounds = f"{result.rounds} rounds" if result.rounds == planned else f"{result.rounds} of {planned} planned rounds"
    return f"{result.status.capitalize()} after {rounds} in {duration(result.seconds)}"


def _tiles(documents: Documents, attributes: Mapping[str, Attribute]) -> list[Tile]:
    result, privacy, job = documents.result, documents.privacy, documents.job
    shown = [_metric_tile(label, result.metrics.of(name)) for name, label in list(metric_words(job, METRICS).items())[:2]]
    first: MetricName = "roc_auc" if "roc_auc" in metric_words(job, METRICS) else "accuracy"
    name, after, base = f"{METRICS[first]} gain by training", result.metrics.of(first).value, result.base_value(first)
    if (perplexity := result.metrics.response_perplexity) is not None:
        shown = [_metric_tile(RESPONSE_PERPLEXITY, perplexity), shown[0]]
        name, after, base = f"{RESPONSE_PERPLEXITY} change by training", perplexity.value, result.base_response_perplexity
    gain = Tile(name, difference(after, base), f"before training {number(base)}")
    spent = largest_epsilon(privacy)
    return [
        *shown,
        _gap_tile(attributes, gap_words(job, GAPS)),
        Tile("Epsilon", epsilon(spent), f"largest of the sites; {guarantee(privacy)}" if spent is not None else guarantee(privacy)),
        gain if after is not None and base is not None else Tile(gain.label, NOTHING, NOT_RELEASED),
    ]


def _metric_tile(label: str, item: Interval) -> Tile:
    """The value large, its interval below; never a bare number."""
    if item.value is None:
        return Tile(label, NOTHING, interval(item))
    return Tile(label, number(item.value), f"95 % interval {bounds(item)}")


def _gap_tile(attributes: Mapping[str, Attribute], words: Mapping[GapName, str]) -> Tile:
    """The largest measured difference by the first attribute of the job."""
    if not attributes:
        return Tile("Fairness gap", NOTHING, "the job names no sensitive attribute")
    name, attribute = next(iter(attributes.items()))
    measured = [(item.value, gap) for gap in _DIFFERENCES if gap in words and (item := attribute.of(gap)).value is not None]
    if not measured:
        return Tile(f"Largest gap by {name}", NOTHING, "not measurable with these people and this budget")
    value, gap = max(measured, key=lambda pair: pair[0])
    return Tile(f"Largest gap by {name}", number(value), f"{words[gap].lower()}, 95 % interval {bounds(attribute.of(gap))}")


def _metrics_table(result: Result, job: Job) -> Table:
    exact = result.oracle if result.basis != "oracle" else None
    rows = []
    found: list[tuple[str, Interval, float | None, str]] = [
        (label, result.metrics.of(name), result.base_value(name), name) for name, label in metric_words(job, METRICS).items()
    ]
    if (perplexity := result.metrics.response_perplexity) is not None:
        found.insert(0, (RESPONSE_PERPLEXITY, perplexity, result.base_response_perplexity, "response_perplexity"))
    for label, item, base, name in found:
        row = (label, interval(item), number(base), difference(item.value, base))
        rows.append((*row, number(getattr(exact.metrics, name))) if exact else row)
    columns = ("Metric", "Value (95 % interval)", "Before training", "Change")
    return Table((*columns, "Exact, simulation only") if exact else columns, tuple(rows))


def _gaps_table(attributes: Mapping[str, Attribute], tolerance: float, words: Mapping[GapName, str]) -> Table:
    rows = []
    for name, attribute in attributes.items():
        for gap, label in words.items():
            item = attribute.of(gap)
            note = (
                ""
                if not item.abstained
                else f"interval wider than plus or minus {tolerance:g}"
                if item.low is not None
                else "too few people"
            )
            rows.append((name, label, interval(item), note))
    return Table(("By", "Measure", "Value (95 % interval)", "Note"), tuple(rows))


def _scenarios_table(result: Result, job: Job) -> Table | None:
    found = tuple(rows(result, job))
    if not found:
        return None
    return Table(HEAD if len(found[0]) == len(HEAD) else (*HEAD, EXACT), found)


def _personal_table(documents: Documents) -> Table | None:
    personal = documents.result.personal
    if personal is None:
        return None
    columns, rows = side_by_side(documents.result, personal, documents.job.attributes, narrow=False)
    return Table(("Test people of all sites", *columns), tuple(rows)).first(MAX_ROWS, "result.json")


def _group_charts(result: Result, attributes: Mapping[str, Attribute], job: Job) -> list[Chart]:
    exact = result.oracle.fairness if result.oracle is not None and result.basis != "oracle" else {}
    return [
        groups_chart(f"groups-{place}", name, attribute.groups, exact.get(name), rate_words(job, RATES))
        for place, (name, attribute) in enumerate(attributes.items())
    ]


def _drawn_rounds(rounds: Sequence[Round]) -> Sequence[Round]:
    """At most ``MAX_DRAWN_ROUNDS`` at equal steps, always with the first and the last."""
    step = -(-len(rounds) // MAX_DRAWN_ROUNDS)
    return [record for place, record in enumerate(rounds) if place % step == 0 or record is rounds[-1]] if rounds else []


def _participation(rounds: Sequence[Round]) -> Table | None:
    trained = [record for record in rounds if record.sites]
    sites = sorted({name for record in trained for name in record.sites}, key=natural)
    if not sites:
        return None
    if len(trained) > MAX_ROUND_COLUMNS:
        counts = {name: Counter(record.sites.get(name, "not asked") for record in trained) for name in sites}
        counted = tuple((name, *(str(counts[name][state]) for state in _COUNTED)) for name in sites)
        return Table(("Site", *(f"Rounds {state}" for state in _COUNTED)), counted).first(MAX_ROWS, "rounds.jsonl")
    rows = tuple((name, *(_STATES.get(record.sites.get(name, ""), "not asked") for record in trained)) for name in sites)
    return Table(("Site", *(f"Round {record.round}" for record in trained)), rows).first(MAX_ROWS, "rounds.jsonl")


def _refusals(rounds: Sequence[Round]) -> list[str]:
    lines = [f"Round {record.round}: {refusal.site} was refused with {refusal.code}." for record in rounds for refusal in record.refusals]
    return lines if len(lines) <= MAX_ROWS else [*lines[:MAX_ROWS], f"and {len(lines) - MAX_ROWS} more, in rounds.jsonl"]


def _facts(documents: Documents) -> list[tuple[str, str]]:
    job, manifest, fairness, result = documents.job, documents.manifest, documents.fairness, documents.result
    people = fairness.people
    threshold = fairness.threshold
    edge = "" if threshold.log_odds is None else f", log-odds {threshold.log_odds:g}"
    return [
        ("Task", _task_words(job)),
        ("Model", manifest.base_model.path),
        ("Trained", f"{trained_part(job)}, aggregated with {job.aggregation}"),
        ("Aggregation error", f"{result.aggregation_error:.3g}"),
        ("Training", f"{steps_words(job)} a round, {job.training.batch_size} {job.unit}s a step expected"),
        *_steering(documents),
        ("Sites", f"{len(manifest.sites)}; a round needs {job.federation.min_sites}"),
        ("People", ", ".join(f"{split} {_people(count)}" for split, count in people.model_dump().items())),
        ("Threshold", f"{threshold.kind}{edge}; from {threshold.source}"),
        *((f"Threshold of {name}", _group_rule(rule)) for name, rule in threshold.groups.items()),
        ("Engine", f"{result.engine}, {manifest.threads} thread(s), seed {manifest.seed}"),
        ("Sent", f"{size(result.communication.bytes_up)} by the sites, {size(result.communication.bytes_down)} to them"),
    ]


def _task_words(job: Job) -> str:
    label = job.data.label
    if label.column is None:
        return f"{job.task}: right is who is answered as their record says"
    return f"{job.task}: {label.column} is {' or '.join(label.values)}; favorable is {label.favorable}"


def _steering(documents: Documents) -> list[tuple[str, str]]:
    job, last = documents.job, weight_words(documents.rounds[-1]) if documents.rounds else ""
    facts = [("Loss", loss_words(job)), ("Fairness strategy", strategy_words(job)), ("Weights in the last round", last)]
    return [(name, words) for name, words in facts if words]


def _group_rule(rule: GroupRule) -> str:
    if not rule.own:
        return "everybody's"
    if rule.low == rule.high and set(rule.chances) <= {0.0, 1.0}:
        return f"log-odds {rule.low:.2f}"
    below, between, above = rule.chances
    return f"chance {below:.2f}; {between:.2f} from log-odds {rule.low:.2f}; {above:.2f} from {rule.high:.2f}"


def _people(count: int | None) -> str:
    return NOT_RELEASED if count is None else f"{count:,}"


def _hashes(documents: Documents) -> list[tuple[str, str]]:
    return [
        ("Job", documents.manifest.job_sha256),
        ("Model", documents.manifest.base_model.sha256),
    ]
