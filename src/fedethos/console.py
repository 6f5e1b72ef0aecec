"""The last screen of a run: the final table, from the run folder's JSON files, on standard output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedethos.job import Job
from fedethos.personal_view import side_by_side
from fedethos.records import FairnessReport, PrivacyReport
from fedethos.result import GapName, MetricName, Personal, Result, in_declared_order
from fedethos.runfolder import RunFolder
from fedethos.scenario_words import HEAD, rows
from fedethos.task_words import RESPONSE_PERPLEXITY, gap_words, metric_words
from fedethos.wording import (
    cautions,
    difference,
    duration,
    epsilon,
    guarantee,
    interval,
    loss_words,
    marks,
    natural,
    personal_words,
    size,
    strategy_words,
    weight_words,
)

WIDTH = 100  # of piped output
_METRICS: dict[MetricName, str] = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "roc_auc": "AUC",
    "worst_group_accuracy": "Worst-group accuracy",
}
_GAPS: dict[GapName, str] = {
    "demographic_parity_difference": "demographic-parity difference",
    "equalized_odds_difference": "equalized-odds difference",
}


def print_summary(run_folder: RunFolder, console: Console | None = None) -> None:
    """Print the final table of a finished run. RUN-903 if the run has no result yet."""
    console = console or _standard_output()
    result, privacy, fairness = run_folder.read_result(), run_folder.read_privacy(), run_folder.read_fairness()
    job = run_folder.parse_job()
    headline = f"{result.name}: {result.status} after {result.rounds} rounds in {duration(result.seconds)}"
    console.print(Text(headline, style="bold"))
    for mark in marks(run_folder.read_manifest(), privacy):
        console.print(Text(f"! {mark}", style="bold yellow"))
    for sentence in fairness.verdict.sentences:
        console.print(Text(sentence))
    if loss := loss_words(job):
        console.print(Text(f"Loss {loss}."))
    if steering := strategy_words(job):
        last = weight_words(run_folder.read_rounds()[-1])
        console.print(Text(f"Fairness strategy {steering}."))
        console.print(Text(f"Weights in the last round: {last}." if last else "No weights were moved: the run ended before."))
    console.print()
    console.print(_metrics_table(result, fairness, job))
    console.print()
    if result.personal is not None:
        console.print(_personal_table(result, result.personal, job.attributes))
        console.print(Text(personal_words(job)))
        console.print()
    if result.scenarios:
        console.print(_scenarios_table(result, job))
        console.print()
    console.print(_privacy_table(result, privacy))
    console.print()
    sent, received = size(result.communication.bytes_up), size(result.communication.bytes_down)
    console.print(Text(f"Sent by the sites: {sent}; sent to them: {received}."))
    for sentence in cautions(result, privacy):
        console.print(Text(sentence, style="yellow"))
    if run_folder.canaries.exists() and not run_folder.suites.exists():
        ask = f"fedethos evaluate {run_folder.path} --suite scenario={run_folder.canaries}"
        console.print(Text(f"Next: ask the adapter for the made-up secrets with `{ask}`."), soft_wrap=True)
    if run_folder.report.exists():
        console.print(Text(f"Report: {run_folder.report}"), soft_wrap=True)
        console.print(Text(f"Next: open {run_folder.report} in a browser."), soft_wrap=True)
    else:
        console.print(Text(f"Next: write the report with `fedethos report {run_folder.path}`."), soft_wrap=True)


def _standard_output() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def _metrics_table(result: Result, fairness: FairnessReport, job: Job) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("Test people of all sites" if fairness.people.test is None else f"{fairness.people.test:,} test people of all sites")
    table.add_column("value (95 % interval)")
    table.add_column("change by training")
    if (perplexity := result.metrics.response_perplexity) is not None:
        table.add_row(RESPONSE_PERPLEXITY, interval(perplexity), difference(perplexity.value, result.base_response_perplexity))
    for name, label in metric_words(job, _METRICS).items():
        item = result.metrics.of(name)
        table.add_row(label, interval(item), difference(item.value, result.base_value(name)))
    if result.classes is not None:
        table.add_row("Worst-class recall", interval(result.classes.worst_class_recall), "")
        for label in job.data.label.values:
            table.add_row(Text(f"Recall of {label}"), interval(result.classes.labels[label].recall), "")
    for attribute, gaps in in_declared_order(result.fairness, job.attributes).items():
        for gap, label in gap_words(job, _GAPS).items():
            table.add_row(Text(f"By {attribute}: {label.lower()}"), interval(gaps.of(gap)), "")
    return table


def _personal_table(result: Result, personal: Personal, declared: Mapping[str, Sequence[str]]) -> Table:
    columns, rows = side_by_side(result, personal, declared, narrow=True)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("Personal adapters", *columns):
        table.add_column(heading)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _scenarios_table(result: Result, job: Job) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in HEAD:
        table.add_column(heading)
    for row in rows(result, job):
        table.add_row(*(Text(cell) for cell in row[: len(HEAD)]))
    return table


def _privacy_table(result: Result, privacy: PrivacyReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), title=None)
    table.add_column("Site")
    table.add_column(f"epsilon ({guarantee(privacy)})")
    table.add_column("private steps", justify="right")
    for name, site in sorted(result.privacy.sites.items(), key=lambda item: natural(item[0])):
        table.add_row(Text(name), epsilon(site.epsilon), str(site.steps))
    return table
