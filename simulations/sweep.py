"""A sweep's plan: every grid point with every seed, one checked job and one folder for each. Nothing is run here.

    --grid privacy.epsilon=3,8 --seeds 2 --seed-start 7
    ->  epsilon=3/seed-7, epsilon=3/seed-8, epsilon=8/seed-7, epsilon=8/seed-8

Next on the path: ``simulations/sweep_run.py`` runs it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.runfolder import RunFolder

SEED = "simulation.seed"
NO_GRID = "job"  # the one point of a sweep over seeds alone
MAX_NAME = 100  # characters of a point's folder
_OPEN, _CLOSE = "[{", "]}"

State = Literal["finished", "begun", "new"]


@dataclass(frozen=True)
class Axis:
    """One ``--grid``: a key of the job and its values as ``--set`` would read them."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    """``folder`` is relative to the sweep's."""

    folder: str
    seed: int
    job: Job


@dataclass(frozen=True)
class PlannedPoint:
    name: str
    settings: dict[str, str]
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class SweepPlan:
    name: str
    seeds: tuple[int, ...]
    points: tuple[PlannedPoint, ...]

    def in_order(self) -> Iterator[PlannedRun]:
        """All points under one seed, then the next seed: a sweep that was cut short can still be compared in pairs."""
        for place in range(len(self.seeds)):
            for point in self.points:
                yield point.runs[place]


def parse_axis(text: str) -> Axis:
    """``"a.b=1,2"``. CFG-280 if it is not of that form."""
    key, equals, values = text.partition("=")
    parts = split_values(values) if equals and key else None
    if parts is None or not all(parts):
        raise FedethosError(
            "CFG-280",
            "A grid is not of the form key=value,value.",
            where="--grid",
            fix="Write --grid privacy.epsilon=3,8; a list or mapping goes in brackets: --grid 'lora.target_modules=[query],[query,value]'.",
        )
    if key == SEED:
        raise FedethosError("CFG-282", f"{SEED} cannot be a grid key.", where="--grid", fix="Use --seeds and --seed-start.")
    return Axis(key, parts)


def split_values(text: str) -> tuple[str, ...] | None:
    """Split at the commas outside YAML brackets and quotes; None if these are not closed.

    A quote opens only where a YAML value can begin, a bracket only there or inside another: ``it's`` and ``a]`` are plain text.
    """
    parts, current, depth, quote = [], "", 0, ""
    for character in text:
        begins = not current.strip() or (depth > 0 and current.rstrip()[-1] in "[{,:")
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and begins:
            quote = character
        elif character in _OPEN and (begins or depth):
            depth += 1
        elif character in _CLOSE and depth:
            depth -= 1
        elif character == "," and not depth:
            parts.append(current.strip())
            current = ""
            continue
        current += character
    return None if depth or quote else (*parts, current.strip())


def plan_sweep(job_file: Path, overrides: Sequence[str], axes: Sequence[Axis], seeds: Sequence[int]) -> SweepPlan:
    """Check every job before the first one runs.

    Raises
    ------
    FedethosError
        Whatever ``load_job`` refuses; CFG-281 when two points, or two keys, are the same.
    """
    if len({axis.key for axis in axes}) < len(axes):
        raise _twice("A key stands in the grid twice.")
    points = []
    for values in product(*(axis.values for axis in axes)):
        settings = dict(zip((axis.key for axis in axes), values, strict=True))
        name = point_name(settings)
        jobs = [_load(job_file, overrides, settings, seed) for seed in seeds]
        runs = tuple(PlannedRun(f"{name}/seed-{seed}", seed, job) for seed, job in zip(seeds, jobs, strict=True))
        points.append(PlannedPoint(name, settings, runs))
    if len({point.runs[0].job.sha256 for point in points}) < len(points):
        raise _twice("Two points of the grid are the same job.")
    return SweepPlan(points[0].runs[0].job.name, tuple(seeds), tuple(points))


def _twice(what: str) -> FedethosError:
    return FedethosError("CFG-281", what, where="--grid", why="Its runs would be counted twice.", fix="Name every key and value once.")


def _load(job_file: Path, overrides: Sequence[str], settings: dict[str, str], seed: int) -> Job:
    added = [*(f"{key}={value}" for key, value in settings.items()), f"{SEED}={seed}"]
    try:
        return load_job(job_file, [*overrides, *added])
    except FedethosError as error:
        for number, override in enumerate(added, start=len(overrides) + 1):
            if error.where == f"--set no. {number}":
                option = "--seed-start" if override.startswith(f"{SEED}=") else f"--grid {override.partition('=')[0]}"
                raise FedethosError(error.code, error.what, where=option, why=error.why, fix=error.fix) from None
        raise


def point_name(settings: dict[str, str]) -> str:
    """A folder name: ``epsilon=3,aggregation=ffa``. What a file system may not like is replaced, and then a hash keeps it unique."""
    if not settings:
        return NO_GRID
    last = Counter(key.rpartition(".")[2] for key in settings)
    short = {key: part if last[part := key.rpartition(".")[2]] == 1 else key for key in settings}
    wished = ",".join(f"{short[key]}={value}" for key, value in settings.items())
    safe = re.sub(r"[^A-Za-z0-9.,+=_-]+", "_", wished)
    if safe == wished and len(safe) <= MAX_NAME:
        return safe
    return f"{safe[:MAX_NAME].rstrip('_.')}~{hashlib.sha256(wished.encode()).hexdigest()[:8]}"


def state_of(run: PlannedRun, out: Path) -> State:
    """What is in the folder of a run. RUN-950 if it is the run of another job."""
    folder = RunFolder(out / run.folder)
    if not folder.job.exists():
        return "new"
    if folder.parse_job().sha256 != run.job.sha256:
        raise FedethosError(
            "RUN-950",
            "A folder of the sweep holds the run of another job.",
            where=str(folder.path),
            why="A table over different jobs would mean nothing.",
            fix="Choose another --out, or delete that folder if nobody needs it.",
        )
    return "finished" if folder.result.exists() else "begun"
