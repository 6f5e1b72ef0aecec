"""From the runs of a sweep to its numbers: means over seeds with Student-t intervals, and paired differences.

    mean ± t(0.975, n - 1) · s / sqrt(n)        over n seeds, s with n - 1 in the denominator

The seeds vary the split, the partition, the first adapter and the noise on the same records: the interval says how far the numbers
depend on that chance, not what other people would give. Paired differences take the same seed on both sides.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from fedethos.job import Job
from fedethos.result import GapName, MetricName, Personal, Result
from fedethos.simulations.sweep import PlannedPoint, PlannedRun, SweepPlan
from fedethos.sweep_record import AskedBasis, Estimate, Paired, RunStatus, Sweep, SweepPoint, SweepRun
from fedethos.tested_people import people_hash
from fedethos.wording import largest_epsilon

METRICS: tuple[MetricName, ...] = ("accuracy", "balanced_accuracy", "roc_auc", "worst_group_accuracy")
GAPS: tuple[GapName, ...] = ("demographic_parity_difference", "equalized_odds_difference", "equal_opportunity_difference")
SIGNED = ("signed_demographic_parity_difference", "signed_equal_opportunity_difference", "absolute_equal_opportunity_difference")


@dataclass(frozen=True)
class Outcome:
    """How one run ended. ``code`` of the error that ended it. ``verdict``: whether one on fairness was possible."""

    status: RunStatus
    code: str | None = None
    result: Result | None = None
    verdict: bool | None = None


NOT_RUN = Outcome("not run")


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean and 95 % Student-t interval of independent values."""
    count = len(values)
    if not count:
        return Estimate(mean=None, low=None, high=None, count=0)
    mean = statistics.fmean(values)
    if count == 1:
        return Estimate(mean=mean, low=None, high=None, count=1)
    half = float(stats.t.ppf(0.975, count - 1)) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean=mean, low=mean - half, high=mean + half, count=count)


def measures_of(result: Result, job: Job, basis: AskedBasis) -> dict[str, float | None]:
    """The values of one run by name: ``accuracy``, ``sex.equalized_odds_difference``. None: not measurable, or not known on this basis.

    Signed differences are first minus second group of a two-group attribute in the job's order:
    P(favorable | first) - P(favorable | second), and TPR(first) - TPR(second). ``personal.accuracy``, ``personal.sex.…``: the same of the
    sites' personal adapters, where the job keeps them.
    """
    values: dict[str, float | None] = {name: _metric(result, name, basis) for name in METRICS}
    for attribute, categories in job.attributes.items():
        for gap in GAPS:
            values[f"{attribute}.{gap}"] = _gap(result, attribute, gap, basis)
        if len(categories) == 2:
            selection = _contrast(result, attribute, categories, "selection_rate", basis)
            opportunity = _contrast(result, attribute, categories, "tpr", basis)
            contrasts = (selection, opportunity, None if opportunity is None else abs(opportunity))
            values |= {f"{attribute}.{name}": value for name, value in zip(SIGNED, contrasts, strict=True)}
    return values | (_personal_measures(result.personal, list(job.attributes), basis) if result.personal else {})


def _personal_measures(personal: Personal, attributes: Sequence[str], basis: AskedBasis) -> dict[str, float | None]:
    values: dict[str, float | None]
    if basis == "released":
        values = {name: personal.metrics.of(name).value for name in METRICS}
        values |= {f"{one}.{gap}": personal.fairness[one].of(gap).value for one in attributes if one in personal.fairness for gap in GAPS}
    else:
        exact = personal.oracle
        values = {name: getattr(exact.metrics, name) if exact else None for name in METRICS}
        values |= {f"{one}.{gap}": getattr(exact.fairness[one], gap) if exact else None for one in attributes for gap in GAPS}
    return {f"personal.{name}": value for name, value in values.items()}


def _metric(result: Result, name: MetricName, basis: AskedBasis) -> float | None:
    if basis == "released":
        return result.metrics.of(name).value
    value: float | None = getattr(result.oracle.metrics, name) if result.oracle else None
    return value


def _gap(result: Result, attribute: str, gap: GapName, basis: AskedBasis) -> float | None:
    if basis == "released":
        return result.fairness[attribute].of(gap).value if attribute in result.fairness else None
    known = result.oracle is not None and attribute in result.oracle.fairness
    value: float | None = getattr(result.oracle.fairness[attribute], gap) if known and result.oracle else None
    return value


def _contrast(result: Result, attribute: str, categories: Sequence[str], rate: str, basis: AskedBasis) -> float | None:
    first, second = (_rate(result, attribute, category, rate, basis) for category in categories)
    return None if first is None or second is None else first - second


def _rate(result: Result, attribute: str, category: str, rate: str, basis: AskedBasis) -> float | None:
    value: float | None = None
    if basis == "oracle" and result.oracle and attribute in result.oracle.fairness:
        exact = result.oracle.fairness[attribute].groups.get(category)
        value = getattr(exact, rate) if exact else None
    elif basis == "released" and attribute in result.fairness:
        group = result.fairness[attribute].groups.get(category)
        value = getattr(group, rate).value if group else None
    return value


def sweep_table(plan: SweepPlan, outcomes: Mapping[str, Outcome], basis: AskedBasis) -> Sweep:
    """Everything that is printed. ``outcomes`` by the folder of the run; one that is missing has not run."""
    points = [_point(point, outcomes, basis) for point in plan.points]
    return Sweep(
        schema="fedethos/sweep/v1",
        name=plan.name,
        basis=basis,
        seeds=list(plan.seeds),
        same_people=all(_same_people(plan, outcomes, place) for place in range(len(plan.seeds))),
        points=points,
        paired=[_paired(point, points[0]) for point in points[1:]],
    )


def _same_people(plan: SweepPlan, outcomes: Mapping[str, Outcome], place: int) -> bool:
    runs = [(point.runs[place].job, outcomes.get(point.runs[place].folder, NOT_RUN).result) for point in plan.points]
    return len({people_hash(job, result) for job, result in runs if result}) <= 1


def _point(point: PlannedPoint, outcomes: Mapping[str, Outcome], basis: AskedBasis) -> SweepPoint:
    runs = [_run(run, outcomes.get(run.folder, NOT_RUN), basis) for run in point.runs]
    bases = {run.basis for run in runs if run.basis}
    spent = [run.epsilon for run in runs if run.epsilon is not None]
    return SweepPoint(
        name=point.name,
        settings=point.settings,
        basis=bases.pop() if len(bases) == 1 else None,
        epsilon=max(spent, default=None),
        runs=runs,
        measures={name: t_interval([value for run in runs if (value := run.values.get(name)) is not None]) for name in _names(runs)},
    )


def _run(run: PlannedRun, outcome: Outcome, basis: AskedBasis) -> SweepRun:
    result = outcome.result
    got = None if result is None else "oracle" if basis == "oracle" and result.oracle else result.basis if basis == "released" else None
    return SweepRun(
        folder=run.folder,
        seed=run.seed,
        job_sha256=run.job.sha256,
        status=outcome.status,
        code=outcome.code,
        basis=got,
        epsilon=largest_epsilon(result.privacy) if result else None,
        verdict=outcome.verdict,
        values=measures_of(result, run.job, basis) if result else {},
    )


def _paired(point: SweepPoint, first: SweepPoint) -> Paired:
    measures = {}
    if point.basis == first.basis:
        for name in (name for name in point.measures if name in first.measures):
            pairs = [(one.values.get(name), other.values.get(name)) for one, other in zip(point.runs, first.runs, strict=True)]
            measures[name] = t_interval([one - other for one, other in pairs if one is not None and other is not None])
    return Paired(point=point.name, against=first.name, measures=measures)


def _names(runs: Sequence[SweepRun]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.values))
