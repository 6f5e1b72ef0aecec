"""Accuracy and equal-opportunity difference on Adult over many seeds: plain, group-blind and group-aware methods, with and without privacy.

``python -m fedethos.simulations.benchmarks.fairness controller-epsilon-3 --seeds 100`` makes one row of docs/benchmarks.md; started
again it goes on where it was. The rows, with their limits, stand in ``fairness.yaml``. ``make bench ONLY=fairness`` runs all of them on a
few seeds, which says whether they work and not whether a limit holds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import yaml

from fedethos.simulations.benchmarks.row import Row, compared
from fedethos.simulations.sweep import plan_sweep
from fedethos.simulations.sweep_run import run_sweep
from fedethos.simulations.sweep_table import t_interval
from fedethos.sweep_record import Sweep

OUT = Path("build/fairness")
FEW_SEEDS = 5
EOD = "sex.signed_equal_opportunity_difference"


@dataclass(frozen=True)
class Method:
    """One row: the settings over ``adult-controller.yaml``, and its limits by figure (none: only shown)."""

    name: str
    table: str
    settings: tuple[str, ...]
    limits: Mapping[str, float]


@dataclass(frozen=True)
class Figures:
    """Over seeds: mean accuracy, mean EOD with its 95 % interval, mean |EOD|, and how many runs had no fairness verdict."""

    seeds: int
    accuracy: float
    mean_eod: float
    eod_low: float
    eod_high: float
    mean_absolute_eod: float
    without_verdict: int

    @classmethod
    def of(cls, sweep: Sweep) -> Figures:
        """From the runs of a sweep that ended."""
        (point,) = sweep.points
        eod = [value for run in point.finished if (value := run.values[EOD]) is not None]
        interval = t_interval(eod)
        return cls(
            seeds=len(point.finished),
            accuracy=point.measures["accuracy"].mean or math.nan,
            mean_eod=statistics.fmean(eod),
            eod_low=-math.inf if interval.low is None else interval.low,
            eod_high=math.inf if interval.high is None else interval.high,
            mean_absolute_eod=statistics.fmean(abs(value) for value in eod),
            without_verdict=point.without_verdict,
        )

    def misses(self, limits: Mapping[str, float]) -> list[str]:
        """Names of the limits that do not hold."""
        holds = {
            "accuracy": self.accuracy >= limits.get("accuracy", -math.inf),
            "mean_eod": abs(self.mean_eod) <= limits.get("mean_eod", math.inf),
            "mean_absolute_eod": self.mean_absolute_eod <= limits.get("mean_absolute_eod", math.inf),
        }
        return [name for name, held in holds.items() if not held]


def methods() -> dict[str, Method]:
    """All rows by name."""
    tables = yaml.safe_load((files("fedethos.simulations.benchmarks") / "fairness.yaml").read_text(encoding="utf-8"))
    return {
        name: Method(name, table, tuple(row["set"]), row.get("limits", {})) for table, rows in tables.items() for name, row in rows.items()
    }


def measured(method: Method, seeds: Sequence[int], out: Path) -> Figures:
    """Run what is missing of the row's sweep in ``out``."""
    job_file = Path(str(files("fedethos.simulations.jobs") / "adult-controller.yaml"))
    plan = plan_sweep(job_file, method.settings, [], seeds)
    return Figures.of(run_sweep(plan, out / method.name, base=job_file.parent, basis="oracle", say=print))


def rows() -> list[Row]:
    """The reduced form: |EOD| of every method beside plain FedAvg without privacy, on few seeds; shown, not judged."""
    torch.set_num_threads(1)
    found = {name: measured(method, range(1, FEW_SEEDS + 1), OUT / "few") for name, method in methods().items()}
    plain = found.pop("fedavg").mean_absolute_eod
    return [compared("fairness", f"absolute_eod_vs_fedavg/{name}", one.mean_absolute_eod, plain) for name, one in found.items()]


def main() -> None:
    """Print one line a row."""
    parser = argparse.ArgumentParser(prog="python -m fedethos.simulations.benchmarks.fairness", description=__doc__)
    known = methods()
    parser.add_argument("rows", nargs="*", choices=[*known, []], help="default: all")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--out", type=Path, default=OUT / "whole", help="where the runs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.rows or known:
        one = measured(known[name], range(1, arguments.seeds + 1), arguments.out)
        missed = one.misses(known[name].limits)
        verdict = f"misses {', '.join(missed)}" if missed else "holds" if known[name].limits else "shown"
        print(
            f"{known[name].table}  {name:<22} {one.seeds} seeds  accuracy {one.accuracy:.3f}  mean EOD {one.mean_eod:+.3f} "
            f"({one.eod_low:+.3f} to {one.eod_high:+.3f})  mean |EOD| {one.mean_absolute_eod:.3f}  "
            f"no verdict {one.without_verdict}  {verdict}"
        )


if __name__ == "__main__":
    main()
