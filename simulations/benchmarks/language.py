"""Language models: what the private step and scoring with shared prompts cost on the real SmolLM2-135M, and what BBQ's job learns.

Times are processor seconds on one thread; ours and the reference take turns in one process, and a ratio is the median of the neighbours'.
What training does is measured where the files are in ``data``: ``bbq.jsonl`` (``fedethos data bbq``), ``neutral.txt``,
``crows_pairs_anonymized.csv`` and ``util_test.csv``; with half of BBQ's questions and one round. Whole: ``bbq.py`` and ``crows_pairs.py``.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

from fedethos.client.registry import prepare_task
from fedethos.client.task import Task
from fedethos.data.prompts import PromptTable
from fedethos.documents import load_job
from fedethos.fairness.losses import example_loss
from fedethos.fairness.suites.bootstrap import Compared, compare
from fedethos.job import Job
from fedethos.losses import IGNORED
from fedethos.models.assets import fetch
from fedethos.models.language import score_answers
from fedethos.privacy.fused import FusedEngine
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.benchmarks import bbq, crows_pairs
from fedethos.simulations.benchmarks.row import Row, alone, compared
from fedethos.simulations.engine import simulate

JOBS = Path(__file__).parents[1] / "jobs"
_REPEATS = 3
_OPTIONS = 3
_EVERYWHERE = ["federation.aggregation=fedavg", "lora.r=8", "lora.target_modules=all-linear", "lora.layers_to_transform=null"]
_FEW = ["data.limit=0.5", "federation.rounds=1"]
_RESPONSES = [  # BBQ's questions and their right answers, as texts to write
    *("task=causal-lm", "data.choices=null", "data.response={column: chosen}", "privacy.mode=none", "privacy.epsilon=null"),
    "data.label={column: null, values: [right], favorable: right}",
    "training={local_steps: 8, batch_size: 16, learning_rate: 2.0e-3, micro_batch_tokens: 2048}",
]

Step = Callable[[], object]


def rows() -> list[Row]:
    """Every figure of this part."""
    torch.set_num_threads(1)
    fetch("smollm2", say=lambda line: print(line, file=sys.stderr))
    job = load_job(JOBS / "bbq-smollm2.yaml", _EVERYWHERE)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as resources:
        task = prepare_task(job, base=JOBS, scratch=Path(scratch), resources=resources)
        found = [private_step(task), scoring(task), a_round(task, job)]
    return [*found, *learning()]


def private_step(task: Task) -> Row:
    """One private step on 8 records of about 100 tokens, against the plain PEFT step with the library's own loss."""
    table = made_up(np.random.default_rng(0), records=8, prompt=90, answer=10, options=1)
    batch, units = table.batch(np.arange(8)), torch.arange(8)
    ours, reference = list(task.model.parameters.values()), list(task.model.parameters.values())
    engine = FusedEngine(1.0)
    optimizers = torch.optim.AdamW(ours, lr=1e-6), torch.optim.AdamW(reference, lr=1e-6)
    labels = batch["input_ids"].clone()
    labels[:, :90] = IGNORED
    model = task.model.model
    if not isinstance(model, PeftModel):
        raise TypeError("no PEFT model")

    def private() -> None:
        engine.attach(task.model.forward, task.model.parameters)
        engine.reset()
        engine.backward(-score_answers(model, **batch).mean[:, 0], units)
        for name, total in engine.clipped_sum().items():
            task.model.parameters[name].grad = ((total + torch.randn_like(total)) / 8).float()
        engine.detach()
        optimizers[0].step()
        optimizers[0].zero_grad()

    def plain() -> None:
        torch.autograd.backward(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss)
        optimizers[1].step()
        optimizers[1].zero_grad()

    return _in_turn("lm_private_step_vs_peft", private, plain, limit=1.0)


def scoring(task: Task) -> Row:
    """Scoring 32 questions with three options each, against one forward pass an option, both in batches of similar length."""
    shared = made_up(np.random.default_rng(1), records=32, prompt=90, answer=6, options=_OPTIONS)
    apart = [_only(shared, option) for option in range(_OPTIONS)]
    model = task.model.model
    if not isinstance(model, PeftModel):
        raise TypeError("no PEFT model")

    def score(tables: list[PromptTable]) -> None:
        with torch.inference_mode():
            for table in tables:
                for start in range(0, len(table), 16):
                    score_answers(model, **table.batch(np.arange(start, start + 16)))

    return _in_turn("lm_scoring_vs_one_pass_an_option", lambda: score([shared]), lambda: score(apart), limit=0.6)


def a_round(task: Task, job: Job) -> Row:
    """Seconds of processor time for one private step of 16 items at each of four sites."""
    table = made_up(np.random.default_rng(2), records=16, prompt=90, answer=4, options=_OPTIONS)
    engine, loss = FusedEngine(1.0), example_loss(job)
    begin = time.process_time()
    engine.attach(task.model.forward, task.model.parameters)
    for _ in range(4):
        engine.reset()
        for start in range(0, 16, 8):
            chosen = np.arange(start, start + 8)
            outputs = task.model.outputs(table.batch(chosen))
            engine.backward(loss(outputs, torch.zeros(8, dtype=torch.int64), torch.arange(8)), torch.from_numpy(chosen))
    engine.detach()
    return alone("lm", "lm_round_of_4_sites_x_16_items_seconds", time.process_time() - begin, limit=60.0)


def learning(data: Path = Path("data")) -> list[Row]:
    """Reduced forms of what ``bbq.py`` and ``crows_pairs.py`` measure, where their files are in ``data``: after training over before."""
    found: list[Row] = []
    table, neutral = data / "bbq.jsonl", data / "neutral.txt"
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in bbq.ROWS.items() if table.is_file() else ():
            out = Path(folder) / name
            scores = bbq.measured([*settings, *_FEW], out, table=table, neutral=neutral if neutral.is_file() else None)
            found.append(_after_over_before(f"lm_bbq_error_reduced/{name}", scores["accuracy"], limit=1.0, error=True))
            if "perplexity" in scores:
                found.append(_after_over_before(f"lm_perplexity_reduced/{name}", scores["perplexity"], limit=1.03))
        if table.is_file():
            found.append(_response_perplexity([*_RESPONSES, *_FEW, f"data.path={table.resolve()}"], Path(folder) / "responses"))
        if all((data / name).is_file() for name in crows_pairs.FILES):
            models = crows_pairs.measured([crows_pairs.PLAIN, "multi-krum"], data, Path(folder), ["federation.rounds=1"])
            ours, plain = models["multi-krum"], models[crows_pairs.PLAIN]
            found.append(_after_over_before("lm_pct_stereotype_reduced/multi-krum", compare(ours, plain, seed=0)[crows_pairs.MEASURE]))
    return found


def _response_perplexity(settings: list[str], out: Path) -> Row:
    simulate(load_job(JOBS / "bbq-smollm2.yaml", settings), out, base=JOBS, observer=Silent())
    result = RunFolder(out).read_result()
    if result.oracle is None or result.oracle.metrics.response_perplexity is None or result.base_response_perplexity is None:
        raise ValueError("the response perplexity is undefined")
    after, before = result.oracle.metrics.response_perplexity, result.base_response_perplexity
    return compared("lm", "lm_response_perplexity_reduced/causal-lm", after, before, limit=1.0)


def _after_over_before(name: str, scores: Compared, *, limit: float | None = None, error: bool = False) -> Row:
    if scores.adapter.value is None or scores.base.value is None:
        raise ValueError(f"{name} is undefined")
    after, before = ((1.0 - one.value if error else one.value) for one in (scores.adapter, scores.base) if one.value is not None)
    return compared("lm", name, after, before, limit=limit)


def made_up(rng: np.random.Generator, *, records: int, prompt: int, answer: int, options: int) -> PromptTable:
    """Records of random tokens, all of the same length."""
    tokens = rng.integers(100, 40_000, records * (prompt + options * answer), dtype=np.int32)
    return PromptTable(tokens, np.full(records, prompt), np.full((records, options), answer), 2)


def _only(table: PromptTable, option: int) -> PromptTable:
    """The same records with one of their answers alone; all answers are of one length."""
    length, answer, prompt = int(table.lengths[0]), int(table.answers[0, option]), int(table.prompt[0])
    grid = table.tokens.reshape(-1, length)
    start = prompt + option * answer
    kept = np.concatenate([grid[:, :prompt], grid[:, start : start + answer]], axis=1)
    return PromptTable(kept.ravel(), table.prompt, table.answers[:, option : option + 1], table.pad_token_id)


def _in_turn(name: str, ours: Step, reference: Step, *, limit: float) -> Row:
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(_REPEATS + 1):
        for kept, step in zip(seconds, (ours, reference), strict=True):
            begin = time.process_time()
            step()
            if turn:
                kept.append(time.process_time() - begin)
    ratio = statistics.median(one / other for one, other in zip(*seconds, strict=True))
    return compared("lm", name, statistics.median(seconds[0]), statistics.median(seconds[1]), ratio=ratio, limit=limit)
