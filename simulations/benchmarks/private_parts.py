"""What else privacy costs besides the step itself: noise, the ledger, padding, and a unit of several records.

One thread; two things that are compared take turns in one process.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from fedethos.caps import Caps
from fedethos.client.examples import micro_batches
from fedethos.data.tokens import tokenize
from fedethos.documents import load_job
from fedethos.job import Job
from fedethos.models.assets import resolve
from fedethos.privacy.events import Allotment, TrainingSteps
from fedethos.privacy.ledger import Ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.ledger_plan import CommittedPlan
from fedethos.privacy.randomness import SecureSource, keyed_generator
from fedethos.simulations.benchmarks.privacy_step import Setting, private_step_of_units
from fedethos.simulations.benchmarks.row import Row, alone, compared
from fedethos.simulations.virtual_sites import site_records

_PART = "privacy"
_NOISE_VALUES = 2_400_000  # what rank 8 on all linears of a 135 M model trains
_REPEATS = 9
_LEDGER_APPENDS = 200
_PLANNINGS = 5
_DEMO_JOB = Path(str(files("fedethos.simulations.jobs") / "adult.yaml"))


def rows() -> list[Row]:
    """Secure noise, ledger append, planning, padding of the demo's records, a person of four records."""
    torch.set_num_threads(1)
    return [_secure_noise(), _ledger_append(), _planning(), _padding(), _person_unit()]


def _secure_noise() -> Row:
    """Float64 normal numbers from AES in counter mode beside ``torch.randn`` as it is, float32 from Mersenne Twister."""
    secure, plain = partial(SecureSource().normal, _NOISE_VALUES), partial(torch.randn, _NOISE_VALUES)
    return _taking_turns("secure_noise_vs_torch_randn/2.4M", secure, plain, limit=4.0)


def _person_unit() -> Row:
    """Records in units of four beside the same records as units of one; the limit allows 5 %."""
    setting = Setting("encoder", "encoder", batch=32)
    of_four, of_one = (private_step_of_units(setting, rows_per_unit=rows) for rows in (4, 1))
    return _taking_turns("person_unit_of_4_rows_vs_4_records/encoder_r8", of_four, of_one, limit=1.05)


def _taking_turns(name: str, ours: Callable[[], object], reference: Callable[[], object], *, limit: float) -> Row:
    ours(), reference()
    pairs = [(_processor_seconds(ours), _processor_seconds(reference)) for _ in range(_REPEATS)]
    ratio = statistics.median(first / second for first, second in pairs)
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return compared(_PART, name, medians[0], medians[1], ratio=ratio, limit=limit)


def _processor_seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _ledger_append() -> Row:
    """Median milliseconds, by the clock, until a reserved round is on the disk: that of the folder it runs in."""
    with _open_plan() as plan:
        milliseconds = []
        for number in range(_LEDGER_APPENDS):
            begin = time.perf_counter()
            plan.reserve("train", number)
            milliseconds.append(1000 * (time.perf_counter() - begin))
    return alone(_PART, "ledger_append_ms", statistics.median(milliseconds), limit=5.0)


def _planning() -> Row:
    """Median seconds, by the clock, of ``fedethos privacy plan`` for the demo's job, the start of Python included."""
    command = [str(Path(sys.executable).with_name("fedethos")), "privacy", "plan", str(_DEMO_JOB), "--size", "1500"]
    seconds = []
    for _ in range(_PLANNINGS):
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        seconds.append(time.perf_counter() - begin)
    return alone(_PART, "privacy_plan_seconds", statistics.median(seconds), limit=2.0)


@contextmanager
def _open_plan() -> Iterator[CommittedPlan]:
    steps = TrainingSteps(noise_multiplier=5.0, sampling_rate=0.01, steps=1)
    caps = Caps(lifetime_epsilon=50.0, per_job_epsilon=50.0, rounds=_LEDGER_APPENDS)
    with tempfile.TemporaryDirectory(dir=".") as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        ledger.open_account("bench", caps=caps, unit="record", adjacency="add-remove", simulated=True)
        yield ledger.commit(
            SpendingPlan(
                account="bench",
                job_sha256="0" * 64,
                run="bench",
                unit="record",
                adjacency="add-remove",
                epsilon=50.0,
                delta=1e-5,
                allotments=(Allotment(purpose="train", event=steps, times=_LEDGER_APPENDS),),
                seeded=False,
            )
        )


def _padding() -> Row:
    """Padded over true tokens in one expected epoch of the demo's first site: Poisson batches, sorted by length, cut by token budget."""
    job = load_job(_DEMO_JOB)
    records = next(iter(site_records(job, _DEMO_JOB.parent).values()))["train"]
    tokenizer = AutoTokenizer.from_pretrained(resolve(job.model.path, base=_DEMO_JOB.parent), local_files_only=True)
    lengths = tokenize(records.text, tokenizer, job.model.max_length).lengths
    padded = true = 0
    for batch in _epoch(job, records.unit, lengths):
        padded += len(batch) * int(lengths[batch].max())
        true += int(lengths[batch].sum())
    return compared(_PART, "padded_vs_true_tokens/adult_epoch", padded, true, limit=1.5)


def _epoch(job: Job, unit: np.ndarray, lengths: np.ndarray) -> Iterator[np.ndarray]:
    generator, size = keyed_generator(job.simulation.seed, "padding"), len(unit)
    for _ in range(-(-size // job.training.batch_size)):
        rows = np.flatnonzero(generator.random(size) < job.training.batch_size / size)
        yield from micro_batches(rows, unit, lengths, job.training.micro_batch_tokens)
