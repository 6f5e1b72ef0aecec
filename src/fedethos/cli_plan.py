"""``fedethos privacy plan``: what a job will cost and what it will be able to measure, before a record is read."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from dataclasses import asdict, dataclass
from functools import partial
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


@dataclass(frozen=True)
class Precision:
    """What one gap between groups will be known to. ``half_width`` is of the 95 % interval.

    ``smallest_group``: the least share of the people in the smallest group at which the gap is measurable.
    ``test_share``: the least ``data.split.test`` at which it is; both None when nothing is enough.
    """

    attribute: str
    metric: str
    half_width: float
    tolerance: float
    measurable: bool
    smallest_group: float | None
    test_share: float | None


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
        list[str] | None, typer.Option("--shares", metavar="ATTRIBUTE=A,B,…", help="Shares of the groups, if known; none: equal.")
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
    from fedethos.documents import load_job
    from fedethos.privacy.center import center_noise_multiplier
    from fedethos.privacy.counts import plan_counts

    job = load_job(job_file, [*(overrides or ()), *([f"federation.rounds={rounds}"] if rounds else [])])
    sizes = _declared_sizes(job, size)
    job, costs = _training(job, sizes, noise_multiplier, rounds_given=rounds is not None)
    together = _trials(job, costs, trials) if trials else {}
    by_accountant = _by_accountant(job, costs) if accountants else {}
    counts, center = plan_counts(job), center_noise_multiplier(job)
    test_variance = sum(one.cell_variance for one in counts if one.population == "test" and not one.personal) * len(sizes)
    metrics = _precision(job, sizes, test_variance, precision or job.privacy.metrics.tolerance, favorable_share, shares or [])
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
                    "test_people": round(_test_people(job, sizes)),
                    "favorable_share": favorable_share,
                    "metrics": [asdict(one) for one in metrics],
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
    _print_precision(metrics, _test_people(job, sizes), favorable_share, equal=not shares)
    changes = [*(overrides or ()), f"federation.rounds={job.federation.rounds}"]
    typer.echo(f"Next: {shlex.join(['fedethos', 'simulate', str(job_file), *_as_options(changes), '--dry-run'])}")


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


def _test_people(job: Job, sizes: dict[str, int]) -> float:
    return sum(sizes.values()) * job.data.split.test / job.data.split.train


def _precision(
    job: Job, sizes: dict[str, int], variance: float, tolerance: float, favorable_share: float, given: list[str]
) -> list[Precision]:
    from fedethos.fairness.precision import GAPS, half_widths, people_needed, smallest_share

    labels = len(job.data.label.values)
    expected = partial(half_widths, favorable_share=favorable_share, noise_variance=variance, labels=labels)
    least_people = partial(people_needed, tolerance=tolerance, favorable_share=favorable_share, noise_variance=variance, labels=labels)
    least_share = partial(smallest_share, tolerance=tolerance, favorable_share=favorable_share, noise_variance=variance, labels=labels)
    people, everybody = _test_people(job, sizes), sum(sizes.values()) / job.data.split.train
    found = []
    for attribute, shares in _shares(job, given).items():
        widths = expected(shares, people)
        for gap in GAPS:
            most = everybody * (1.0 - job.data.split.validation)
            needed = least_people(gap, shares, most)
            found.append(
                Precision(
                    attribute,
                    gap,
                    widths[gap],
                    tolerance,
                    widths[gap] <= tolerance,
                    least_share(gap, len(shares), people),
                    None if needed is None else needed / everybody,
                )
            )
    return found


def _shares(job: Job, given: list[str]) -> dict[str, list[float]]:
    """Shares of the declared groups by attribute; CFG-232 for what is no list of shares.

    Equal where nothing is given; those of an intersection as if its parts were independent.
    """
    shares = {attribute: [1.0 / len(groups)] * len(groups) for attribute, groups in job.attributes.items()}
    for text in given:
        attribute, _, values = text.partition("=")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if attribute not in shares or len(numbers) != len(shares[attribute]) or min(numbers) <= 0.0:
            raise FedethosError(
                "CFG-232",
                "--shares does not give one positive number for each group of a sensitive attribute.",
                where="--shares",
                fix="In the order of the job, for example --shares sex=0.33,0.67.",
            )
        shares[attribute] = [number / sum(numbers) for number in numbers]
    from fedethos.intersections import parts_of

    named = {text.partition("=")[0] for text in given}
    crossed = {attribute: parts_of(attribute) for attribute in shares if attribute not in named and attribute not in job.data.sensitive}
    return shares | {
        name: [math.prod(cell) for cell in itertools.product(*(shares[part] for part in parts))] for name, parts in crossed.items()
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


def _print_precision(metrics: list[Precision], people: float, favorable_share: float, *, equal: bool) -> None:
    groups = "groups of equal size" if equal else "groups as given"
    typer.echo(f"measuring    {people:,.0f} test people of all sites, {groups}, {favorable_share:.0%} with the favorable label")
    width = max((len(one.attribute) for one in metrics), default=0)
    for one in metrics:
        name = (
            one.metric.replace("_", " ")
            .replace("demographic parity", "demographic-parity")
            .replace("equal opportunity", "equal-opportunity")
        )
        typer.echo(f"  {one.attribute:<{width}}  {name:<29}  ±{one.half_width:.3f}  {_verdict(one)}")


def _verdict(one: Precision) -> str:
    needed = "no test split is large enough" if one.test_share is None else f"it takes a test split of {_up(one.test_share)}"
    if not one.measurable:
        return f"not measurable at {one.tolerance:g}: {needed}"
    if one.smallest_group is None:
        return "measurable"
    return f"measurable while the smallest group has {_up(one.smallest_group):.0%} of the people; {needed}"


def _up(share: float) -> float:
    return math.ceil(share * 100.0) / 100.0


def _as_options(changes: list[str]) -> list[str]:
    return [part for change in changes for part in ("--set", change)]
