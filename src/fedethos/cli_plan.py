"""``fedethos privacy plan``: what a job will cost and what it will be able to measure, before a record is read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedethos.errors import FedethosError

if TYPE_CHECKING:
    from fedethos.job import Job
    from fedethos.privacy.planner import SiteCost

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job, such as privacy.epsilon=3.")
]


def plan(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="A job.yaml.")],
    overrides: Overrides = None,
    size: Annotated[int | None, typer.Option(min=1, help="Training units per site, where the job declares none.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=10_000, help="Rounds to plan for; none: federation.rounds.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(min=0.05, max=1000.0, help="Noise to plan with; none: the least that keeps the budget.")
    ] = None,
    precision: Annotated[
        float | None, typer.Option(min=0.001, max=1.0, help="Wished half-width of the gaps; none: privacy.metrics.tolerance.")
    ] = None,
    shares: Annotated[
        list[str] | None,
        typer.Option(
            "--shares",
            metavar="NAME=A,B,…",
            help="Shares of the groups, if known; none: equal. Of a scenario: scenario:NAME=MATCHING,OTHERS; none: 0.1,0.9.",
        ),
    ] = None,
    scenario_files: Annotated[
        list[Path] | None, typer.Option("--scenario", metavar="FILE", help="A scenario that filters records; may be given again.")
    ] = None,
    favorable_share: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of the people with the favorable label.")] = 0.25,
    trials: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Runs of this job on the same people, such as hyper-parameter trials.")
    ] = None,
    accountants: Annotated[
        bool, typer.Option("--accountants", help="Also count training's cost with PRV (Opacus) and RDP; takes some seconds more.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Find the noise for a budget, the rounds for a noise, and say which fairness metrics will be measurable."""
    from fedethos.cli_plan_precision import Tested, print_precision, read_shares
    from fedethos.privacy.center import center_noise_multiplier
    from fedethos.privacy.counts import plan_counts
    from fedethos.scenario import load_job_with

    asked = scenario_files or []
    job = load_job_with(job_file, [*(overrides or ()), *([f"federation.rounds={rounds}"] if rounds else [])], asked)
    sizes = _declared_sizes(job, size)
    job, costs = _training(job, sizes, noise_multiplier, rounds_given=rounds is not None)
    together = _trials(job, costs, trials) if trials else {}
    by_accountant = _by_accountant(job, costs) if accountants else {}
    counts, center = plan_counts(job), center_noise_multiplier(job)
    test_variance = sum(one.cell_variance for one in counts if one.population == "test" and not one.personal) * len(sizes)
    people = Tested(
        job, sum(sizes.values()), test_variance, precision or job.privacy.metrics.tolerance, favorable_share, read_shares(job, shares or [])
    )
    metrics, scenarios = people.gaps(), people.scenarios()
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "job": job.name,
                    "unit": job.unit,
                    "adjacency": job.privacy.adjacency,
                    "epsilon": job.privacy.epsilon,
                    "delta": job.privacy.delta,
                    "rounds": job.federation.rounds,
                    "sites": {name: asdict(costs[declared]) for name, declared in sizes.items()} if costs else {},
                    "trials": {"runs": trials, "epsilon": {name: together[declared] for name, declared in sizes.items()}}
                    if together
                    else None,
                    "accountants": {name: by_accountant[declared] for name, declared in sizes.items()} if by_accountant else None,
                    "center": None if center is None else {"noise_multiplier": center},
                    "counts": [asdict(one.allotment) for one in counts],
                    "test_people": round(people.test),
                    "favorable_share": favorable_share,
                    "metrics": [asdict(one) for one in metrics],
                    "scenarios": [asdict(one) for one in scenarios],
                },
                indent=2,
            )
        )
        return
    _print_costs(job, sizes, costs)
    if together and trials:
        _print_trials(trials, together, costs)
    for declared, found in sorted(by_accountant.items()):
        said = ", ".join(f"{name} {epsilon:.2f}" for name, epsilon in found.items())
        typer.echo(f"accountants  training alone at a site of {declared:,}: {said} (PLD is charged)")
    if center is not None:
        typer.echo(f"center       of the head's input, once, noise {center:.2f} times the bound, paid with training")
    for one in counts:
        times = "once" if one.releases == 1 else f"{one.releases} times"
        what = f"{' and '.join(one.parts)} of the {one.population} people{' by the personal adapters' * one.personal}"
        typer.echo(f"counts       {what} {times}, noise {one.release.sigma:.2f} in each cell")
    print_precision(people, metrics, scenarios, equal=not any(text.partition("=")[0] in job.attributes for text in shares or ()))
    changes = [*(overrides or ()), f"federation.rounds={job.federation.rounds}"]
    options = [*_as_options("--set", changes), *_as_options("--scenario", map(str, asked))]
    typer.echo(f"Next: {shlex.join(['fedethos', 'simulate', str(job_file), *options, '--dry-run'])}")


def _declared_sizes(job: Job, size: int | None) -> dict[str, int]:
    names = sorted(job.federation.sites) or [f"site-{number}" for number in range(1, job.simulation.sites + 1)]
    sizes = {}
    for name in names:
        planned = job.federation.sites.get(name)
        declared = planned.declared_size if planned is not None and planned.declared_size is not None else size
        if declared is None:
            raise FedethosError(
                "CFG-231",
                "A site declares no size, and noise depends on it.",
                where=f"federation.sites.{name}.declared_size",
                fix="Say how many training people a site has: --size 1500.",
            )
        sizes[name] = declared
    return sizes


def _training(job: Job, sizes: dict[str, int], noise: float | None, *, rounds_given: bool) -> tuple[Job, dict[int, SiteCost]]:
    """The job with the rounds that are planned, and the cost by declared size; nothing under mode none."""
    from fedethos.privacy.planner import check_fits, noise_for_budget, rounds_for_noise

    if job.privacy.mode == "none":
        return job, {}
    if noise is None:
        return job, {declared: noise_for_budget(job, declared_size=declared) for declared in set(sizes.values())}
    if not rounds_given:  # the smallest site samples its people most often
        most = rounds_for_noise(job, declared_size=min(sizes.values()), noise_multiplier=noise)
        job = job.model_copy(update={"federation": job.federation.model_copy(update={"rounds": max(1, most)})})
    return job, {declared: check_fits(job, declared_size=declared, noise_multiplier=noise) for declared in sorted(set(sizes.values()))}


def _trials(job: Job, costs: dict[int, SiteCost], trials: int) -> dict[int, float]:
    """Epsilon of all trials together, by declared size; nothing under mode none."""
    from fedethos.privacy.planner import cost_of_trials

    return {
        declared: cost_of_trials(job, declared_size=declared, noise_multiplier=cost.noise_multiplier, trials=trials)
        for declared, cost in costs.items()
    }


def _by_accountant(job: Job, costs: dict[int, SiteCost]) -> dict[int, dict[str, float]]:
    """Training's epsilon by accountant and declared size; nothing under mode none."""
    from fedethos.privacy.planner import training_cost_by_accountant

    return {
        declared: training_cost_by_accountant(job, declared_size=declared, noise_multiplier=cost.noise_multiplier)
        for declared, cost in costs.items()
    }


def _print_costs(job: Job, sizes: dict[str, int], costs: dict[int, SiteCost]) -> None:
    from fedethos.wording import steps_words

    typer.echo(f"job          {job.name}: {job.federation.rounds} rounds of {steps_words(job)}")
    if not costs:
        typer.echo("privacy      none: sites send exact updates and counts")
        return
    typer.echo(
        f"privacy      epsilon {job.privacy.epsilon:g} at delta {job.privacy.delta:g} per site and {job.unit} ({job.privacy.adjacency})"
    )
    for declared in sorted(costs):
        names = [name for name, value in sizes.items() if value == declared]
        who = names[0] if len(names) == 1 else f"{len(names)} sites"
        cost = costs[declared]
        typer.echo(
            f"training     {who} of {declared:,} {job.unit}s: noise {cost.noise_multiplier:.3f}, "
            f"sampling rate {cost.sampling_rate:.3f}, epsilon {cost.epsilon:.2f}"
        )


def _print_trials(trials: int, together: dict[int, float], costs: dict[int, SiteCost]) -> None:
    dearest = max(together, key=lambda declared: together[declared])
    runs = "1 run" if trials == 1 else f"{trials} runs"
    typer.echo(
        f"trials       {runs} on the same people, each chosen after seeing the others: epsilon {together[dearest]:.2f} "
        f"(one fixed run {costs[dearest].epsilon:.2f}); caps.lifetime_epsilon has to be as large"
    )


def _as_options(name: str, values: Iterable[str]) -> list[str]:
    return [part for value in values for part in (name, value)]
