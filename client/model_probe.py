"""The job's model on this machine, before anything is approved: its tensors, its hash, and what training it takes here.

Time and memory come from one micro-batch of made-up records of the longest length that the job allows, so they are upper estimates. No
record of the site is read.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from fedethos.client.model import NodeModel
from fedethos.client.registry import prepare_task
from fedethos.client.task import Task
from fedethos.job import Job
from fedethos.models.peft_classes import is_peft_model
from fedethos.privacy.plan import expected_batch_size_of
from fedethos.site import SiteDocument

_MOST_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """``seconds_per_round``: of training alone, an upper estimate; ``memory_bytes``: the most that the process took meanwhile."""

    base_sha256: str
    tensors: Mapping[str, tuple[int, ...]]
    frozen: Mapping[str, tuple[int, ...]]
    seconds_per_round: float
    memory_bytes: int
    device: str


def probe_model(job: Job, site: SiteDocument, folder: Path, *, declared_size: int) -> ModelFacts:
    """Load the base model and train one made-up micro-batch. MODEL-… and SEC-60… as on loading it for a run.

    ``folder``: where relative paths in site.yaml start from.
    """
    with ExitStack() as resources:
        scratch = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        task = prepare_task(site.local(job), base=folder, scratch=scratch, resources=resources)
        model = task.model
        return ModelFacts(
            base_sha256=model.base_sha256,
            tensors={name: array.shape for name, array in model.read().items()},
            frozen={name: array.shape for name, array in model.read_frozen().items()},
            seconds_per_round=_seconds_of_step(job, task, expected_batch_size_of(job, declared_size)) * job.steps_in_round,
            memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            device=str(model.device),
        )


def _seconds_of_step(job: Job, task: Task, expected_batch_size: float) -> float:
    model = task.model
    length = job.model.max_length if is_peft_model(model.model) else 1
    rows = torch.arange(_rows(job, length)) % 4  # four records over and over, as many as fit one micro-batch
    records = _seconds(model, lambda: torch.autograd.backward(task.longest_loss(model.model, rows).sum()))
    anchor = task.anchor
    pull = 0.0 if anchor is None else _seconds(model, lambda: anchor.gradient(0, model.parameters))
    return records / len(rows) * expected_batch_size + pull


def _seconds(model: NodeModel, work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - began


def _rows(job: Job, length: int) -> int:
    return max(1, min(job.training.micro_batch_tokens // length, job.training.batch_size, _MOST_ROWS))
