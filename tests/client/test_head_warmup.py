"""In a warm-up round nothing but the head moves, takes noise, or counts in the clip."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

from fedethos.client.examples import Examples, TokenInputs
from fedethos.client.head_warmup import head_first
from fedethos.client.model import NodeModel
from fedethos.client.trainer import StepPlan, train_round
from fedethos.data.tokens import TokenTable
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.job import Lora, Training
from fedethos.models.adapter import attach_lora
from fedethos.privacy.engine import ClippingEngine
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.randomness import SeededSource
from fedethos.progress import Silent
from fedethos.simulations.engine import resume, simulate

RECORDS = 12
BOUND = 0.05
ENGINES = [FusedEngine, OpacusEngine]


def small_model(*, freeze_a: bool = False) -> NodeModel:
    """A BERT with one layer and adapters whose B is not zero, so that every tensor has a gradient."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=50, num_labels=2)
    adapted = attach_lora(BertForSequenceClassification(config), Lora(r=4, lora_alpha=8), seed=1, freeze_a=freeze_a)
    model = NodeModel(adapted, adapted, "0" * 64)
    rng = np.random.default_rng(1)
    model.load({name: value + rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in model.read().items()})
    return model


def examples() -> Examples:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, RECORDS)
    table = TokenTable(rng.integers(1, 50, lengths.sum(), dtype=np.int32), np.r_[0, np.cumsum(lengths)], 0)
    return Examples(TokenInputs(table), rng.integers(0, 2, RECORDS), {}, np.arange(RECORDS))


def moved_in(round: int, model: NodeModel, plan: StepPlan, engine: ClippingEngine, *, steps: int = 1) -> dict[str, np.ndarray]:
    training = Training(local_steps=steps, batch_size=4, optimizer="sgd", learning_rate=1.0)
    before = model.read()
    with model.training(head_first(model.exchanged_names, round, warmup_rounds=2)):
        train_round(model, examples(), training, plan, engine, lambda step: SeededSource(5, "site", round, step))
    after = model.read()
    return {name: after[name] - before[name] for name in before}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("freeze_a", [False, True])
def test_only_the_head_moves_until_the_warm_up_is_over(engine: type[ClippingEngine], freeze_a: bool) -> None:
    model = small_model(freeze_a=freeze_a)
    plan = StepPlan(sampling_rate=0.5, expected_batch_size=4.0, noise_std=0.3)
    for round, everything in ((1, False), (2, False), (3, True), (1, False)):
        moved = moved_in(round, model, plan, engine(BOUND), steps=3)
        assert {name for name, change in moved.items() if change.any()} == (set(moved) if everything else model.head_names())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_clip_is_over_the_head_alone(engine: type[ClippingEngine]) -> None:
    """A plain loop: each record's gradient of the head, scaled to the bound by its own norm, summed."""
    model = small_model()
    head = {name: model.parameters[name] for name in sorted(model.head_names())}
    data = examples()
    sums = {name: np.zeros(tuple(parameter.shape)) for name, parameter in head.items()}
    for record in range(RECORDS):
        loss = cross_entropy(model.logits(data.inputs.batch(np.array([record]))), torch.tensor([data.label[record]]))
        gradients = [gradient.double().numpy() for gradient in torch.autograd.grad(loss, list(head.values()))]
        norm = np.sqrt(sum(float(np.square(gradient).sum()) for gradient in gradients))
        assert norm > BOUND  # the bound binds for everybody
        for name, gradient in zip(head, gradients, strict=True):
            sums[name] += gradient * BOUND / norm
    moved = moved_in(1, model, StepPlan(sampling_rate=1.0, expected_batch_size=4.0, noise_std=0.0), engine(BOUND))
    for name, total in sums.items():
        np.testing.assert_allclose(moved[name], -total / 4.0, rtol=1e-4, atol=1e-7)


def test_noise_goes_to_the_head_alone() -> None:
    """Nobody is sampled: the step is the source's first normal numbers, as many as the head has coordinates."""
    model = small_model()
    moved = moved_in(1, model, StepPlan(sampling_rate=0.0, expected_batch_size=4.0, noise_std=0.6), FusedEngine(BOUND))
    source = SeededSource(5, "site", 1, 0)
    source.uniform(RECORDS)  # the sample
    source.uniform(1)  # the dropout's seed
    head = sorted(model.head_names())
    drawn = source.normal(sum(moved[name].size for name in head)) * 0.6 / 4.0
    np.testing.assert_allclose(np.concatenate([moved[name].ravel() for name in head]), -drawn, rtol=1e-4, atol=1e-6)


def test_a_warm_up_round_that_fails_leaves_the_adapter_trainable() -> None:
    model = small_model()
    names = head_first(model.exchanged_names, 1, warmup_rounds=1)
    with pytest.raises(RuntimeError), model.training(names):
        assert set(model.parameters) == model.head_names()
        raise RuntimeError
    assert all(parameter.requires_grad for parameter in model.parameters.values())
    assert set(model.parameters) == set(model.exchanged_names)


def run(job_file: Path, out: Path, **training: object) -> dict[str, object]:
    overrides = [f"training.{key}={value}" for key, value in training.items()]
    simulate(load_job(job_file, overrides), out, base=job_file.parent, observer=Silent())
    return json.loads((out / "result.json").read_text())


def test_the_recipe_costs_no_epsilon_and_resumes_to_the_same_numbers(write_job, tmp_path: Path) -> None:
    """Stopped after round 1, inside the warm-up of two rounds, and continued."""
    recipe = {"head_warmup_rounds": 2, "iterate_average": "tail"}
    job_file = write_job()
    plain = run(job_file, tmp_path / "plain")
    whole = run(job_file, tmp_path / "whole", **recipe)
    assert whole["privacy"] == plain["privacy"]

    class Stop(Silent):
        def round_started(self, round: int, rounds: int, sites: list[str]) -> None:
            if round == 2:
                raise KeyboardInterrupt

    job = load_job(job_file, [f"training.{key}={value}" for key, value in recipe.items()])
    with pytest.raises(KeyboardInterrupt):
        simulate(job, tmp_path / "cut", base=job_file.parent, observer=Stop())
    resume(tmp_path / "cut", observer=Silent())
    cut = json.loads((tmp_path / "cut" / "result.json").read_text())
    adapters = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert adapters[0] == adapters[1]
    assert {key: value for key, value in cut.items() if key != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


def test_a_warm_up_longer_than_the_job_is_refused(write_job) -> None:
    with pytest.raises(FedethosError) as refused:
        load_job(write_job(training={"head_warmup_rounds": 4}))
    assert refused.value.code == "CFG-250"


@pytest.mark.parametrize(
    ("sections", "rounds"),
    [
        ({"federation": {"rounds": 5}}, 2),
        ({"federation": {"rounds": 4}}, 0),
        ({"federation": {"rounds": 5}, "privacy": {"mode": "none", "epsilon": None}}, 0),
        ({"federation": {"rounds": 5}, "training": {"head_warmup_rounds": 0}}, 0),
    ],
)
def test_a_private_job_of_five_rounds_warms_its_head_up_unless_told_otherwise(write_job, sections, rounds):
    assert load_job(write_job(**sections)).head_warmup_rounds == rounds


@pytest.mark.parametrize(
    ("sections", "centered"),
    [
        ({}, True),
        ({"training": {"center_head": "off"}}, False),
        ({"training": {"head_warmup_rounds": 0}}, False),
        ({"privacy": {"mode": "none", "epsilon": None}}, False),
        ({"federation": {"rounds": 5, "sites": {}}}, False),
        ({"federation": {"rounds": 5, "sites": {"site-1": {"declared_size": 300}, "site-2": {}}}}, False),
        ({"federation": {"rounds": 5, "sites": {"site-1": {"declared_size": 300}, "site-2": {"declared_size": 1001}}}}, False),
    ],
)
def test_the_head_is_centred_where_every_site_declares_few_people(write_job, sections, centered):
    few = {"rounds": 5, "sites": {"site-1": {"declared_size": 300}, "site-2": {"declared_size": 1000}}}
    assert load_job(write_job(**{"federation": few, **sections})).center_head is centered
