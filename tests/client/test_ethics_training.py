"""Ethics losses and group-balanced sampling in the private step: bounded per unit, and on planted data they close the gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from fairlearn.metrics import demographic_parity_difference, equal_opportunity_difference
from scipy.optimize import approx_fprime
from scipy.special import logsumexp
from scipy.stats import binomtest

from fedethos.client.examples import Examples, FeatureInputs
from fedethos.client.model import NodeModel
from fedethos.client.trainer import StepPlan, train_round
from fedethos.fairness.losses import ExampleLoss, counterfactual_consistency, cross_entropy, focal
from fedethos.job import Training
from fedethos.job_data import Numeric
from fedethos.models.tabular import Architecture, make_tabular
from fedethos.privacy.engine import ClippingEngine, PlainEngine
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.randomness import SeededSource
from fedethos.strategies.group_dro import group_weights
from fedethos.strategies.reweighing import reweighing_weights

EVERYBODY = StepPlan(sampling_rate=1.0, expected_batch_size=1.0, noise_std=0.0)


def linear(hidden: list[int] | None = None) -> NodeModel:
    """Four inputs: two numbers and their indicators of missing."""
    features = {name: Numeric(mean=0.0, scale=1.0) for name in ("a", "b")}
    module = make_tabular(Architecture(features=dict(features), hidden=hidden or [], labels=["no", "yes"]), seed=1)
    return NodeModel(module, module, "0" * 64)


def table(x: np.ndarray, label: np.ndarray, group: np.ndarray, **more: np.ndarray) -> Examples:
    """Two columns; each record is a unit of its own."""
    features = np.zeros((len(x), 4), dtype=np.float32)
    features[:, [0, 2]] = x
    unit = more.pop("unit", np.arange(len(x)))
    return Examples(FeatureInputs(torch.from_numpy(features)), label.astype(np.int64), {"sex": group}, unit, **more)


def trained(data: Examples, engine: ClippingEngine, loss: ExampleLoss = cross_entropy, *, steps: int = 60, rate: float = 4.0) -> NodeModel:
    model = linear()
    training = Training(local_steps=steps, optimizer="sgd", learning_rate=rate)
    plan = replace(EVERYBODY, expected_batch_size=float(data.units))
    train_round(model, data, training, plan, engine, lambda step: SeededSource(0, step), loss)
    return model


def favored(model: NodeModel, data: Examples) -> np.ndarray:
    with torch.inference_mode():
        logits = model.logits(data.inputs.batch(np.arange(len(data))))
    return (logits[:, 1] > logits[:, 0]).numpy()


def moved(model: NodeModel, data: Examples, engine: ClippingEngine, loss: ExampleLoss, tokens: int = 8192) -> np.ndarray:
    start = model.read()
    training = Training(local_steps=1, optimizer="sgd", learning_rate=1.0, micro_batch_tokens=tokens)
    train_round(model, data, training, EVERYBODY, engine, lambda step: SeededSource(0, step), loss)
    after = model.read()
    model.load(start)
    return np.concatenate([(after[name] - start[name]).ravel() for name in sorted(start)])


def with_swapped(x: np.ndarray, label: np.ndarray, group: np.ndarray) -> Examples:
    """Each record and its copy, in which the second column, the group, is swapped."""
    copies = x * np.array([1.0, -1.0])
    original = np.tile(np.arange(len(x)), 2)
    return table(np.vstack([x, copies]), np.tile(label, 2), np.tile(group, 2), unit=original, original=original)


def biased(people: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The label follows merit and, unjustly, the group, which the model reads as its second column."""
    rng = np.random.default_rng(2)
    group = rng.integers(0, 2, people)
    merit = rng.normal(size=people)
    label = (merit + 1.2 * (group - 0.5) + 0.3 * rng.normal(size=people) > 0).astype(np.int64)
    return np.c_[merit, 2.0 * group - 1.0], label, group


LOSSES: list[ExampleLoss] = [partial(counterfactual_consistency, weight=5.0), partial(focal, gamma=2.0)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("make_engine", [FusedEngine, OpacusEngine])
def test_a_step_is_the_gradient_that_autograd_gives_however_it_is_cut(
    loss: ExampleLoss, make_engine: Callable[[float], ClippingEngine]
) -> None:
    data, model = with_swapped(*biased(12)), linear([3])
    truth = moved(model, data, PlainEngine(), loss)
    np.testing.assert_allclose(moved(model, data, make_engine(1e6), loss), truth, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved(model, data, make_engine(1e6), loss, tokens=4), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("make_engine", [FusedEngine, OpacusEngine])
def test_a_record_and_its_copy_add_at_most_c(loss: ExampleLoss, make_engine: Callable[[float], ClippingEngine]) -> None:
    """The step of everybody is the sum of the steps of single units, each of at most C: no unit's part depends on another's."""
    x, label, group = biased(6)
    model = linear([3])
    single = [moved(model, with_swapped(x[[row]], label[[row]], group[[row]]), make_engine(0.05), loss) for row in range(6)]
    assert max(np.linalg.norm(step) for step in single) <= 0.05 * (1 + 1e-6)
    assert min(np.linalg.norm(step) for step in single) > 0.049
    together = moved(model, with_swapped(x, label, group), make_engine(0.05), loss)
    np.testing.assert_allclose(together, sum(single), atol=1e-6)


def test_the_original_is_found_in_any_order_of_the_batch() -> None:
    data = with_swapped(*biased(6))
    batch = np.array([9, 4, 3, 10, 0, 6])
    assert data.originals_within(batch).tolist() == [2, 1, 2, 1, 4, 4]
    assert replace(data, original=None).originals_within(batch).tolist() == [0, 1, 2, 3, 4, 5]


def test_more_consistency_means_a_smaller_gap() -> None:
    x, label, group = biased()
    data = with_swapped(x, label, group)
    alone, gaps, flips = table(x, label, group), [], []
    for weight in (0.0, 1.0, 10.0):
        model = trained(
            table(x, label, group) if weight == 0.0 else data, PlainEngine(), partial(counterfactual_consistency, weight=weight)
        )
        decisions = favored(model, data)
        gaps.append(demographic_parity_difference(label, favored(model, alone), sensitive_features=group))
        flips.append(float(np.mean(decisions[: len(x)] != decisions[len(x) :])))
    assert gaps[0] > 0.4
    assert gaps[0] > gaps[1] + 0.1
    assert gaps[1] >= gaps[2]
    assert flips[0] > 0.3
    assert flips[2] <= flips[1] < 0.1


def test_a_step_with_weights_of_cells_is_the_finite_difference_of_the_weighted_loss() -> None:
    """Reweighing and group DRO weigh gradients: without a binding bound that is the gradient of sum_i w_i loss_i, here in NumPy."""
    x, label, group = biased(40)
    counts = np.zeros((3, 2))
    np.add.at(counts, (group, label), 1)
    model = linear()
    start = model.read()
    features = table(x, label, group).inputs.features.numpy().astype(np.float64)

    for by_cell in (reweighing_weights(counts, max_weight=8.0), group_weights(np.log([1.0, 3.0, 1.0]), counts.sum(axis=1), max_weight=6.0)):
        weight = by_cell[group, label] if by_cell.ndim == 2 else by_cell[group]

        def loss(values: np.ndarray, weight: np.ndarray = weight) -> float:
            arrays = dict(zip(sorted(start), np.split(values, [2]), strict=True))  # the bias comes first
            logits = features @ arrays["layers.0.weight"].reshape(2, 4).T + arrays["layers.0.bias"]
            return float(weight @ (logsumexp(logits, axis=1) - logits[np.arange(len(label)), label]))

        flat = np.concatenate([start[name].ravel() for name in sorted(start)]).astype(np.float64)
        difference = approx_fprime(flat, loss, 1e-6)
        for engine in (PlainEngine(), FusedEngine(1e6)):
            step = moved(model, table(x, label, group, weight=weight), engine, cross_entropy)
            np.testing.assert_allclose(-step, difference, rtol=1e-3, atol=1e-3)


def test_more_reweighing_means_a_smaller_gap() -> None:
    x, label, group = biased()
    counts = np.zeros((3, 2))
    np.add.at(counts, (group, label), 1)
    gaps = []
    for strength in (0.0, 0.5, 1.0):
        weight = reweighing_weights(counts, max_weight=8.0)[group, label] ** strength
        decisions = favored(trained(table(x, label, group, weight=weight), PlainEngine()), table(x, label, group))
        gaps.append(demographic_parity_difference(label, decisions, sensitive_features=group))
    assert gaps[0] > gaps[1] + 0.05 > gaps[2] + 0.1


def test_more_copies_mean_a_smaller_gap_and_fewer_flips() -> None:
    """Augmentation alone, with the usual loss: a copy has the label of its original, so the swapped column says less and less."""
    x, label, group = biased()
    gaps, flips = [], []
    for share in (0.0, 0.5, 1.0):
        copied = np.arange(int(share * len(x)))
        original = np.r_[np.arange(len(x)), copied]
        data = table(
            np.vstack([x, x[copied] * [1.0, -1.0]]), label[original], group[original], unit=original, original=original
        )  # fmt: skip
        model = trained(data, PlainEngine())
        decisions, swapped = favored(model, table(x, label, group)), favored(model, table(x * [1.0, -1.0], label, group))
        gaps.append(demographic_parity_difference(label, decisions, sensitive_features=group))
        flips.append(float(np.mean(decisions != swapped)))
    assert gaps[0] > gaps[1] > gaps[2]
    assert flips[0] > flips[1] + 0.05 > flips[2] + 0.1
    assert gaps[2] < gaps[0] - 0.2


@pytest.mark.parametrize("make_engine", [PlainEngine, lambda: FusedEngine(0.05)])
def test_reweighing_closes_the_gap_with_and_without_clipping(
    make_engine: Callable[[], ClippingEngine],
) -> None:
    x, label, group = biased()
    counts = np.zeros((3, 2))
    np.add.at(counts, (group, label), 1)
    weight = reweighing_weights(counts, max_weight=8.0)[group, label]
    gaps = [
        equal_opportunity_difference(label, favored(trained(data, make_engine(), rate=4.0), data), sensitive_features=group)
        for data in (table(x, label, group), table(x, label, group, weight=weight))
    ]
    assert gaps[0] > 0.1
    assert gaps[1] < gaps[0] - 0.05


def test_focal_loss_serves_the_group_that_is_hard_to_learn() -> None:
    """Both columns tell the many apart, by opposite signs; the few need the second one, which then misleads for the many.

    With gamma 2, the paper's choice, the many, who are easily told apart, soon leave the second column to the few.
    """
    rng = np.random.default_rng(5)
    group = (rng.random(1500) < 0.1).astype(np.int64)
    label = rng.integers(0, 2, 1500)
    side = 2.0 * label - 1.0
    x = np.where(group[:, None] == 0, np.c_[2 * side, -2 * side], np.c_[0 * side, side]) + 0.4 * rng.normal(size=(1500, 2))
    data = table(x, label, group)
    gaps = []
    for gamma in (0.0, 2.0):
        model = trained(data, PlainEngine(), partial(focal, gamma=gamma), steps=40, rate=1.0)
        gaps.append(equal_opportunity_difference(label, favored(model, data), sensitive_features=group))
    assert gaps[0] > 0.35
    assert gaps[1] < gaps[0] - 0.1


class Watch(PlainEngine):
    """Notes who is sampled."""

    def __init__(self) -> None:
        self.units: list[int] = []

    def backward(self, per_example_loss: torch.Tensor, unit_ids: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        self.units.extend(unit_ids.tolist())
        super().backward(per_example_loss, unit_ids, weights)


def test_group_balanced_sampling_takes_each_unit_at_its_own_rate_and_none_above_the_accounted_one() -> None:
    """200 of group 0 at .1, 800 of group 1 at .025, and one record that claims more than is paid for."""
    group = np.r_[np.zeros(200, dtype=np.int64), np.ones(800, dtype=np.int64)]
    rates = np.array([0.1, 0.025])[group]
    rates[0] = 1.0
    data = table(np.zeros((1000, 2)), np.zeros(1000), group, rate=rates)
    np.testing.assert_allclose(data.chances(0.1)[[0, 1, 999]], [0.1, 0.1, 0.025])
    engine, steps = Watch(), 200
    plan = StepPlan(sampling_rate=0.1, expected_batch_size=40.0, noise_std=0.0)
    train_round(linear(), data, Training(local_steps=steps), plan, engine, lambda step: SeededSource(3, step))
    taken = np.bincount(group[engine.units], minlength=2)
    assert binomtest(int(taken[0]), 200 * steps, 0.1).pvalue > 1e-3
    assert binomtest(int(taken[1]), 800 * steps, 0.025).pvalue > 1e-3


def test_more_balanced_batches_mean_a_smaller_gap() -> None:
    """The few (one in ten) follow the second column, the many the first: who is sampled decides whom a linear model serves."""
    rng = np.random.default_rng(7)
    group = (rng.random(1000) < 0.1).astype(np.int64)
    x = rng.normal(size=(1000, 2))
    label = (x[np.arange(1000), group] + 0.3 * rng.normal(size=1000) > 0).astype(np.int64)
    gaps = []
    for many, few in ((0.3, 0.3), (0.2, 0.5), (0.06, 0.54)):  # uniform, between, as many of each
        data = table(x, label, group, rate=np.where(group == 1, few, many))
        model = linear()
        plan = StepPlan(sampling_rate=few, expected_batch_size=float(many * (group == 0).sum() + few * (group == 1).sum()), noise_std=0.0)
        train_round(
            model,
            data,
            Training(local_steps=80, optimizer="sgd", learning_rate=1.0),
            plan,
            PlainEngine(),
            lambda step: SeededSource(4, step),
        )
        right = favored(model, data) == (label == 1)
        gaps.append(right[group == 0].mean() - right[group == 1].mean())
    assert gaps[0] > gaps[1] + 0.03 > gaps[2] + 0.06


def test_a_person_of_two_groups_has_the_mean_of_their_rates() -> None:
    data = table(
        np.zeros((4, 2)), np.zeros(4), np.zeros(4, dtype=np.int64), unit=np.array([0, 0, 1, 1]), rate=np.array([0.1, 0.3, 0.2, 0.2])
    )
    np.testing.assert_allclose(data.chances(1.0), [0.2, 0.2])
    np.testing.assert_allclose(replace(data, rate=None).chances(0.4), [0.4, 0.4])
