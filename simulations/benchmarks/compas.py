"""COMPAS with FedFB's two sites and four groups: thresholds per group; and our controller beside FedFB, tuned with the same effort.

    python -m fedethos.simulations.benchmarks.compas thresholds --seeds 40
    python -m fedethos.simulations.benchmarks.compas epsilon-3 --seeds 40

Each makes one row of docs/benchmarks.md; started again it goes on where it was. The rows stand in ``compas.yaml``, the job in
``../jobs/compas-two-sites.yaml``. ``make bench ONLY=fairness`` runs the row ``thresholds`` on a few seeds, where the records are there.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field

from fedethos.result import OracleGroup
from fedethos.runfolder import RunFolder
from fedethos.simulations.benchmarks.row import Row, alone
from fedethos.simulations.sweep import Axis, SweepPlan, plan_sweep
from fedethos.simulations.sweep_run import run_sweep
from fedethos.simulations.sweep_table import t_interval
from fedethos.sweep_record import Estimate

OUT = Path("build/compas")
FILE = "compas-scores-two-years.csv"
ATTRIBUTE = "sex*race"
TUNING_SEEDS = range(101, 105)
FEW_SEEDS = 5
_DRAWS = 4_000


class GroupAware(BaseModel):
    """One row that decides by group: settings, and limits of accuracy (least) and excess (most)."""

    model_config = ConfigDict(extra="forbid")

    settings: list[str] = Field(alias="set")
    limits: dict[str, float]


class GroupBlind(BaseModel):
    """Two strategies, each over a grid of the same size, under each row's settings."""

    model_config = ConfigDict(extra="forbid")

    least_accuracy: float
    rows: dict[str, list[str]]
    strategies: dict[str, dict[str, list[str | float]]]


class Rows(BaseModel):
    """``compas.yaml``."""

    model_config = ConfigDict(extra="forbid")

    group_aware: dict[str, GroupAware] = Field(alias="group-aware")
    group_blind: GroupBlind = Field(alias="group-blind")


@dataclass(frozen=True)
class Figures:
    """Exact values of one run on its test people. ``floor``: the gap that a perfectly fair model of this selection rate would show."""

    accuracy: float
    gap: float
    floor: float
    selection_rate: float
    verdict: bool

    @property
    def excess(self) -> float:
        return self.gap - self.floor

    @classmethod
    def of(cls, folder: Path) -> Figures:
        """Of a finished run in ``folder``."""
        run = RunFolder(folder)
        exact = run.read_result().oracle
        if exact is None or exact.metrics.accuracy is None:
            raise ValueError("a finished simulation has exact values")
        gap, floor, selected = demographic_parity(exact.fairness[ATTRIBUTE].groups)
        return cls(exact.metrics.accuracy, gap, floor, selected, run.read_fairness().verdict.state == "measured")


def demographic_parity(groups: Mapping[str, OracleGroup]) -> tuple[float, float, float]:
    """max_g |P(favorable | g) - P(favorable)| (Zeng, Chen and Lee 2021, section 5), its floor, and P(favorable)."""
    known = [(group.count, group.selection_rate) for group in groups.values() if group.selection_rate is not None]
    people, rates = np.array([count for count, _ in known]), np.array([rate for _, rate in known])
    selected = float(people @ rates / people.sum())
    return float(np.abs(rates - selected).max()), fair_floor(tuple(people.tolist()), round(selected, 2)), selected


@cache
def fair_floor(people: tuple[int, ...], selection_rate: float) -> float:
    """Mean gap when everybody is selected with the same chance, whatever the group: what sampling of test people alone gives."""
    sizes = np.array(people)
    counts = np.random.default_rng(0).binomial(sizes, selection_rate, size=(_DRAWS, len(sizes)))
    everybody = counts.sum(axis=1, keepdims=True) / sizes.sum()
    return float(np.abs(counts / sizes - everybody).max(axis=1).mean())


def read_rows() -> Rows:
    """``compas.yaml``."""
    return Rows.model_validate(yaml.safe_load((files("fedethos.simulations.benchmarks") / "compas.yaml").read_text(encoding="utf-8")))


def measured(plan: SweepPlan, out: Path, base: Path) -> dict[str, list[Figures]]:
    """By point, one per seed: run what is missing in ``out``. A run that fails ends it."""
    sweep = run_sweep(plan, out, base=base, basis="oracle", say=print, reports=False)
    if failed := [run.folder for point in sweep.points for run in point.runs if run not in point.finished]:
        raise RuntimeError(f"did not finish: {', '.join(failed)}")
    return {point.name: [Figures.of(out / run.folder) for run in point.runs] for point in sweep.points}


def best_of(points: Mapping[str, Sequence[Figures]], least_accuracy: float) -> str:
    """The point with the smallest mean gap among those with this mean accuracy; the most accurate one where none has it."""
    accuracy = {name: statistics.fmean(run.accuracy for run in runs) for name, runs in points.items()}
    gap = {name: statistics.fmean(run.gap for run in runs) for name, runs in points.items()}
    accurate = [name for name, value in accuracy.items() if value >= least_accuracy]
    return min(accurate, key=gap.__getitem__) if accurate else max(accuracy, key=accuracy.__getitem__)


def paired(ours: Sequence[Figures], theirs: Sequence[Figures]) -> tuple[Estimate, Estimate]:
    """Differences in accuracy and in excess gap, seed by seed."""
    pairs = list(zip(ours, theirs, strict=True))
    return t_interval([one.accuracy - other.accuracy for one, other in pairs]), t_interval(
        [one.excess - other.excess for one, other in pairs]
    )


@dataclass(frozen=True)
class Tuned:
    """A strategy's best setting, its mean accuracy on the tuning seeds, and its runs on the fresh ones."""

    setting: str
    tuning_accuracy: float
    runs: list[Figures]


@dataclass(frozen=True)
class Benchmark:
    """Where the records and the runs are."""

    data: Path
    out: Path

    @property
    def job(self) -> Path:
        return Path(str(files("fedethos.simulations.jobs") / "compas-two-sites.yaml"))

    def plan(self, settings: Sequence[str], axes: Sequence[Axis], seeds: Sequence[int]) -> SweepPlan:
        return plan_sweep(self.job, [f"data.path={(self.data / FILE).resolve()}", *settings], axes, seeds)

    def group_aware(self, name: str, seeds: Sequence[int]) -> list[Figures]:
        """The row's runs."""
        plan = self.plan(read_rows().group_aware[name].settings, [], seeds)
        (runs,) = measured(plan, self.out / name, self.job.parent).values()
        return runs

    def group_blind(self, row: str, seeds: Sequence[int]) -> tuple[Tuned, Tuned]:
        """FedFB, then the controller, which has to be as accurate as the tuned FedFB is on the tuning seeds."""
        theirs = self._tuned(row, "fedfb", read_rows().group_blind.least_accuracy, seeds)
        return theirs, self._tuned(row, "controller", theirs.tuning_accuracy, seeds)

    def _tuned(self, row: str, strategy: str, least_accuracy: float, seeds: Sequence[int]) -> Tuned:
        blind = read_rows().group_blind
        axes = [Axis(key, tuple(str(value) for value in values)) for key, values in blind.strategies[strategy].items()]
        tuning = self.plan(blind.rows[row], axes, TUNING_SEEDS)
        points = measured(tuning, self.out / row / strategy / "tuning", self.job.parent)
        best = best_of(points, least_accuracy)
        (chosen,) = (point.settings for point in tuning.points if point.name == best)
        plan = self.plan(blind.rows[row], [Axis(key, (value,)) for key, value in chosen.items()], seeds)
        (runs,) = measured(plan, self.out / row / strategy / "whole", self.job.parent).values()
        return Tuned(best, statistics.fmean(run.accuracy for run in points[best]), runs)


def described(runs: Sequence[Figures]) -> str:
    """Means of one method."""
    accuracy, gap, floor, selected = (
        statistics.fmean(getattr(run, key) for run in runs) for key in ("accuracy", "gap", "floor", "selection_rate")
    )
    excess = t_interval([run.excess for run in runs])
    return (
        f"{len(runs)} seeds  accuracy {accuracy:.3f}  gap {gap:.3f}  floor {floor:.3f}  excess {_interval(excess)}  "
        f"selected {selected:.3f}  no verdict {sum(not run.verdict for run in runs)}"
    )


def _interval(estimate: Estimate) -> str:
    bounds = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:+.4f} to {estimate.high:+.4f})"
    return f"{estimate.mean:+.4f}{bounds}"


def rows(data: Path = Path("data")) -> list[Row]:
    """The reduced form: excess gap and error of thresholds per group, on a few seeds. Nothing where the records are not there."""
    if not (data / FILE).exists():
        print(f"skipped compas: no {data / FILE} (simulations/jobs/README.md says where it comes from)")
        return []
    torch.set_num_threads(1)
    name, limits = "thresholds", read_rows().group_aware["thresholds"].limits
    runs = Benchmark(data, OUT / "few").group_aware(name, range(1, FEW_SEEDS + 1))
    excess, accuracy = (statistics.fmean(getattr(run, key) for run in runs) for key in ("excess", "accuracy"))
    return [
        alone("fairness", f"compas_excess_gap/{name}", excess, limit=limits["excess"]),
        alone("fairness", f"compas_error/{name}", 1.0 - accuracy, limit=1.0 - limits["accuracy"]),
    ]


def main() -> None:
    """One line a method; for group-blind rows the paired differences too."""
    every = read_rows()
    parser = argparse.ArgumentParser(prog="python -m fedethos.simulations.benchmarks.compas", description=__doc__)
    parser.add_argument("row", choices=[*every.group_aware, *every.group_blind.rows])
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--seed-start", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path("data"), help=f"folder with {FILE}")
    parser.add_argument("--out", type=Path, default=OUT / "whole", help="where the runs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    benchmark, seeds = Benchmark(arguments.data, arguments.out), range(arguments.seed_start, arguments.seed_start + arguments.seeds)
    if not (benchmark.data / FILE).exists():
        parser.exit(3, f"skipped: no {benchmark.data / FILE} (simulations/jobs/README.md says where it comes from)\n")
    if arguments.row in every.group_aware:
        print(f"group-aware  {arguments.row}  {described(benchmark.group_aware(arguments.row, seeds))}")
        return
    fedfb, controller = benchmark.group_blind(arguments.row, seeds)
    for tuned in (fedfb, controller):
        print(f"group-blind  {arguments.row}  {tuned.setting}  {described(tuned.runs)}")
    accuracy, excess = paired(controller.runs, fedfb.runs)
    print(f"group-blind  {arguments.row}  controller minus fedfb, paired: accuracy {_interval(accuracy)}  excess gap {_interval(excess)}")


if __name__ == "__main__":
    main()
