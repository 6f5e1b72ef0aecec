"""What the frozen prefix saves: one private step of the demo's job from cached hidden states, beside the same step from tokens.

Both steps take turns in one process on one thread, on the real MiniLM and sentences of the builtin records.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import torch

from fedethos.client.trainer import StepPlan, train_round
from fedethos.documents import load_job
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.randomness import SeededSource
from fedethos.progress import Silent
from fedethos.simulations.benchmarks.row import Row
from fedethos.simulations.virtual_sites import open_federation

_LIMIT = 0.4  # one of six layers is adapted; the head, clipping and noise do not shrink
_REPEATS = 7


def rows() -> list[Row]:
    """Seconds per step, cached over uncached."""
    with _one_step("auto") as cached, _one_step("off") as plain:
        cached(), plain()
        pairs = [(_seconds(cached), _seconds(plain)) for _ in range(_REPEATS)]
    ratio = statistics.median(ours / reference for ours, reference in pairs)
    ours, reference = (statistics.median(column) for column in zip(*pairs, strict=True))
    name = "cached_prefix_step_vs_whole_model/demo"
    return [Row(part="main", name=name, ours=ours, reference=reference, ratio=ratio, limit=_LIMIT, holds=ratio <= _LIMIT)]


@contextmanager
def _one_step(cache: str) -> Iterator[Callable[[], None]]:
    job_file = Path(str(files("fedethos.simulations.jobs") / "adult.yaml"))
    small = [f"training.cache_frozen_prefix={cache}", "training.local_steps=1", "data.limit=0.02", "simulation.sites=1"]
    job = load_job(job_file, [*small, "simulation.partition.kind=iid", "federation.min_sites=1"])
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
            train_round(node.model, examples, job.training, plan, OpacusEngine(1.0), lambda number: SeededSource(1, number))

        yield step


def _seconds(step: Callable[[], None]) -> float:
    torch.set_num_threads(1)
    begin = time.process_time()
    step()
    return time.process_time() - begin
