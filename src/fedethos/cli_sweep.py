"""``fedethos sweep``: a job over a grid of settings and several seeds, and one table of means with intervals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import click
import typer

from fedethos.errors import FedethosError

if TYPE_CHECKING:
    from fedethos.simulations.sweep import SweepPlan
    from fedethos.sweep_record import Sweep


class Basis(StrEnum):
    ORACLE = "oracle"
    RELEASED = "released"


class Interrupted(click.ClickException):
    """Ctrl-C in a sweep: another way to go on than that of a single run."""

    exit_code = 130

    def show(self, file: IO[Any] | None = None) -> None:
        typer.echo(self.message, file=file, err=True)


def sweep(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job to vary, a YAML file.")],
    seeds: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many seeds (simulation.seed) for each grid point.")],
    grid: Annotated[
        list[str] | None, typer.Option("--grid", metavar="KEY=A,B", help="Values of one key, as in --set. Several: every combination.")
    ] = None,
    seed_start: Annotated[int, typer.Option(min=0, metavar="S", help="The first seed.")] = 1,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job in every run.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the runs; default: runs/NAME-sweep.")] = None,
    basis: Annotated[
        Basis, typer.Option(help="oracle: exact values, which only a simulation sees. released: what the sites sent.")
    ] = Basis.ORACLE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every job and list the runs; run nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json instead of the table.")] = False,
) -> None:
    """Run a job over a grid of settings and seeds. Start it again after an interruption: finished runs are kept."""
    from fedethos.simulations.sweep import parse_axis, plan_sweep

    axes = [parse_axis(text) for text in grid or []]
    plan = plan_sweep(job_file, overrides or [], axes, range(seed_start, seed_start + seeds))
    folder = out or Path("runs") / f"{plan.name}-sweep"
    if dry_run:
        _print_plan(plan, folder)
        return
    found = _run(plan, folder, base=job_file.parent, basis=basis)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json", by_alias=True), indent=2))
    else:
        from fedethos.sweep_view import print_sweep

        print_sweep(found, folder)
    _refuse_failures(found, folder)


def _run(plan: SweepPlan, folder: Path, *, base: Path, basis: Basis) -> Sweep:
    try:
        typer.echo("Loading libraries", err=True)
        from fedethos.simulations.sweep_run import run_sweep

        return run_sweep(plan, folder, base=base, basis=basis.value, say=lambda text: typer.echo(text, err=True))
    except KeyboardInterrupt:
        raise Interrupted("Interrupted. Finished runs and rounds are kept: start the same command again to go on.") from None


def _print_plan(plan: SweepPlan, folder: Path) -> None:
    from fedethos.simulations.sweep import state_of

    states = [(run.folder, state_of(run, folder)) for run in plan.in_order()]
    for name, state in states:
        typer.echo(f"{state:<9} {folder / name}")
    counts = Counter(state for _, state in states)
    typer.echo(
        f"{len(states)} runs: {len(plan.points)} grid points with {len(plan.seeds)} seeds each; "
        + ", ".join(f"{count} {state}" for state, count in counts.items())
    )
    typer.echo("Nothing was read or written. Run it without --dry-run.")


def _refuse_failures(found: Sweep, folder: Path) -> None:
    failed: Sequence[str] = [run.code or "" for point in found.points for run in point.runs if run.status == "failed"]
    if failed:
        codes = ", ".join(f"{count} with {code}" for code, count in sorted(Counter(failed).items()))
        raise FedethosError(
            "RUN-951",
            f"{len(failed)} of the sweep's runs failed: {codes}.",
            where=str(folder),
            why="Their grid points have fewer seeds than the others.",
            fix="Mend the cause and start the same command again; it tries only these.",
        )
