"""The pull towards the base model against plain autograd over whole logits, and what it does in a run."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from fedethos.client.examples import Examples
from fedethos.client.registry import prepare_task
from fedethos.client.task import Task
from fedethos.client.trainer import Pull, StepPlan, train_round
from fedethos.data.prompts import PromptTable
from fedethos.documents import load_job
from fedethos.fairness.losses import example_loss
from fedethos.job import Job
from fedethos.messages import Arrays
from fedethos.models.adapter import named_adapter_parameters
from fedethos.models.language import without_adapter
from fedethos.models.own_texts import own_texts
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.randomness import SeededSource
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import simulate
from fedethos.simulations.evaluate import open_released
from fedethos.simulations.virtual_sites import site_records

Writer = Callable[..., Path]
ANCHOR = {"kl_coef": 0.7, "texts": 6, "tokens": 9, "batch_size": 4}
OPEN: dict[str, object] = {"mode": "none", "epsilon": None}


def shaken(job: Job, resources: ExitStack, scratch: Path) -> Task:
    task = prepare_task(job, base=Path(), scratch=scratch, resources=resources)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in named_adapter_parameters(adapted(task)).values():
            parameter.normal_(0.0, 0.2)
    return task


def adapted(task: Task) -> PeftModel:
    assert isinstance(task.model.model, PeftModel)
    return task.model.model


def texts_of(model: PeftModel, job: Job, seed: int | None = None) -> PromptTable:
    seed = job.simulation.seed if seed is None else seed
    return own_texts(model, count=6, tokens=9, pad_token_id=0, seed=seed)


def whole_divergence(model: PeftModel, texts: Tensor) -> Tensor:
    """KL(base || model) of each predicted token, from all logits of the library's own forward."""
    with torch.no_grad(), without_adapter(model):
        base = Categorical(logits=model(input_ids=texts, use_cache=False).logits[:, :-1].float())
    return kl_divergence(base, Categorical(logits=model(input_ids=texts, use_cache=False).logits[:, :-1].float()))


@pytest.mark.parametrize("layers", [None, [1]], ids=["whole", "cached prefix"])
def test_its_gradient_is_that_of_the_mean_divergence_over_whole_logits(
    layers: list[int] | None, language_job: Writer, tmp_path: Path
) -> None:
    job = load_job(language_job("causal-lm", training={"anchor": ANCHOR}, lora={"layers_to_transform": layers}))
    with ExitStack() as resources:
        task = shaken(job, resources, tmp_path)
        model, parameters = adapted(task), task.model.parameters
        texts = torch.from_numpy(texts_of(model, job).tokens.reshape(6, 9)).long()
        assert task.anchor is not None
        for step, rows in ((0, slice(0, 4)), (1, slice(4, 6)), (2, slice(0, 4))):
            divergence = whole_divergence(model, texts[rows]).mean()
            assert divergence.item() > 1e-3, "the adapter changes something, or the test shows nothing"
            truth = torch.autograd.grad(0.7 * divergence, list(parameters.values()))
            for found, wanted in zip(task.anchor.gradient(step, parameters).values(), truth, strict=True):
                assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-6)


def test_the_base_itself_is_not_pulled(language_job: Writer, tmp_path: Path) -> None:
    job = load_job(language_job("causal-lm", training={"anchor": ANCHOR}))
    with ExitStack() as resources:
        task = prepare_task(job, base=Path(), scratch=tmp_path, resources=resources)
        assert task.anchor is not None
        assert all(float(part.abs().max()) < 1e-7 for part in task.anchor.gradient(0, task.model.parameters).values())


def test_a_model_writes_the_same_texts_from_a_seed_whatever_its_adapter_and_the_process_drew_before(
    language_job: Writer, tmp_path: Path
) -> None:
    job = load_job(language_job("causal-lm"))
    with ExitStack() as resources:
        model = adapted(prepare_task(job, base=Path(), scratch=tmp_path, resources=resources))
        first = texts_of(model, job).tokens
        torch.manual_seed(99)
        before = torch.random.get_rng_state()
        again = texts_of(adapted(shaken(job, resources, tmp_path)), job).tokens
        torch.manual_seed(99)
        assert np.array_equal(first, again)
        texts_of(model, job)
        assert torch.equal(torch.random.get_rng_state(), before), "the process's own generator is left alone"
        assert not np.array_equal(first, texts_of(model, job, seed=4).tokens)


def test_it_draws_from_all_words_whatever_the_models_own_settings_say(language_job: Writer, tmp_path: Path) -> None:
    job = load_job(language_job("causal-lm"))
    with ExitStack() as resources:
        model = adapted(prepare_task(job, base=Path(), scratch=tmp_path, resources=resources))
        free = texts_of(model, job).tokens
        model.get_base_model().generation_config.update(top_k=1, top_p=0.1, temperature=0.01, do_sample=False)
        assert np.array_equal(free, texts_of(model, job).tokens)


def step_of(job: Job, task: Task, base: Path, pull: Pull | None) -> Arrays:
    """The adapter after a private step with noise."""
    before = task.model.read()
    records = next(iter(site_records(job, base).values()))["train"]
    plan = StepPlan(sampling_rate=0.5, expected_batch_size=8.0, noise_std=0.1)
    engine = FusedEngine(0.1)
    examples = Examples.of(records, job, task.inputs(records))
    train_round(task.model, examples, job.training, plan, engine, lambda step: SeededSource(5, step), example_loss(job), pull=pull)
    after = task.model.read()
    task.model.load(before)
    return after


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_pull_comes_after_clipping_and_noise_and_changes_neither(dropout: float, language_job: Writer, tmp_path: Path) -> None:
    sgd = {"local_steps": 1, "optimizer": "sgd", "learning_rate": 0.5, "anchor": ANCHOR}
    path = language_job("causal-lm", training=sgd, lora={"lora_dropout": dropout})
    job = load_job(path)
    with ExitStack() as resources:
        task = shaken(job, resources, tmp_path)
        anchor = task.anchor
        assert anchor is not None
        gradient = anchor.gradient(0, task.model.parameters)
        without = step_of(job, task, path.parent, None)
        pulled = step_of(job, task, path.parent, lambda step: anchor.gradient(step, task.model.parameters))
    for name, value in pulled.items():
        assert np.allclose(value - without[name], -0.5 * gradient[name].numpy(), rtol=1e-3, atol=1e-6)


def divergence_after(job_file: Path, out: Path) -> float:
    job = load_job(job_file)
    simulate(job, out, base=job_file.parent, observer=Silent())
    with open_released(RunFolder(out), Silent()) as released:
        model = adapted(released.task)
        fresh = texts_of(model, job, seed=77)  # texts that held nothing
        with torch.no_grad():
            return float(whole_divergence(model, torch.from_numpy(fresh.tokens.reshape(6, 9)).long()).mean())


@pytest.mark.parametrize("privacy", [OPEN, {}], ids=["open", "private"])
def test_a_run_stays_nearer_to_the_base_on_other_texts(privacy: dict[str, object], language_job: Writer, tmp_path: Path) -> None:
    training: dict[str, object] = {"local_steps": 6, "learning_rate": 0.02}
    free = divergence_after(language_job("causal-lm", training=training, privacy=privacy), tmp_path / "free")
    held = {**training, "anchor": {"kl_coef": 20.0, "texts": 64, "tokens": 12}}
    assert divergence_after(language_job("causal-lm", training=held, privacy=privacy), tmp_path / "held") < 0.5 * free
