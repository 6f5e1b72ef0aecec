"""Counterfactual copies in training: one unit with its copy is sampled, clipped and charged as one, and never counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedethos.client.evaluator import tabulate, tabulate_decisions
from fedethos.client.examples import Examples, FeatureInputs
from fedethos.client.model import NodeModel
from fedethos.client.trainer import StepPlan, train_round
from fedethos.data.counterfactual import with_copies
from fedethos.data.records import Records, Swapped
from fedethos.job import Job, Training
from fedethos.job_data import Numeric
from fedethos.models.tabular import Architecture, make_tabular
from fedethos.privacy.engine import ClippingEngine
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.randomness import SeededSource

N, C = 9, 0.05


def records() -> Records:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(N, 2)).astype(np.float32)
    swapped = Swapped(np.arange(N) % 3 > 0, features=features * np.float32([1, -3]))
    return Records(
        (),
        rng.integers(0, 2, N),
        {"sex": rng.integers(0, 2, N)},
        np.arange(N) // 2,
        np.zeros((N, 32), np.uint8),
        None,
        features,
        {"sex": swapped},
    )


def job(unit: str = "record", sensitive: dict[str, list[str]] | None = None) -> Job:
    return Job.model_validate(
        {
            "name": "copies",
            "task": "tabular-classification",
            "model": {"path": "builtin:linear"},
            "data": {
                "path": "t",
                "features": {"a": {"mean": 0, "scale": 1}},
                "label": {"column": "l", "values": ["no", "yes"], "favorable": "yes"},
                "sensitive": sensitive or {},
                "person_id": "id" if unit == "person" else None,
            },
        }
    )


def examples(records: Records, unit: str = "record") -> Examples:
    return Examples.of(records, job(unit), FeatureInputs(torch.from_numpy(records.features)))  # type: ignore[arg-type]


@pytest.fixture
def model() -> NodeModel:
    features = {"a": Numeric(mean=0.0, scale=1.0)}  # one number and its indicator of missing: two inputs
    module = make_tabular(Architecture(features=dict(features), hidden=[4], labels=["no", "yes"]), seed=1)
    return NodeModel(module, module, "0" * 64)


def moved(model: NodeModel, data: Examples, engine: ClippingEngine) -> np.ndarray:
    """The clipped sum of all units: one step of plain SGD, learning rate 1, everybody sampled, no noise."""
    start = model.read()
    plan = StepPlan(sampling_rate=1.0, expected_batch_size=1.0, noise_std=0.0)
    training = Training(local_steps=1, optimizer="sgd", learning_rate=1.0)
    train_round(model, data, training, plan, engine, lambda step: SeededSource(0, step))
    after = model.read()
    model.load(start)
    return np.concatenate([(after[name] - start[name]).ravel() for name in sorted(start)])


def test_a_copy_belongs_to_the_unit_of_its_original() -> None:
    with_ = with_copies(records())
    copied = [1, 2, 4, 5, 7, 8]
    assert examples(with_).unit.tolist() == [*range(N), *copied]
    assert examples(with_, "person").unit.tolist() == [row // 2 for row in [*range(N), *copied]]
    for unit in ("record", "person"):
        assert examples(with_, unit).units == examples(records(), unit).units
    assert examples(with_).original.tolist() == [*range(N), *copied]
    assert examples(with_).counted.tolist() == [True] * N + [False] * len(copied)
    assert examples(records()).counted.all()


@pytest.mark.parametrize("make_engine", [FusedEngine, OpacusEngine])
def test_a_record_and_its_copy_add_at_most_c(model: NodeModel, make_engine: type[FusedEngine] | type[OpacusEngine]) -> None:
    """The gradients of each record are far above C; the sum over units is at most C for each unit, copies or not."""
    both = with_copies(records())
    rows = np.array([1, N])  # record 1 and its copy
    one = Examples(
        FeatureInputs(torch.from_numpy(both.features[rows])),
        both.label[rows],
        {},
        np.zeros(2, dtype=np.int64),
        original=np.zeros(2, np.int64),
    )
    apart = Examples(one.inputs, one.label, {}, np.arange(2))
    assert np.linalg.norm(moved(model, one, make_engine(C))) <= C * (1 + 1e-6)
    assert np.linalg.norm(moved(model, apart, make_engine(C))) > C * 1.05  # what two units of their own would have cost
    assert np.linalg.norm(moved(model, examples(both), make_engine(C))) <= N * C * (1 + 1e-6)


@pytest.mark.parametrize("make_engine", [FusedEngine, OpacusEngine])
def test_without_a_bound_the_copies_are_rows_like_others(model: NodeModel, make_engine: type[FusedEngine] | type[OpacusEngine]) -> None:
    both = with_copies(records())
    plain = Examples(FeatureInputs(torch.from_numpy(both.features)), both.label, {}, np.arange(len(both)))
    np.testing.assert_allclose(moved(model, examples(both), make_engine(1e6)), moved(model, plain, make_engine(1e6)), rtol=1e-4, atol=1e-6)


def test_count_tables_never_see_a_copy() -> None:
    by_sex = job(sensitive={"sex": ["Female", "Male"]})
    everybody, both = examples(records()), examples(with_copies(records()))
    scores = np.linspace(-3, 3, len(both))
    for declared in (by_sex, job()):
        for name, table in tabulate(scores[:N], everybody, declared).items():
            np.testing.assert_array_equal(tabulate(scores, both, declared)[name], table)
            assert table.sum() == N
    favored = (scores > 0).astype(np.int64)
    decided = tabulate_decisions(favored, 2, both, by_sex)["sex"]
    np.testing.assert_array_equal(decided, tabulate_decisions(favored[:N], 2, everybody, by_sex)["sex"])
    assert decided.sum() == N
