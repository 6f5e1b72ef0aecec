"""The private step: what it adds, what it divides by, and what it does when nobody is sampled."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from fedethos.client.examples import Examples, TokenInputs, micro_batches
from fedethos.client.model import NodeModel
from fedethos.client.trainer import StepPlan, train_round
from fedethos.data.tokens import TokenTable
from fedethos.job import Lora, Training
from fedethos.models.adapter import attach_lora
from fedethos.privacy.engine import PlainEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.randomness import SeededSource

RECORDS = 12


@pytest.fixture
def model() -> NodeModel:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=50, num_labels=2)
    adapted = attach_lora(BertForSequenceClassification(config), Lora(r=8, lora_alpha=16), seed=1, freeze_a=True)
    return NodeModel(adapted, adapted, "0" * 64)


def examples(units: list[int] | None = None) -> Examples:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, RECORDS)
    table = TokenTable(rng.integers(1, 50, lengths.sum(), dtype=np.int32), np.r_[0, np.cumsum(lengths)], 0)
    unit = np.arange(RECORDS) if units is None else np.asarray(units)
    return Examples(TokenInputs(table), rng.integers(0, 2, RECORDS), {}, unit)


def change(model: NodeModel, training: Training, plan: StepPlan, engine: OpacusEngine | PlainEngine, **kwargs: Examples) -> np.ndarray:
    before = model.read()
    train_round(model, kwargs.get("data", examples()), training, plan, engine, lambda step: SeededSource(5, "site", 1, step))
    after = model.read()
    return np.concatenate([(after[name] - before[name]).ravel() for name in sorted(before)])


def sgd(**changes: object) -> Training:
    return Training(**{"local_steps": 1, "batch_size": 4, "optimizer": "sgd", "learning_rate": 1.0, **changes})


def test_a_step_without_anybody_is_pure_noise_of_the_stated_size(model: NodeModel) -> None:
    plan = StepPlan(sampling_rate=0.0, expected_batch_size=4.0, noise_std=0.6)
    moved = change(model, sgd(), plan, OpacusEngine(1.0))
    assert moved.std() == pytest.approx(0.6 / 4.0, rel=0.1)
    assert abs(moved.mean()) < 4 * 0.15 / np.sqrt(moved.size)


def test_without_noise_and_anybody_nothing_moves(model: NodeModel) -> None:
    assert not change(model, sgd(), StepPlan(sampling_rate=0.0, expected_batch_size=4.0, noise_std=0.0), OpacusEngine(1.0)).any()


def test_a_bound_that_never_binds_gives_the_plain_gradient_over_the_expected_batch(model: NodeModel) -> None:
    plan = StepPlan(sampling_rate=1.0, expected_batch_size=4.0, noise_std=0.0)
    start = model.read()
    private = change(model, sgd(), plan, OpacusEngine(1e6))
    model.load(start)
    np.testing.assert_allclose(private, change(model, sgd(), plan, PlainEngine()), rtol=1e-4, atol=1e-6)


def test_one_step_moves_by_at_most_c_per_person(model: NodeModel) -> None:
    """All twelve records belong to one person: the whole step is one clipped gradient."""
    plan = StepPlan(sampling_rate=1.0, expected_batch_size=1.0, noise_std=0.0)
    moved = change(model, sgd(), plan, OpacusEngine(0.01), data=examples([0] * RECORDS))
    assert 0.0099 < np.linalg.norm(moved) <= 0.01 * (1 + 1e-5)


def test_the_proximal_term_pulls_towards_the_start_and_takes_no_noise_or_clipping(model: NodeModel) -> None:
    """By hand with plain SGD and learning rate 1: w1 = w0 - g0, then w2 = w1 - g1 - mu (w1 - w0)."""
    plan = StepPlan(sampling_rate=0.0, expected_batch_size=4.0, noise_std=0.6)
    start, mu = model.read(), 0.25
    first, second = (
        np.concatenate([noise[name].ravel() for name in sorted(noise)]) for noise in (step_of_pure_noise(model, step) for step in (0, 1))
    )
    model.load(start)
    moved = change(model, sgd(local_steps=2, proximal_mu=mu), plan, OpacusEngine(1.0))
    np.testing.assert_allclose(moved, first + second - mu * first, atol=1e-5)


def step_of_pure_noise(model: NodeModel, step: int) -> dict[str, np.ndarray]:
    """What step number ``step`` of the round adds when nobody is sampled: minus its noise over the batch."""
    source = SeededSource(5, "site", 1, step)
    source.uniform(RECORDS), source.uniform(1)  # the sample, and the seed of the dropout
    sizes = {name: array.shape for name, array in sorted(model.read().items())}
    noise = 0.6 / 4.0 * source.normal(sum(int(np.prod(shape)) for shape in sizes.values()))
    moves, start = {}, 0
    for name, shape in sizes.items():
        end = start + int(np.prod(shape))
        moves[name], start = -noise[start:end].reshape(shape), end
    return moves


def test_only_what_is_named_trains(model: NodeModel) -> None:
    plan = StepPlan(sampling_rate=0.0, expected_batch_size=4.0, noise_std=0.6)
    names = [name for name in model.exchanged_names if "query.lora_B" in name]
    before = model.read()
    with model.training(names, rank=3):
        train_round(model, examples(), sgd(), plan, OpacusEngine(1.0), lambda step: SeededSource(5, "site", 1, step))
    after = model.read()
    assert {name for name in before if (before[name] != after[name]).any()} == set(names)
    assert all(after[name][:, :3].all() and not after[name][:, 3:].any() for name in names)


def test_the_head_has_its_own_learning_rate(model: NodeModel) -> None:
    plan = StepPlan(sampling_rate=1.0, expected_batch_size=4.0, noise_std=0.0)
    before = model.read()
    change(model, sgd(head_learning_rate=1e-9), plan, PlainEngine())
    after = model.read()
    for name in before:
        moved = float(np.abs(after[name] - before[name]).max())
        assert (moved < 1e-8) == (name in model.head_names()), name


def test_sampling_takes_whole_persons_at_the_public_rate() -> None:
    data = examples([index // 3 for index in range(RECORDS)])
    sizes = []
    for step in range(400):
        units = np.flatnonzero(SeededSource(1, step).uniform(data.units) < 0.25)
        rows = data.rows_of(units)
        assert len(rows) == 3 * len(units)
        sizes.append(len(units))
    assert np.mean(sizes) == pytest.approx(4 * 0.25, abs=0.15)


@dataclass(frozen=True)
class Batch:
    unit: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    unit = np.asarray(draw(st.lists(st.integers(0, 6), min_size=1, max_size=30)))
    lengths = np.asarray(draw(st.lists(st.integers(1, 40), min_size=len(unit), max_size=len(unit))))
    sampled = draw(st.sets(st.integers(0, 6)))
    return Batch(unit, lengths, np.flatnonzero(np.isin(unit, sorted(sampled))))


@given(batch=batches(), tokens=st.integers(1, 200))
def test_micro_batches_deal_every_row_once_and_never_divide_a_unit(batch: Batch, tokens: int) -> None:
    parts = list(micro_batches(batch.rows, batch.unit, batch.lengths, tokens))
    dealt = np.concatenate(parts) if parts else np.array([], dtype=int)
    assert sorted(dealt) == sorted(batch.rows)
    owners = [set(batch.unit[part]) for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners)) if owners else True
    padded = [len(part) * batch.lengths[part].max() for part in parts]
    assert all(size <= tokens or len(own) == 1 for size, own in zip(padded, owners, strict=True))
