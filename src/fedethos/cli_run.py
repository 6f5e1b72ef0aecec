"""The verbs that make or show a run: ``simulate``, ``demo``, ``resume``, ``report``."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedethos.attack_kind import AttackKind
from fedethos.cli_attack import simulate_attack

if TYPE_CHECKING:
    from fedethos.job import Job

RUNS = Path("runs")

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job, such as privacy.epsilon=3.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace a run that is already in the folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print result.json instead of the summary.")]


def simulate(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job to run, a YAML file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/NAME.")] = None,
    wire: Annotated[bool, typer.Option("--wire", help="Send every message through Flower's serialisation.")] = False,
    force: Force = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the job and say what would happen; read no records.")] = False,
    as_json: AsJson = False,
    scenarios: Annotated[
        list[Path] | None,
        typer.Option("--scenario", metavar="FILE", help="A scenario that filters records, counted by every site; may be given again."),
    ] = None,
    attack: Annotated[
        AttackKind | None, typer.Option(help="Let some sites attack, under every robust rule, and print what each rule loses.")
    ] = None,
    attackers: Annotated[float, typer.Option(min=0.0, max=1.0, help="With --attack: share of the sites that attack.")] = 0.2,
) -> None:
    """Run a job on virtual sites in this process."""
    from fedethos.scenario import load_job_with

    job = load_job_with(job_file, overrides or [], scenarios or [])
    if attack is not None:
        folder = out or RUNS / f"{job.name}-{attack}"
        simulate_attack(job, attack, attackers, folder, base=job_file.parent, wire=wire, force=force, dry_run=dry_run, as_json=as_json)
        return
    folder = out or RUNS / job.name
    if dry_run:
        _print_plan(job, folder)
        return
    _simulate(job, folder, base=job_file.parent, wire=wire, force=force, as_json=as_json)


def demo(overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Fine-tune a real model over five virtual sites with differential privacy, in a few minutes."""
    from fedethos.documents import load_job
    from fedethos.models.assets import available, fetch

    if any(asset.name == "minilm" and asset.path is None for asset in available()):
        typer.echo("The base model minilm is not on this machine yet; fetching it once (84 MB).", err=True)
        fetch("minilm", say=lambda text: typer.echo(text, err=True))
    job_file = Path(str(files("fedethos.simulations.jobs") / "adult.yaml"))
    job = load_job(job_file, ["name=demo", *(overrides or [])])
    _simulate(job, _free_folder("demo"), base=job_file.parent, wire=False, force=False, as_json=as_json)


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of an interrupted run.")],
    as_json: AsJson = False,
) -> None:
    """Continue an interrupted run after its last finished round."""
    from fedethos.progress import Progress
    from fedethos.simulations.engine import resume as resume_run

    with Progress() as progress:
        resume_run(run, observer=progress)
    _print_result(run, as_json=as_json)


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")], as_json: AsJson = False) -> None:
    """Render report.html again from the run's JSON files and print the summary."""
    from fedethos.governance.report import render_report

    render_report(run)
    _print_result(run, as_json=as_json)


def _simulate(job: Job, folder: Path, *, base: Path, wire: bool, force: bool, as_json: bool) -> None:
    from fedethos.progress import Progress

    with Progress() as progress:
        progress.stage("Loading libraries")
        from fedethos.simulations.engine import simulate as simulate_job

        simulate_job(job, folder, base=base, observer=progress, wire=wire, force=force)
    _print_result(folder, as_json=as_json)


def _print_result(folder: Path, *, as_json: bool) -> None:
    from fedethos.console import print_summary
    from fedethos.runfolder import RunFolder

    if as_json:
        typer.echo(json.dumps(RunFolder(folder).read_result().model_dump(mode="json"), indent=2))
    else:
        print_summary(RunFolder(folder))


def _print_plan(job: Job, folder: Path) -> None:
    from fedethos.runfolder import RunFolder
    from fedethos.wording import steps_words, trained_part

    state = "holds a run already: choose another folder, or --force" if RunFolder(folder).holds_run() else "is free"
    epsilon = (
        "no privacy protection"
        if job.privacy.epsilon is None or job.privacy.mode == "none"
        else (f"epsilon {job.privacy.epsilon:g} at delta {job.privacy.delta:g} per site, one {job.unit}, {job.privacy.adjacency}")
    )
    typer.echo(f"job       {job.name}  sha256 {job.sha256}")
    typer.echo(f"model     {job.model.path}; trained: {trained_part(job)}; {job.aggregation}")
    typer.echo(f"sites     {job.simulation.sites}, {job.simulation.partition.kind}, seed {job.simulation.seed}")
    typer.echo(f"training  {job.federation.rounds} rounds of {steps_words(job)}, {job.training.batch_size} expected per step")
    typer.echo(f"privacy   {epsilon}")
    if caps := job.simulation.site.caps:
        ledger = "one ledger for several runs" if job.simulation.site.ledger else "the run's own ledger"
        typer.echo(f"caps      epsilon {caps.per_job_epsilon:g} for a job, {caps.lifetime_epsilon:g} in all, {ledger}")
    typer.echo(f"folder    {folder} {state}")
    typer.echo("Nothing was read or written. Run it without --dry-run.")


def _free_folder(name: str) -> Path:
    """runs/NAME, else runs/NAME-2, runs/NAME-3, …"""
    from fedethos.runfolder import RunFolder

    folder, number = RUNS / name, 1
    while RunFolder(folder).holds_run():
        number += 1
        folder = RUNS / f"{name}-{number}"
    return folder
