"""The job's model on this machine, before anything is approved: its tensors, its hash, and what training it takes here.

Time and memory come from one micro-batch of made-up records of the longest length that the job allows, so they are upper estimates. No
record of the site is read.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from fedethos.client.registry import prepare_task
from fedethos.client.task import Task
from fedethos.job import Job
from fedethos.models.peft_classes import is_peft_model
from fedethos.privacy.plan import expected_batch_size_of
from fedethos.privacy.self_check import SyntheticLoss, synthetic_classification
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
            seconds_per_round=_seconds_per_record(job, task) * expected_batch_size_of(job, declared_size) * job.steps_in_round,
            memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            device=str(model.device),
        )


def _seconds_per_record(job: Job, task: Task) -> float:
    loss, rows = _made_up(job, task)
    began = time.perf_counter()
    loss(task.model.model, rows).sum().backward()  # type: ignore[no-untyped-call]
    if task.model.device.type == "cuda":
        torch.cuda.synchronize(task.model.device)
    return (time.perf_counter() - began) / len(rows)


def _made_up(job: Job, task: Task) -> tuple[SyntheticLoss, torch.Tensor]:
    """Four records over and over, as many as fit one micro-batch."""
    model = task.model.model
    if not is_peft_model(model):
        return task.synthetic_loss, torch.arange(_rows(job, 1)) % 4
    loss = synthetic_classification(model.config.vocab_size, len(job.data.label.values), length=job.model.max_length)
    return loss, torch.arange(_rows(job, job.model.max_length)) % 4


def _rows(job: Job, length: int) -> int:
    return max(1, min(job.training.micro_batch_tokens // length, job.training.batch_size, _MOST_ROWS))
