"""What a language model's training holds in memory: few logits, activations only once if the job says so, 4 bits on a GPU."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from fedethos.client.node import clipping_engine
from fedethos.client.registry import prepare_task
from fedethos.client.task import Task
from fedethos.data.records import Records
from fedethos.documents import load_job
from fedethos.fairness.losses import example_loss
from fedethos.job import Job
from fedethos.models.adapter import named_adapter_parameters
from fedethos.privacy.engine import Gradients
from fedethos.privacy.self_check import check_engine
from fedethos.token_loss import TOKENS_AT_ONCE

Writer = Callable[..., Path]
ROWS = 12


@pytest.fixture
def open_task(tmp_path: Path) -> Iterator[Callable[[Job], Task]]:
    with ExitStack() as resources:
        yield lambda job: prepare_task(job, base=tmp_path, scratch=tmp_path, resources=resources)


def clipped(job: Job, task: Task) -> Gradients:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in named_adapter_parameters(task.model.model).values():  # type: ignore[arg-type]
            parameter.normal_(0.0, 0.1)
    records = Records(
        text=tuple("Who was late " + "today " * row + "?" for row in range(ROWS)),
        label=np.zeros(ROWS, dtype=np.int64),
        groups={},
        unit=np.arange(ROWS),
        identity=np.zeros((ROWS, 32), dtype=np.uint8),
        answers=tuple(("the nurse and the doctor " * (1 + row % 3),) for row in range(ROWS)),
    )
    engine = clipping_engine(job, 0.1)
    engine.attach(task.model.forward, task.model.parameters)
    task.model.forward.train()
    try:
        outputs = task.model.outputs(task.inputs(records).batch(np.arange(ROWS)))
        engine.backward(example_loss(job)(outputs, torch.zeros(ROWS, dtype=torch.int64), torch.arange(ROWS)), torch.arange(ROWS))
        return engine.clipped_sum()
    finally:
        task.model.forward.eval()
        engine.detach()


def test_recomputed_activations_change_no_clipped_sum(language_job: Writer, open_task: Callable[[Job], Task]) -> None:
    found, passes = [], []
    for recompute in (False, True):
        job = load_job(language_job("causal-lm", training={"gradient_checkpointing": recompute}, model={"max_length": 256}))
        task = open_task(job)
        calls: list[int] = []
        layer = task.model.model.get_base_model().model.layers[1]  # type: ignore[union-attr,operator]
        layer.self_attn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found.append(clipped(job, task))
        passes.append(len(calls))
    assert passes == [1, 2]
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-6) for name in found[0])


def test_training_holds_the_logits_of_few_tokens(language_job: Writer, open_task: Callable[[Job], Task]) -> None:
    job = load_job(language_job("causal-lm", model={"max_length": 256}))
    task = open_task(job)
    seen: list[int] = []
    output_layer = task.model.model.get_base_model().get_output_embeddings()  # type: ignore[union-attr,operator]
    output_layer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    clipped(job, task)
    assert sum(seen) > TOKENS_AT_ONCE
    assert max(seen) == TOKENS_AT_ONCE


@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("bitsandbytes") is None, reason="4 bits need a GPU and bitsandbytes")
def test_a_base_model_in_four_bits_is_clipped_exactly(language_job: Writer, open_task: Callable[[Job], Task]) -> None:
    job = load_job(language_job("causal-lm", model={"load_in_4bit": True}, privacy={"engine": "opacus"}))
    task = open_task(job)
    check_engine(lambda bound: clipping_engine(job, bound), task.model.model, task.model.parameters, task.synthetic_loss)
    assert {parameter.dtype for parameter in task.model.parameters.values()} == {torch.float32}
