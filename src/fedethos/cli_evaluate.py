"""``fedethos evaluate``: a finished run's model again: its metrics, its counterfactual flips, or scores on public benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from fedethos.cli_suites import Items, Seed, SuiteFiles, named, print_scores, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedethos.flip_record import FlipReport
    from fedethos.progress import Observer
    from fedethos.result import Record
    from fedethos.runfolder import RunFolder
    from fedethos.simulations.flips import FlipQuestion
    from fedethos.simulations.suites import SuiteQuestion
    from fedethos.storage import JsonValue
    from fedethos.suite_record import SuitesReport

    Body = dict[str, JsonValue]

ReportT = TypeVar("ReportT", bound="Record")

_MARK = "Exact values, which only a simulation can see (basis oracle). Intervals are of sampling alone."


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished simulation.")],
    flip: Annotated[
        bool, typer.Option("--flip", help="Swap a sensitive attribute in every record and count the decisions that change.")
    ] = False,
    attributes: Annotated[
        list[str] | None, typer.Option("--attribute", metavar="NAME", help="With --flip: only this attribute; may be given again.")
    ] = None,
    terms: Annotated[
        str | None, typer.Option(metavar="FILE", help="With --flip: identity terms, a YAML file or builtin:sex; default: the job's.")
    ] = None,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Whose records.")] = "test",
    suites: SuiteFiles = None,
    items: Items = None,
    seed: Seed = 0,
    scenarios: Annotated[
        list[Path] | None, typer.Option("--scenario", metavar="FILE", help="A scenario that filters records; may be given again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Evaluate a run's released adapter again, at the released threshold; with --flip on counterfactual records, with --suite on public
    benchmarks beside the base model."""
    if not flip and (attributes or terms):
        raise typer.BadParameter("--attribute and --terms belong to --flip.")
    if suites and flip:
        raise typer.BadParameter("--suite and --flip are two evaluations.")
    if items is not None and not suites:
        raise typer.BadParameter("--items belongs to --suite.")
    if scenarios and (suites or flip):
        raise typer.BadParameter("--scenario counts records; prompts are asked with --suite scenario=FILE.")
    chosen = [named(text) for text in suites or ()]
    from fedethos.runfolder import RunFolder

    folder = RunFolder(run)
    if chosen:
        from fedethos.simulations.suites import SuiteQuestion

        _suites(folder, SuiteQuestion(chosen, items, seed), as_json=as_json)
    elif flip:
        from fedethos.simulations.flips import FlipQuestion

        _flip(folder, FlipQuestion(tuple(attributes or ()), terms, split), as_json=as_json)
    else:
        _metrics(folder, split, scenarios or [], as_json=as_json)


def _metrics(folder: RunFolder, split: Literal["train", "validation", "test"], scenarios: list[Path], *, as_json: bool) -> None:
    from fedethos.progress import Progress

    with Progress() as progress:
        progress.stage("Loading libraries")
        from fedethos.scenario_words import SAID
        from fedethos.simulations.evaluate import evaluate_run, shown
        from fedethos.wording import interval

        found = evaluate_run(folder, split, progress, scenarios)
    if as_json:
        typer.echo(json.dumps({"split": split, **found.as_json()}, indent=2))
        return
    fairness = found.summary.fairness.items()
    estimates = {**found.summary.metrics, **{f"by {name}: {gap}": item for name, one in fairness for gap, item in one.gaps.items()}}
    typer.echo(f"{found.job.name}: {found.records:,} {split} records of all sites")
    print_table([(name, interval(shown(item))) for name, item in estimates.items()])
    for asked in found.job.scenarios:
        one = found.scenarios[asked.name]
        typer.echo(f"Scenario {asked.name}: {asked.metric} {interval(shown(one.value))}, at most {asked.limit:g}: {SAID[one.holds]}")
    typer.echo(_MARK)
    typer.echo(f"Next: fedethos evaluate {folder.path} --flip", err=True)


def _flip(folder: RunFolder, question: FlipQuestion, *, as_json: bool) -> None:
    def measured(observer: Observer) -> FlipReport:
        from fedethos.simulations.flips import flip_run

        return flip_run(folder, question, observer)

    found = _recorded(folder, measured, lambda locked, body: locked.write_flips(body), as_json=as_json)
    if found is None:
        return
    from fedethos.wording import FLIPS, flip_cells

    typer.echo(f"{found.name}: {found.split} records of all sites, decisions at log-odds {found.log_odds:g}, terms: {found.terms.source}")
    for attribute, one in found.attributes.items():
        typer.echo(f"By {attribute}: {one.swapped:,} of {one.records:,} records read differently")
        if one.swapped:
            print_table(
                [("", *FLIPS.values()), *((group, *flip_cells(measures)) for group, measures in {"everybody": one, **one.groups}.items())]
            )
    typer.echo(_MARK)
    typer.echo(f"Written to {folder.flips} and the report. Next: open {folder.report}", err=True)


def _suites(folder: RunFolder, question: SuiteQuestion, *, as_json: bool) -> None:
    def measured(observer: Observer) -> SuitesReport:
        from fedethos.simulations.suites import score_suites

        return score_suites(folder, question, observer)

    found = _recorded(folder, measured, lambda locked, body: locked.write_suites(body), as_json=as_json)
    if found is None:
        return
    print_scores(found.suites)
    typer.echo(f"Written to {folder.suites}, by group too, and the report. Next: open {folder.report}", err=True)


def _recorded(
    folder: RunFolder, measured: Callable[[Observer], ReportT], write: Callable[[RunFolder, Body], None], *, as_json: bool
) -> ReportT | None:
    """What was measured, written into the run folder and its report. With ``as_json`` it is printed, and None comes back."""
    from fedethos.progress import Progress

    with Progress() as progress:
        progress.stage("Loading libraries")
        from fedethos.governance.report import render_report

        found = measured(progress)
        body = found.model_dump(mode="json", by_alias=True)
        with folder.resume() as locked:
            write(locked, body)
        render_report(folder.path)
    if not as_json:
        return found
    typer.echo(json.dumps(body, indent=2))
    return None
