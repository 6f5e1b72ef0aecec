"""One private step of a language model: bounded by the clipping norm, whatever else is in the batch. Each task, both engines, bfloat16."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from fedethos.client.node import clipping_engine
from fedethos.client.registry import prepare_task
from fedethos.client.task import Task
from fedethos.data.answers import Answers
from fedethos.data.records import Records
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.fairness.losses import example_loss
from fedethos.job import Job
from fedethos.models.adapter import named_adapter_parameters
from fedethos.privacy.engine import Gradients
from fedethos.privacy.self_check import check_engine

Writer = Callable[..., Path]
TASKS = ("causal-lm", "multiple-choice", "preference")
BOUND = 0.1


def records(options: int, count: int = 6) -> Records:
    answers: list[Answers] = [tuple(("nurse " * (1 + (row + option) % 3)).strip() for option in range(options)) for row in range(count)]
    return Records(
        text=tuple("Who was late " + "today " * row + "?" for row in range(count)),
        label=np.arange(count) % (options if options == 3 else 1),
        groups={},
        unit=np.arange(count),
        identity=np.zeros((count, 32), dtype=np.uint8),
        answers=tuple(answers),
    )


def prepared(job: Job, base: Path = Path()) -> Task:
    return prepare_task(job, base=base, scratch=Path(), resources=ExitStack())


def shaken(job: Job, base: Path) -> Task:
    task = prepared(job, base)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in named_adapter_parameters(task.model.model).values():  # type: ignore[arg-type]
            parameter.normal_(0.0, 0.1)
    return task


def clipped(job: Job, task: Task, rows: list[int], bound: float) -> Gradients:
    inputs = task.inputs(records({"causal-lm": 1, "preference": 2}.get(job.task, 3)))
    engine = clipping_engine(job, bound)
    engine.attach(task.model.forward, task.model.parameters)
    try:
        outputs = task.model.outputs(inputs.batch(np.array(rows)))
        labels = torch.tensor([row % 3 if job.task == "multiple-choice" else 0 for row in rows])
        engine.backward(example_loss(job)(outputs, labels, torch.arange(len(rows))), torch.tensor(rows))
        return engine.clipped_sum()
    finally:
        engine.detach()


def norm(gradients: Gradients) -> float:
    return float(torch.stack([part.square().sum() for part in gradients.values()]).sum().sqrt())


@pytest.mark.parametrize("engine", ["fused", "opacus"])
@pytest.mark.parametrize("task_name", TASKS)
def test_a_record_adds_at_most_the_bound_and_the_same_in_every_batch(task_name: str, engine: str, language_job: Writer) -> None:
    job = load_job(language_job(task_name, privacy={"engine": engine}))
    task = shaken(job, Path())
    everybody, others = clipped(job, task, [0, 1, 2, 3], BOUND), clipped(job, task, [0, 1, 3], BOUND)
    alone = clipped(job, task, [2], BOUND)
    difference = {name: everybody[name] - others[name] for name in everybody}
    assert norm(alone) <= BOUND
    assert norm(alone) >= 0.99 * BOUND, "it is clipped, or the test shows nothing"
    assert norm({name: difference[name] - alone[name] for name in alone}) <= 1e-4 * BOUND


@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_engine_passes_its_self_check(task_name: str, dtype: str, language_job: Writer) -> None:
    job = load_job(language_job(task_name, model={"dtype": dtype}))
    task = prepared(job)
    model = task.model
    assert {parameter.dtype for parameter in model.parameters.values()} == {torch.float32}, "adapters are float32"
    frozen = {parameter.dtype for parameter in model.model.parameters() if not parameter.requires_grad}
    assert (torch.bfloat16 in frozen) == (dtype == "bfloat16")
    check_engine(lambda bound: clipping_engine(job, bound), model.model, model.parameters, task.synthetic_loss)


def test_a_base_model_of_half_precision_trains(language_job: Writer) -> None:
    job = load_job(language_job("multiple-choice", model={"dtype": "bfloat16"}))
    gradients = clipped(job, shaken(job, Path()), [0, 1, 2], 1e6)
    exact = clipped(job32 := load_job(language_job("multiple-choice")), shaken(job32, Path()), [0, 1, 2], 1e6)
    assert norm({name: gradients[name] - exact[name] for name in exact}) < 0.1 * norm(exact)


def test_the_loss_is_the_response_alone_as_transformers_computes_it(language_job: Writer) -> None:
    """Each record in a batch of its own, with -100 over its prompt: there the library's mean over the batch is the mean over the record."""
    job = load_job(language_job("causal-lm"))
    task = prepared(job)
    inputs = task.inputs(records(1))
    with torch.no_grad():
        outputs = task.model.outputs(inputs.batch(np.arange(6)))
        losses = example_loss(job)(outputs, torch.zeros(6, dtype=torch.int64), torch.arange(6))
        for row in range(6):
            batch = inputs.batch(np.array([row]))
            labels = batch["input_ids"].clone()
            labels[:, : -int(batch["answer_tokens"])] = -100
            assert losses[row].item() == pytest.approx(task.model.model(input_ids=batch["input_ids"], labels=labels).loss.item(), abs=1e-4)


def test_four_bits_need_a_gpu_and_templates_must_exist(language_job: Writer, tmp_path: Path, tiny_language_base: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(FedethosError, match="MODEL-485"):
            prepared(load_job(language_job("causal-lm", model={"load_in_4bit": True})))
    with pytest.raises(FedethosError, match="MODEL-421"):
        prepared(load_job(language_job("causal-lm", model={"max_length": 512})))
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_language_base.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FedethosError, match="MODEL-481"):
        prepared(load_job(language_job("causal-lm", model={"path": str(bare), "chat_template": "on"})))
    settings = bare / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"eos_token"', '"other"').replace('"pad_token"', '"more"'))
    with pytest.raises(FedethosError, match="DATA-141"):
        prepared(load_job(language_job("causal-lm", model={"path": str(bare)})))
