"""``fedethos privacy audit``: does a run lose more privacy than it claims?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedethos.simulations.audit import Audit
    from fedethos.simulations.run_audit import RunAudit

_FIRST_COLUMN = 12


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished, private simulation.")],
    canaries: Annotated[int, typer.Option(min=1, metavar="N", help="How many made-up people to insert; more can prove more.")] = 1000,
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Train only so many steps; default: as many as the run.")] = None,
    claim: Annotated[
        float | None,
        typer.Option(min=0.01, max=50.0, metavar="EPS", help="Plan the noise for this epsilon; default: the run's own, at most 2."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws which canaries take part.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Train once more with canaries, guess which of them took part, and compare what that proves with the claim."""
    from fedethos.progress import Progress

    with Progress() as progress:
        progress.stage("Loading libraries")
        from fedethos.runfolder import RunFolder
        from fedethos.simulations.run_audit import audit_run

        found = audit_run(RunFolder(run), canaries=canaries, steps=steps, claim=claim, seed=seed, observer=progress)
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        _print(found)
    _refuse_violation(found.audit, run)


def _as_json(found: RunAudit) -> dict[str, object]:
    import dataclasses

    result = found.audit
    return {
        "site": found.site,
        "claim": result.claim,
        "lower_bound": result.evidence.epsilon,
        "verdict": _verdict(result),
        **{name: value for name, value in dataclasses.asdict(result.evidence).items() if name != "epsilon"},
        "most_provable": result.most_provable,
        "plan": dataclasses.asdict(result.plan),
        "checks": [dataclasses.asdict(check) for check in result.checks],
    }


def _print(found: RunAudit) -> None:
    result, evidence, plan = found.audit, found.audit.evidence, found.audit.plan
    typer.echo(
        f"{found.site}: {evidence.canaries:,} canaries in {plan.steps} steps of one {plan.unit}, {plan.adjacency}, delta {plan.delta:g}"
    )
    _line("measured", f"epsilon is at least {evidence.epsilon:.2f} with {evidence.confidence:.0%} confidence")
    _line("", f"({evidence.right} of {evidence.guesses} guesses were right)")
    _line("claimed", f"{result.claim:.2f} at delta {plan.delta:g}, one {plan.unit}, {plan.adjacency}")
    _line("verdict", _verdict(result))
    _line("limit", f"{evidence.canaries:,} canaries prove at most {result.most_provable:.2f}, whatever is wrong")
    for check in result.checks:
        _line("check", f"{check.name:<14} {'holds ' if check.holds else 'FAILED'}  {check.says}")
    typer.echo(_next(result))


def _line(label: str, text: str) -> None:
    typer.echo(f"{label:<{_FIRST_COLUMN}}{text}")


def _verdict(result: Audit) -> str:
    if result.refuted:
        return "VIOLATED"
    return "CHECKS FAILED" if result.failed else "consistent"


def _next(result: Audit) -> str:
    from fedethos.privacy.audit import fewest_canaries

    if result.refuted or result.failed:
        return "Next: do not release this adapter. Compare the failed checks with the privacy plan, mend the code, run the job again."
    if result.claim < result.most_provable:
        return "Next: nothing was found, which proves no privacy. Try other coins (--seed) or a smaller claim (--claim 1)."
    needed = fewest_canaries(result.claim, delta=result.plan.delta)
    more = f"take --canaries {needed}, or " if needed else ""
    return f"Next: so many canaries cannot refute a claim of {result.claim:g}: {more}audit the same code at a smaller one (--claim 2)."


def _refuse_violation(result: Audit, run: Path) -> None:
    from fedethos.errors import FedethosError

    if result.refuted:
        raise FedethosError(
            "PRIV-340",
            f"The audit measured epsilon {result.evidence.epsilon:.2f} or more; claimed is {result.claim:.2f}.",
            where=str(run),
            why="More can be learned about one unit than the run promises.",
            fix="Do not release this adapter.",
        )
    if result.failed:
        raise FedethosError(
            "PRIV-341",
            f"The run does not follow its privacy plan: {', '.join(check.name for check in result.failed)}.",
            where=str(run),
            why="Its epsilon was computed for another mechanism than the one that ran.",
            fix="Do not release this adapter.",
        )
