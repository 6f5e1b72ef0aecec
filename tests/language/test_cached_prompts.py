"""Cached lower layers of a language model: each task trains and predicts as with the whole model, and nothing stays on the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from fedethos.client.language_model import PromptInputs
from fedethos.client.registry import prepare_task
from fedethos.client.task import Task
from fedethos.data.records import Records
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.fairness.losses import example_loss
from fedethos.models import language_prefix
from fedethos.models.adapter import named_adapter_parameters
from fedethos.models.language_prefix import CachedPrompts
from fedethos.simulations.virtual_sites import read_records

Writer = Callable[..., Path]
TASKS = ("causal-lm", "multiple-choice", "preference")
UPPER: dict[str, object] = {"layers_to_transform": [1]}


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def shaken(job_file: Path, scratch: Path, resources: ExitStack) -> tuple[Task, Records]:
    job = load_job(job_file)
    task = prepare_task(job, base=Path(), scratch=scratch, resources=resources)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in named_adapter_parameters(task.model.model).values():  # type: ignore[arg-type]
            parameter.normal_(0.0, 0.1)
    return task, read_records(job, Path()).take(np.arange(9))


def losses_and_gradients(task: Task, records: Records, job_file: Path) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    rows = np.random.default_rng(1).permutation(9)
    inputs = task.inputs(records)
    outputs = task.model.outputs(inputs.batch(rows))
    losses = example_loss(load_job(job_file))(outputs, torch.from_numpy(records.label[rows]), torch.arange(9))
    return outputs.detach(), losses.detach(), list(torch.autograd.grad(losses.sum(), list(task.model.parameters.values())))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", TASKS)
def test_same_losses_and_gradients(task: str, dtype: str, language_job: Writer, tmp_path: Path, resources: ExitStack) -> None:
    found = []
    for cache in ("on", "off"):
        job_file = language_job(task, lora=UPPER, training={"cache_frozen_prefix": cache}, model={"dtype": dtype})
        prepared, records = shaken(job_file, tmp_path, resources)
        inputs = prepared.inputs(records)
        assert isinstance(inputs, PromptInputs)
        assert isinstance(inputs.table, CachedPrompts) == (cache == "on")
        found.append(losses_and_gradients(prepared, records, job_file))
    (outputs, losses, gradients), (whole_outputs, whole_losses, whole_gradients) = found
    torch.testing.assert_close(outputs, whole_outputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses, whole_losses, rtol=1e-4, atol=1e-4)
    for gradient, whole in zip(gradients, whole_gradients, strict=True):
        assert whole.any()
        torch.testing.assert_close(gradient, whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))


def test_auto_caches_where_a_layer_lies_below_and_on_needs_one(language_job: Writer, tmp_path: Path, resources: ExitStack) -> None:
    prepared, records = shaken(language_job("multiple-choice", lora=UPPER), tmp_path, resources)
    assert "inputs_embeds" in prepared.inputs(records).batch(np.arange(2))
    prepared, records = shaken(language_job("multiple-choice"), tmp_path, resources)
    assert "input_ids" in prepared.inputs(records).batch(np.arange(2))
    with pytest.raises(FedethosError, match="MODEL-420"):
        shaken(language_job("multiple-choice", training={"cache_frozen_prefix": "on"}), tmp_path, resources)


def test_nothing_stays_on_the_disk(language_job: Writer, tmp_path: Path, resources: ExitStack) -> None:
    scratch = tmp_path / "scratch"
    prepared, records = shaken(language_job("multiple-choice", lora=UPPER), scratch, resources)
    prepared.inputs(records)
    assert list(scratch.iterdir()) == []


def test_a_cut_that_computes_something_else_is_refused(
    language_job: Writer, tmp_path: Path, resources: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, records = shaken(language_job("multiple-choice", lora=UPPER), tmp_path, resources)
    monkeypatch.setattr(language_prefix, "causal_tail", lambda model: model)
    with pytest.raises(FedethosError, match="MODEL-464"):
        prepared.inputs(records)


def test_values_beyond_float16_are_refused(language_job: Writer, tmp_path: Path, resources: ExitStack) -> None:
    job_file = language_job("multiple-choice", lora=UPPER, training={"cache_dtype": "float16"})
    prepared, records = shaken(job_file, tmp_path, resources)
    prepared.inputs(records)
    with torch.no_grad():
        prepared.model.model.get_input_embeddings().weight.mul_(1e8)  # type: ignore[operator,union-attr]
    with pytest.raises(FedethosError, match="MODEL-463"):
        prepared.inputs(records)
