"""``fedethos simulate JOB --attack KIND``: several runs, and one table of what each strategy loses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedethos.attack_kind import AttackKind

if TYPE_CHECKING:
    from fedethos.job import Job
    from fedethos.simulations.attack_study import Outcome, Study
    from fedethos.storage import JsonValue

_HEADERS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "roc_auc": "AUC",
    "worst_group_accuracy": "worst group",
    "demographic_parity_difference": "DPD",
    "equalized_odds_difference": "EOdds",
}


def simulate_attack(
    job: Job, kind: AttackKind, share: float, out: Path, *, base: Path, wire: bool, force: bool, dry_run: bool, as_json: bool
) -> None:
    """Run the study into ``out``, write ``out``/attack.json, print it."""
    from fedethos.progress import Progress

    with Progress() as progress:
        progress.stage("Loading libraries")
        from fedethos.records import SimulatedAttack
        from fedethos.simulations.attack_study import planned_runs, study
        from fedethos.storage import canonical_json, write_atomically

        attack = SimulatedAttack(kind=kind, share=share)
        if dry_run:
            typer.echo(f"{kind} by {share:g} of {job.simulation.sites} sites; runs in {out}:")
            typer.echo("\n".join(planned_runs(job, share)))
            typer.echo("Nothing was read or written. Run it without --dry-run.")
            return
        found = study(job, attack, out, base=base, observer=progress, wire=wire, force=force)
        write_atomically(out / "attack.json", canonical_json(as_plain(found)))
    if as_json:
        typer.echo(json.dumps(as_plain(found), indent=2))
    else:
        _print(found, out)


def as_plain(found: Study) -> dict[str, JsonValue]:
    """attack.json."""
    return {
        "attack": found.attack.kind,
        "share": found.attack.share,
        "sites": list(found.sites),
        "attackers": list(found.attackers),
        "forging_bound": found.forging_bound,
        "runs": [{**dataclasses.asdict(one), "folder": one.folder} for one in found.outcomes],
    }


def _print(found: Study, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    untouched = found.outcomes[0]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("Strategy")
    measured = [*untouched.metrics, *untouched.gaps]
    for name in measured:
        attribute, _, metric = name.rpartition(".")
        table.add_column(f"{_HEADERS[metric]} {attribute}".strip(), justify="right")
    if found.attack.kind == "backdoor":
        table.add_column("backdoor works", justify="right")
    if found.attack.kind == "metric-forging":
        table.add_column("reported accuracy", justify="right")
    for one in found.outcomes:
        table.add_row(*_row(one, untouched, measured, found.attack.kind))
    console.print(f"{found.attack.kind} by {', '.join(found.attackers)} of {len(found.sites)} sites")
    console.print("Exact values on the other sites' test people; in brackets the change against the run without attack.")
    console.print()
    console.print(table)
    console.print()
    if found.attack.kind == "metric-forging":
        bound = "not bounded here" if found.forging_bound is None else f"at most {found.forging_bound:.3f}"
        console.print(f"What forged counts can move a proportion over all test people: {bound}.")
    console.print(f"Runs and attack.json: {out}", soft_wrap=True)


def _row(one: Outcome, untouched: Outcome, measured: list[str], kind: AttackKind | None) -> list[str]:
    label = one.rule if one.attacked else f"{one.rule}, no attack"
    if one.stopped:
        return [label, f"stopped: {one.stopped}"]
    before, after = {**untouched.metrics, **untouched.gaps}, {**one.metrics, **one.gaps}
    cells = [_value(after[name], before[name] if one.attacked else None) for name in measured]
    if kind == "backdoor":
        cells.append(_value(one.backdoor, untouched.backdoor if one.attacked else None))
    if kind == "metric-forging":
        cells.append(_value(one.reported, untouched.reported if one.attacked else None))
    return [label, *cells]


def _value(value: float | None, before: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if before is None else f"{value:.3f} ({value - before:+.3f})"
