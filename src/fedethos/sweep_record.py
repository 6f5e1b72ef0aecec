"""``sweep.json``: what a sweep found, over grid points and seeds. It holds no time and no host, so equal sweeps give equal bytes.

Written by ``simulations/sweep_run.py`` from the runs' ``result.json``; read by ``fedethos compare``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from fedethos.errors import FedethosError
from fedethos.result import Basis, Count, Record

SWEEP_FILE = "sweep.json"
RunStatus = Literal["completed", "stopped", "failed", "not run"]
AskedBasis = Literal["oracle", "released"]


class Estimate(Record):
    """Mean over seeds with its 95 % Student-t interval. ``count`` values were measured; the bounds need two, the mean one."""

    mean: float | None
    low: float | None
    high: float | None
    count: Count


class SweepRun(Record):
    """One run. ``folder`` is relative to the sweep's; ``values`` are null where nothing was measurable.

    ``verdict``: whether a fairness verdict was possible; without one a small gap says nothing.
    """

    folder: str
    seed: Count
    job_sha256: str
    status: RunStatus
    code: str | None
    basis: Basis | None
    epsilon: float | None
    verdict: bool | None
    values: dict[str, float | None]


class SweepPoint(Record):
    """``settings``: the grid's keys with their values as they were written. ``epsilon``: the largest of any run and site."""

    name: str
    settings: dict[str, str]
    basis: Basis | None
    epsilon: float | None
    runs: list[SweepRun]
    measures: dict[str, Estimate]

    @property
    def finished(self) -> list[SweepRun]:
        return [run for run in self.runs if run.status in ("completed", "stopped")]

    @property
    def without_verdict(self) -> int:
        """Finished runs whose gaps say nothing: the model is near constant, or too few people to tell."""
        return sum(run.verdict is False for run in self.finished)


class Paired(Record):
    """Differences ``point`` minus ``against``, seed by seed. Empty where the two have another basis."""

    point: str
    against: str
    measures: dict[str, Estimate]


class Sweep(Record):
    """``basis`` is the one asked for; each point says what it got. ``same_people``: under one seed all points have the same test people."""

    schema_: Literal["fedethos/sweep/v1"] = Field("fedethos/sweep/v1", alias="schema")
    name: str
    basis: AskedBasis
    seeds: list[Count]
    same_people: bool
    points: list[SweepPoint]
    paired: list[Paired]


def read_sweep(folder: Path) -> Sweep:
    """RUN-906 if ``sweep.json`` is damaged or from another version."""
    path = folder / SWEEP_FILE
    try:
        return Sweep.model_validate_json(path.read_bytes())
    except ValidationError:
        raise FedethosError(
            "RUN-906",
            f"{SWEEP_FILE} does not have the form that this version writes.",
            where=str(path),
            fix="Start the same sweep again: finished runs are kept, the file is written anew.",
        ) from None
