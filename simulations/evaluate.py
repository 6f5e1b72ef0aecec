"""``fedethos evaluate RUN``: a finished simulation's released adapter again, on the records of its virtual sites.

Whatever comes out is exact (basis ``oracle``): only a simulation may look at records so. Next: ``simulations/flips.py``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedethos.aggregation import EXPORTED_AS_ONE, Aggregation
from fedethos.client.evaluator import Predictions, lay_out, predict
from fedethos.client.examples import Examples
from fedethos.client.model import NodeModel
from fedethos.client.registry import prepare_task
from fedethos.client.task import Task
from fedethos.data.counterfactual import Swaps
from fedethos.data.records import Records
from fedethos.errors import FedethosError
from fedethos.fairness.intervals import Estimate
from fedethos.fairness.scenarios import ScenarioOutcome, outcome
from fedethos.fairness.summary import Summary
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.messages import SplitName
from fedethos.models.adapter_files import read_tensors
from fedethos.models.residual import beside_idle_adapter
from fedethos.progress import Observer
from fedethos.result import Interval
from fedethos.runfolder import RunFolder
from fedethos.scenario import load_job_with
from fedethos.server.measure import describe, exact_layout
from fedethos.simulations.oracle import exact_measurement
from fedethos.simulations.virtual_sites import read_records, site_records
from fedethos.storage import JsonValue

_TENSOR_FILES = ("adapter_model.safetensors", "model.safetensors")  # of LoRA, of a tabular model


@dataclass(frozen=True)
class ReleasedModel:
    """The adapter that a run released, loaded, and ``edge``, the index of the threshold that it released with it."""

    job: Job
    base: Path
    task: Task
    edge: int

    def records(self, split: SplitName, swaps: Swaps | None = None) -> dict[str, Records]:
        """The records of one split by site, without copies; ``swaps`` as for ``read_records``."""
        plain = self.job.model_copy(update={"fairness": self.job.fairness.model_copy(update={"augment": "none"})})
        read = read_records(plain, self.base, swaps)
        return {site: splits[split] for site, splits in site_records(plain, self.base, read).items()}

    def examples(self, records: Records) -> Examples:
        return Examples.of(records, self.job, self.task.inputs(records))

    def predict(self, examples: Examples) -> Predictions:
        return predict(self.task.model, examples, self.job.data.label.favorable_index)

    def score(self, examples: Examples) -> npt.NDArray[np.float64]:
        """Log-odds of the favorable label against the likeliest other, float64[n]: decisions are at the released threshold."""
        return self.predict(examples).margin


@contextmanager
def open_released(folder: RunFolder, observer: Observer) -> Iterator[ReleasedModel]:
    """The released model of a finished simulation. Nothing is charged, and no ledger is opened: nothing leaves this process.

    Raises
    ------
    FedethosError
        RUN-903 for an unfinished run; RUN-960 without a usable adapter; RUN-962 without one threshold for everybody; SEC-601 for
        another base model than the run's; MODEL-454 to MODEL-457 for an adapter that does not fit it.
    """
    job, base = folder.parse_job(), Path(folder.read_local().base)
    folder.read_result()
    edge = _common_threshold(folder)
    with tempfile.TemporaryDirectory(prefix="fedethos-") as scratch, ExitStack() as resources:
        observer.stage("Loading the model")
        task = prepare_task(job, base=base, scratch=Path(scratch), resources=resources)
        require_base(folder, task.model.base_sha256)
        load_exported(folder.adapter, task.model, job.aggregation)
        yield ReleasedModel(job, base, task, edge)


@contextmanager
def open_exported(adapter: Path, job: Job, base: Path, observer: Observer) -> Iterator[ReleasedModel]:
    """An exported adapter, without its run, on the base model that ``job`` names here; the threshold is a score of 0.5.

    Raises
    ------
    FedethosError
        As ``open_released``, as far as they are about model and adapter.
    """
    with tempfile.TemporaryDirectory(prefix="fedethos-") as scratch, ExitStack() as resources:
        observer.stage("Loading the model")
        task = prepare_task(job, base=base, scratch=Path(scratch), resources=resources)
        load_exported(adapter, task.model, job.aggregation)
        yield ReleasedModel(job, base, task, FIXED_EDGE)


def require_base(folder: RunFolder, sha256: str) -> None:
    """SEC-601 when the base model with this content hash is not the one that the run trained on."""
    if sha256 != folder.read_manifest().base_model.sha256:
        raise FedethosError(
            "SEC-601",
            "The base model is not the one that the run trained on.",
            where="model.path",
            why="The released adapter belongs to another model.",
            fix="Put the model of the run back.",
        )


@dataclass(frozen=True)
class Evaluation:
    """Exact metrics of a job's released model on ``records`` records."""

    job: Job
    records: int
    summary: Summary

    @property
    def scenarios(self) -> dict[str, ScenarioOutcome]:
        """The outcomes of the job's scenarios by name."""
        return {asked.name: outcome(asked, self.summary.slices[asked.table]) for asked in self.job.scenarios}

    def as_json(self) -> dict[str, JsonValue]:
        """``metrics`` and ``fairness`` as in ``result.json``, without the groups."""
        gaps = {attribute: one.gaps for attribute, one in self.summary.fairness.items()}
        return {
            "name": self.job.name,
            "basis": "oracle",
            "records": self.records,
            "metrics": _documented(self.summary.metrics),
            "fairness": {attribute: _documented(estimates) for attribute, estimates in gaps.items()},
            "scenarios": {name: {"value": shown(one.value).model_dump(), "holds": one.holds} for name, one in self.scenarios.items()},
        }


def _common_threshold(folder: RunFolder) -> int:
    threshold = folder.read_fairness().threshold
    if threshold.edge_index is None or threshold.group_aware:
        raise FedethosError(
            "RUN-962",
            "The run decides by a threshold for each group." if threshold.group_aware else "The run released no decision threshold.",
            where=str(folder.fairness),
            why="Its decisions use the attribute itself, so that a swapped record has no threshold." if threshold.group_aware else "",
            fix="Run the job with fairness.thresholds: pooled.",
        )
    return threshold.edge_index


def evaluate_run(folder: RunFolder, split: SplitName, observer: Observer, scenarios: Sequence[Path] = ()) -> Evaluation:
    """Metrics on one split of all sites, at the released threshold; ``scenarios``: files of more scenarios than the job's own.

    Errors as for ``open_released`` and ``load_job_with``.
    """
    asked = load_job_with(folder.job, (), scenarios)
    with open_released(folder, observer) as opened:
        released = replace(opened, job=asked)
        observer.stage("Reading and splitting the records")
        by_site = released.records(split)
        observer.stage(f"Evaluating on the {split} records")
        parts = [released.examples(records) for records in by_site.values()]
        predictions, layout = [released.predict(part) for part in parts], exact_layout(released.job)
        tables = [lay_out(one, part, released.job, layout) for one, part in zip(predictions, parts, strict=True)]
        measured = exact_measurement(released.job, tables, [one.log_odds for one in predictions], parts, layout)
        return Evaluation(released.job, sum(map(len, parts)), describe(measured, released.edge, released.job, withhold=False))


def _documented(estimates: Mapping[str, Estimate]) -> dict[str, JsonValue]:
    return {name: shown(item).model_dump() for name, item in estimates.items()}


def shown(item: Estimate) -> Interval:
    """As documents hold an estimate: what abstains keeps its limits and loses its value."""
    return Interval(value=None if item.abstained else item.value, low=item.low, high=item.high, abstained=item.abstained)


def load_exported(adapter: Path, model: NodeModel, rule: Aggregation) -> None:
    """Load what a run with aggregation ``rule`` released. RUN-960 when there is none, SEC-670 to SEC-673 for a bad file."""
    files = [adapter / name for name in _TENSOR_FILES if (adapter / name).is_file()]
    if len(files) != 1:
        raise _no_adapter(adapter)
    tensors = read_tensors(files[0])
    if model.center is not None:
        tensors = model.center.unfolded(tensors)
    if rule in EXPORTED_AS_ONE:
        model.load(beside_idle_adapter(tensors, model.read()))
        return
    frozen = {name: tensor for name, tensor in tensors.items() if name in model.frozen_names}
    model.load({name: tensor for name, tensor in tensors.items() if name not in frozen})
    if model.frozen_names:
        model.load(frozen)


def _no_adapter(adapter: Path) -> FedethosError:
    return FedethosError(
        "RUN-960",
        "The folder holds no adapter that can be read.",
        where=str(adapter),
        why="There is no model to evaluate.",
        fix="Let the run finish (`fedethos resume`), or restore its adapter folder.",
    )
