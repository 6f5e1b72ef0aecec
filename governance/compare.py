"""Finished runs and sweeps side by side: what each measured, what differs in their jobs, and which of them may share a table.

Numbers share a table only if they are of one kind: the same basis, single runs or means over seeds, thresholds with or without the
group. Runs that were tested on different people are refused. Next on the path: ``compare_page.py`` writes the words and the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from fedethos.errors import FedethosError
from fedethos.result import Basis, GapName, Interval, MetricName
from fedethos.runfolder import RunFolder
from fedethos.sweep_record import SWEEP_FILE, AskedBasis, Estimate, SweepPoint, read_sweep
from fedethos.tested_people import people_hash, share_people
from fedethos.wording import guarantee, largest_epsilon

METRICS: tuple[MetricName, ...] = ("roc_auc", "balanced_accuracy", "accuracy", "worst_group_accuracy")
GAPS: tuple[GapName, ...] = ("demographic_parity_difference", "equalized_odds_difference", "equal_opportunity_difference")
_GROUP_BLIND = ("pooled", "fixed")  # fairness.thresholds that treat everybody alike
_NEVER_SHOWN = {"name", "schema", "simulation.seed"}


@dataclass(frozen=True)
class Number:
    """``value`` None: not measurable. ``low`` and ``high`` are of the 95 % interval; both None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @staticmethod
    def of(item: Interval | Estimate) -> Number:
        return Number(item.value if isinstance(item, Interval) else item.mean, item.low, item.high)


@dataclass(frozen=True, order=True)
class Kind:
    """``basis`` None: a sweep's point whose runs do not share one."""

    basis: Basis | None
    over_seeds: bool
    by_group: bool


@dataclass(frozen=True)
class Entry:
    """One run, or one grid point of a sweep. ``seconds`` and ``bytes`` are of one run (the mean of a point's).

    ``guarantee``: what epsilon is about. ``people``: hashes of the test sets. ``jobs``: values by dotted key.
    """

    name: str
    kind: Kind
    epsilon: float | None
    guarantee: str
    metrics: Mapping[MetricName, Number]
    gaps: Mapping[str, Mapping[GapName, Number]]
    verdicts: tuple[int, int]
    seconds: float
    bytes: int
    people: frozenset[str]
    job: Mapping[str, object]


@dataclass(frozen=True)
class Comparison:
    """``tables`` in the order of the first entry of each kind. ``differing``: per job key the values by entry name."""

    tables: Mapping[Kind, tuple[Entry, ...]]
    differing: Mapping[str, Mapping[str, object]]
    same_people: bool
    guarantees: frozenset[str] = field(default_factory=frozenset)


def compare(paths: Sequence[Path], *, basis: AskedBasis, anyway: bool) -> Comparison:
    """Read and group runs and sweep folders.

    Parameters
    ----------
    basis : {"oracle", "released"}
        Of single runs; a sweep has its own. ``released`` takes what each run shows, ``oracle`` what only a simulation knows.
    anyway : bool
        Compare runs that were tested on different people; the comparison then says so.

    Raises
    ------
    FedethosError
        RUN-952 fewer than two entries, RUN-953 different test people, RUN-954 no exact values for ``basis="oracle"``.
    """
    entries = [entry for path, name in zip(paths, _names(paths), strict=True) for entry in _entries(path, name, basis)]
    if len(entries) < 2:
        raise FedethosError("RUN-952", "There is nothing to compare: fewer than two finished runs.", fix="Name two runs, or a sweep.")
    same_people = share_people(entry.people for entry in entries)
    if not same_people and not anyway:
        raise FedethosError(
            "RUN-953",
            "The runs were not tested on the same people.",
            where=", ".join(entry.name for entry in entries),
            why="A difference between them could come from the people and not from the model. Data contract, split and seed decide.",
            fix="Run them with the same data and simulation.seed (or set data.split_salt), or add --anyway; the page will say so.",
        )
    tables: dict[Kind, tuple[Entry, ...]] = {}
    for entry in entries:
        tables[entry.kind] = (*tables.get(entry.kind, ()), entry)
    guarantees = frozenset(entry.guarantee for entry in entries if entry.epsilon is not None)
    return Comparison(tables, differing_keys(entries), same_people, guarantees)


def differing_keys(entries: Sequence[Entry]) -> dict[str, dict[str, object]]:
    """Job keys whose values are not the same everywhere; a key that one job lacks is None there."""
    keys = dict.fromkeys(key for entry in entries for key in entry.job if key not in _NEVER_SHOWN)
    values = {key: {entry.name: entry.job.get(key) for entry in entries} for key in keys}
    return {key: by_name for key, by_name in values.items() if len({json.dumps(value) for value in by_name.values()}) > 1}


def flat(document: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """``{"privacy": {"epsilon": 8}}`` to ``{"privacy.epsilon": 8}``. Lists and empty sections are values."""
    found: dict[str, object] = {}
    for key, value in document.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _entries(path: Path, name: str, basis: AskedBasis) -> list[Entry]:
    if (path / SWEEP_FILE).is_file():
        return [_point_entry(point, path, f"{name}/{point.name}") for point in read_sweep(path).points if point.finished]
    return [_run_entry(path, name, basis)]


def _run_entry(path: Path, name: str, basis: AskedBasis) -> Entry:
    folder = RunFolder(path)
    result, job, exact = folder.read_result(), folder.parse_job(), None
    if basis == "oracle":
        exact = result.oracle
        if exact is None:
            raise FedethosError("RUN-954", "This run has no exact values.", where=str(path), fix="Compare without --basis oracle.")
    metrics = {metric: Number(getattr(exact.metrics, metric)) if exact else Number.of(result.metrics.of(metric)) for metric in METRICS}
    gaps = {
        attribute: {
            gap: Number(getattr(exact.fairness[attribute], gap)) if exact else Number.of(result.fairness[attribute].of(gap)) for gap in GAPS
        }
        for attribute in job.attributes
        if attribute in (exact.fairness if exact else result.fairness)
    }
    return Entry(
        name=name,
        kind=Kind("oracle" if exact else result.basis, over_seeds=False, by_group=job.fairness.thresholds not in _GROUP_BLIND),
        epsilon=largest_epsilon(result.privacy),
        guarantee=guarantee(folder.read_privacy()),
        metrics=metrics,
        gaps=gaps,
        verdicts=(int(folder.read_fairness().verdict.state == "measured"), 1),
        seconds=result.seconds,
        bytes=result.communication.bytes_up + result.communication.bytes_down,
        people=frozenset([people_hash(job, result)]),
        job=flat(job.model_dump(mode="json", by_alias=True)),
    )


def _point_entry(point: SweepPoint, sweep: Path, name: str) -> Entry:
    """Numbers from ``sweep.json``, job and costs from the folders of the runs."""
    folders = [RunFolder(sweep / run.folder) for run in point.finished]
    results, jobs = [folder.read_result() for folder in folders], [folder.parse_job() for folder in folders]
    job, nothing = jobs[0], Estimate(mean=None, low=None, high=None, count=0)
    return Entry(
        name=name,
        kind=Kind(point.basis, over_seeds=True, by_group=job.fairness.thresholds not in _GROUP_BLIND),
        epsilon=point.epsilon,
        guarantee=guarantee(folders[0].read_privacy()),
        metrics={metric: Number.of(point.measures.get(metric, nothing)) for metric in METRICS},
        gaps={
            attribute: {gap: Number.of(point.measures.get(f"{attribute}.{gap}", nothing)) for gap in GAPS} for attribute in job.attributes
        },
        verdicts=(len(point.finished) - point.without_verdict, len(point.finished)),
        seconds=fmean(result.seconds for result in results),
        bytes=round(fmean(result.communication.bytes_up + result.communication.bytes_down for result in results)),
        people=frozenset(people_hash(job, result) for job, result in zip(jobs, results, strict=True)),
        job=flat(job.model_dump(mode="json", by_alias=True)),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many as tell the paths apart."""
    parts = [path.resolve().parts for path in dict.fromkeys(paths)]
    if len(set(parts)) < len(paths):
        raise FedethosError("RUN-952", "A folder is named twice.", fix="Name every run or sweep once.")
    return ["/".join(part[-_depth(part, parts) :]) for part in parts]


def _depth(part: tuple[str, ...], parts: Sequence[tuple[str, ...]]) -> int:
    return next(depth for depth in range(1, len(part) + 1) if sum(other[-depth:] == part[-depth:] for other in parts) == 1)
