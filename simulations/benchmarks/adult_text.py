"""The group-blind controller beside FedAvg on Adult as text: MiniLM, LoRA, five sites, epsilon 8, paired seeds, exact test counts.

``python -m fedethos.simulations.benchmarks.adult_text`` makes the rows of docs/benchmarks.md; started again it goes on where it was. The
methods, with their limits, stand in ``adult_text.yaml``. Under one seed both run on the same prepared sites.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import yaml
from pydantic import BaseModel, ConfigDict

from fedethos.documents import load_job
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.series import simulate_series
from fedethos.simulations.sweep_table import t_interval
from fedethos.sweep_record import Estimate

OUT = Path("build/adult-text")
PLAIN, OURS = "fedavg", "controller"


class Limits(BaseModel):
    """``share_of_gap``: what may be left of each of FedAvg's mean gaps; ``accuracy_lost``: most that it may cost."""

    model_config = ConfigDict(extra="forbid")

    share_of_gap: float
    accuracy_lost: float


class Methods(BaseModel):
    """``adult_text.yaml``."""

    model_config = ConfigDict(extra="forbid")

    methods: dict[str, list[str]]
    limits: Limits


@dataclass(frozen=True)
class Figures:
    """Exact values of one run. Gaps are women minus men."""

    accuracy: float
    roc_auc: float
    tpr_gap: float
    fpr_gap: float
    verdict: bool

    @classmethod
    def of(cls, folder: Path) -> Figures:
        """Of a finished run in ``folder``."""
        run = RunFolder(folder)
        exact = run.read_result().oracle
        if exact is None:
            raise ValueError("a finished simulation has exact values")
        women, men = (exact.fairness["sex"].groups[name] for name in ("Female", "Male"))
        return cls(
            accuracy=_known(exact.metrics.accuracy),
            roc_auc=_known(exact.metrics.roc_auc),
            tpr_gap=_known(women.tpr) - _known(men.tpr),
            fpr_gap=_known(women.fpr) - _known(men.fpr),
            verdict=run.read_fairness().verdict.state == "measured",
        )


def _known(value: float | None) -> float:
    if value is None:
        raise ValueError("both sexes have people with each label among the test people")
    return value


def read_methods() -> Methods:
    """``adult_text.yaml``."""
    return Methods.model_validate(
        yaml.safe_load((files("fedethos.simulations.benchmarks") / "adult_text.yaml").read_text(encoding="utf-8"))
    )


def measured(methods: Mapping[str, Sequence[str]], seed: int, out: Path) -> dict[str, Figures]:
    """Every method on the people and start of ``seed``; what is finished in ``out`` is not repeated."""
    job_file = Path(str(files("fedethos.simulations.jobs") / "adult.yaml"))
    jobs = {out / name / f"seed-{seed}": load_job(job_file, [*settings, f"simulation.seed={seed}"]) for name, settings in methods.items()}
    simulate_series(jobs, base=job_file.parent, observer=Silent())
    return {name: Figures.of(folder) for name, folder in zip(methods, jobs, strict=True)}


def misses(plain: Sequence[Figures], ours: Sequence[Figures], limits: Limits) -> list[str]:
    """Names of the limits that do not hold for the means."""
    gaps = {key: (abs(_mean(ours, key)), limits.share_of_gap * abs(_mean(plain, key))) for key in ("tpr_gap", "fpr_gap")}
    missed = [key for key, (gap, most) in gaps.items() if gap > most]
    return missed if _mean(plain, "accuracy") - _mean(ours, "accuracy") <= limits.accuracy_lost else [*missed, "accuracy"]


def _mean(runs: Sequence[Figures], key: str) -> float:
    return statistics.fmean(getattr(run, key) for run in runs)


def described(runs: Sequence[Figures]) -> str:
    """Means of one method with their intervals."""
    values = "  ".join(
        f"{key} {_interval(t_interval([getattr(run, key) for run in runs]))}" for key in ("accuracy", "roc_auc", "tpr_gap", "fpr_gap")
    )
    return f"{len(runs)} seeds  {values}  no verdict {sum(not run.verdict for run in runs)}"


def _interval(estimate: Estimate) -> str:
    bounds = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:+.3f} to {estimate.high:+.3f})"
    return f"{estimate.mean:+.3f}{bounds}"


def main() -> None:
    """One line a method, then the paired differences and the verdict."""
    every = read_methods()
    parser = argparse.ArgumentParser(prog="python -m fedethos.simulations.benchmarks.adult_text", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seed-start", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, help="where the runs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs: dict[str, list[Figures]] = {name: [] for name in every.methods}
    for seed in range(arguments.seed_start, arguments.seed_start + arguments.seeds):
        for name, one in measured(every.methods, seed, arguments.out).items():
            print(
                f"seed {seed}  {name:<10} accuracy {one.accuracy:.3f}  TPR gap {one.tpr_gap:+.3f}  FPR gap {one.fpr_gap:+.3f}", flush=True
            )
            runs[name].append(one)
    for name, found in runs.items():
        print(f"group-blind  {name:<10} {described(found)}")
    pairs = list(zip(runs[OURS], runs[PLAIN], strict=True))
    keys = ("accuracy", "tpr_gap", "fpr_gap")
    changes = "  ".join(f"{key} {_interval(t_interval([getattr(one, key) - getattr(other, key) for one, other in pairs]))}" for key in keys)
    missed = misses(runs[PLAIN], runs[OURS], every.limits)
    print(f"group-blind  {OURS} minus {PLAIN}, paired: {changes}  {'misses ' + ', '.join(missed) if missed else 'holds'}")


if __name__ == "__main__":
    main()
