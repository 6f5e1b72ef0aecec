"""Adaptive clipping inside the trainer: what the norm and the noise become, step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from fedethos.client.examples import Examples, TokenInputs
from fedethos.client.model import NodeModel
from fedethos.client.trainer import Pull, StepPlan, train_round
from fedethos.data.tokens import TokenTable
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.job import Lora, Training
from fedethos.job_clipping import AdaptiveClipping
from fedethos.models.adapter import attach_lora
from fedethos.privacy.engine import ClippingEngine
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.planner import allotments
from fedethos.privacy.randomness import SeededSource

RECORDS, EXPECTED = 12, 4.0
ADAPTIVE = AdaptiveClipping(clipbound_learning_rate=0.3, min_clipbound=1e-6, max_clipbound=1e6, unclipped_num_std=2.0)


@pytest.fixture(scope="module")
def model() -> NodeModel:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=50, num_labels=2)
    adapted = attach_lora(BertForSequenceClassification(config), Lora(r=8, lora_alpha=16), seed=1, freeze_a=True)
    return NodeModel(adapted, adapted, "0" * 64)


def examples() -> Examples:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, RECORDS)
    table = TokenTable(rng.integers(1, 50, lengths.sum(), dtype=np.int32), np.r_[0, np.cumsum(lengths)], 0)
    return Examples(TokenInputs(table), rng.integers(0, 2, RECORDS), {}, np.arange(RECORDS))


class NoCountNoise(SeededSource):
    def normal(self, count: int) -> np.ndarray:
        return np.zeros(count)


def moved(
    model: NodeModel, plan: StepPlan, engine: ClippingEngine, *, steps: int = 1, source: type = SeededSource, pull: Pull | None = None
) -> np.ndarray:
    """What a round took from the adapter, which is put back."""
    training = Training(local_steps=steps, optimizer="sgd", learning_rate=1.0)
    before = model.read()
    train_round(model, examples(), training, plan, engine, lambda step: source(5, step), pull=pull)
    after = model.read()
    model.load(before)
    return np.concatenate([(after[name] - before[name]).ravel() for name in sorted(before)])


@pytest.mark.parametrize("engine", [FusedEngine, OpacusEngine])
def test_the_count_is_divided_by_the_expected_batch(model: NodeModel, engine: type) -> None:
    """All twelve are sampled and below C: b is 1/2 + 6/4 by the public size of 4, and would be 1 by the real one."""
    plan = StepPlan(sampling_rate=1.0, expected_batch_size=EXPECTED, noise_std=0.0, adaptive=ADAPTIVE)
    clipping = engine(1e5)
    moved(model, plan, clipping, source=NoCountNoise)
    assert clipping.max_grad_norm == pytest.approx(1e5 * math.exp(-0.3 * (0.5 + 6 / 4 - 0.5)), rel=1e-9)
    clipping = engine(1e-5)  # none is below
    moved(model, plan, clipping, source=NoCountNoise)
    assert clipping.max_grad_norm == pytest.approx(1e-5 * math.exp(-0.3 * (0.5 - 6 / 4 - 0.5)), rel=1e-9)


def test_the_count_is_noised(model: NodeModel) -> None:
    """With nobody sampled, log C walks by η·N(0, σ_b²)/batch a step."""
    plan = StepPlan(sampling_rate=0.0, expected_batch_size=EXPECTED, noise_std=0.0, adaptive=ADAPTIVE)
    walked = []
    for seed in range(60):
        engine = FusedEngine(1.0)
        train_round(
            model, examples(), Training(local_steps=4, optimizer="sgd"), plan, engine, lambda step, seed=seed: SeededSource(seed, step)
        )
        walked.append(math.log(engine.max_grad_norm))
    assert np.std(walked) == pytest.approx(math.sqrt(4) * 0.3 * 2.0 / EXPECTED, rel=0.3)


def test_the_noise_follows_the_norm(model: NodeModel) -> None:
    plan = StepPlan(sampling_rate=0.0, expected_batch_size=EXPECTED, noise_std=0.6, adaptive=ADAPTIVE)
    engine = FusedEngine(2.0)
    first = moved(model, plan, engine)
    assert first.std() == pytest.approx(0.6 / EXPECTED, rel=0.1)
    learned = engine.max_grad_norm
    assert abs(math.log(learned / 2.0)) > 0.01
    second = moved(model, plan, FusedEngine(2.0), steps=2) - first
    fresh = moved(model, StepPlan(sampling_rate=0.0, expected_batch_size=EXPECTED, noise_std=1.0), FusedEngine(1.0), steps=2)
    unit = fresh - moved(model, StepPlan(sampling_rate=0.0, expected_batch_size=EXPECTED, noise_std=1.0), FusedEngine(1.0))
    np.testing.assert_allclose(second, unit * 0.6 * learned / 2.0, rtol=1e-3, atol=1e-5)


def test_a_pull_does_not_hide_the_count_from_the_norm(model: NodeModel) -> None:
    """The engine is detached for it, and forgets then what it counted."""
    plan = StepPlan(sampling_rate=1.0, expected_batch_size=EXPECTED, noise_std=0.0, adaptive=ADAPTIVE)
    alone, pulled = FusedEngine(1e5), FusedEngine(1e5)
    moved(model, plan, alone, steps=2)
    moved(model, plan, pulled, steps=2, pull=lambda step: {name: torch.zeros_like(value) for name, value in model.parameters.items()})
    assert pulled.max_grad_norm == alone.max_grad_norm != 1e5


def test_the_gradient_gets_the_noise_that_the_count_leaves(write_job) -> None:
    job = load_job(write_job(privacy={"clipping": "adaptive", "max_grad_norm": 0.5, "adaptive": {"unclipped_num_std": 1.0}}))
    plan = StepPlan.of(job, declared_size=100, noise_multiplier=1.2, largest_weight=3.0)
    assert plan.noise_std == pytest.approx(0.5 * 3.0 / math.sqrt(1 / 1.2**2 - 1 / 4))  # 2 σ_b = 2
    assert plan.adaptive == job.privacy.adaptive


def test_a_count_that_is_too_dear_is_refused_before_anything_is_charged(write_job) -> None:
    job = load_job(write_job(privacy={"clipping": "adaptive", "epsilon": 1.0, "adaptive": {"unclipped_num_std": 0.5}}))
    with pytest.raises(FedethosError, match="PRIV-350"):
        allotments(job, declared_size=200)
