"""What makes the demo's job quick: a private step from cached hidden states beside the same step from tokens, and beside Opacus.

The steps take turns in one process on one thread, on the real MiniLM and sentences of the builtin records.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import torch

from fedethos.client.node import clipping_engine
from fedethos.client.trainer import StepPlan, train_round
from fedethos.documents import load_job
from fedethos.privacy.randomness import SeededSource
from fedethos.progress import Silent
from fedethos.simulations.benchmarks.row import Row, compared
from fedethos.simulations.virtual_sites import open_federation

_CACHED_LIMIT = 0.4  # one of six layers is adapted; the head, clipping and noise do not shrink
_OPACUS_LIMIT = 1.0
_REPEATS = 7


def rows() -> list[Row]:
    """Seconds per step: cached over uncached, and the fused engine over Opacus' hooks, both cached."""
    with _one_step() as ours, _one_step("training.cache_frozen_prefix=off") as whole, _one_step("privacy.engine=opacus") as opacus:
        ours(), whole(), opacus()
        turns = [(_seconds(ours), _seconds(whole), _seconds(opacus)) for _ in range(_REPEATS)]
    mine, uncached, hooks = (list(column) for column in zip(*turns, strict=True))
    return [
        _row("cached_prefix_step_vs_whole_model/demo", mine, uncached, _CACHED_LIMIT),
        _row("fused_step_vs_opacus/demo", mine, hooks, _OPACUS_LIMIT),
    ]


def _row(name: str, ours: Sequence[float], reference: Sequence[float], limit: float) -> Row:
    ratio = statistics.median(first / second for first, second in zip(ours, reference, strict=True))
    return compared("main", name, statistics.median(ours), statistics.median(reference), ratio=ratio, limit=limit)


@contextmanager
def _one_step(*overrides: str) -> Iterator[Callable[[], None]]:
    job_file = Path(str(files("fedethos.simulations.jobs") / "adult.yaml"))
    small = ["training.local_steps=1", "data.limit=0.02", "simulation.sites=1", "simulation.partition.kind=iid", "federation.min_sites=1"]
    job = load_job(job_file, [*small, *overrides])
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_federation(
            job, base=job_file.parent, scratch=Path(scratch), ledger=Path(scratch) / "ledger.sqlite", observer=Silent()
        ) as federation,
    ):
        node = federation.nodes[1]
        examples = node.examples["train"]
        plan = StepPlan(sampling_rate=job.training.batch_size / examples.units, expected_batch_size=64.0, noise_std=1.0)

        def step() -> None:
            train_round(node.model, examples, job.training, plan, clipping_engine(job, 1.0), lambda number: SeededSource(1, number))

        yield step


def _seconds(step: Callable[[], None]) -> float:
    torch.set_num_threads(1)
    begin = time.process_time()
    step()
    return time.process_time() - begin
