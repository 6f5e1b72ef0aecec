"""The average of iterates, against a plain mean of the iterates of separate, shorter runs."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.client.test_head_warmup import examples, small_model
from torch import nn

from fedethos.client.iterates import DECAY, IterateAverage
from fedethos.client.model import NodeModel
from fedethos.client.trainer import StepPlan, train_round
from fedethos.job import Training
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.randomness import SeededSource

STEPS = 5
NOISY = StepPlan(sampling_rate=0.5, expected_batch_size=4.0, noise_std=0.3)


def averaged(kind: str, iterates: list[float]) -> float:
    parameter = nn.Parameter(torch.full((2,), 100.0))  # where the round began counts for nothing
    average = IterateAverage({"x": parameter}, kind, len(iterates))
    for value in iterates:
        with torch.no_grad():
            parameter.fill_(value)
        average.add()
    average.write()
    return parameter[0].item()


@pytest.mark.parametrize(
    ("iterates", "mean"), [([1.0, 2.0, 3.0, 4.0], 3.5), ([1.0, 2.0, 6.0, 4.0, 8.0], 6.0), ([7.0], 7.0), ([5.0, 9.0], 9.0)]
)
def test_the_tail_is_the_plain_mean_of_the_last_half(iterates: list[float], mean: float) -> None:
    """Of an odd number of iterates the middle one counts."""
    assert averaged("tail", iterates) == mean


def test_the_moving_average_weighs_an_iterate_by_its_age() -> None:
    iterates = [1.0, -2.0, 5.0, 3.0]
    weights = DECAY ** np.arange(3, -1, -1)
    assert averaged("ema", iterates) == pytest.approx(np.average(iterates, weights=weights), rel=1e-6)


def test_none_leaves_the_last_iterate_as_it_is() -> None:
    assert averaged("none", [0.1, 0.7]) == float(np.float32(0.7))


def sent(model: NodeModel, start: dict[str, np.ndarray], *, steps: int, kind: str, optimizer: str) -> dict[str, np.ndarray]:
    model.load(start)
    training = Training(local_steps=steps, batch_size=4, learning_rate=0.05, optimizer=optimizer, iterate_average=kind)
    train_round(model, examples(), training, NOISY, FusedEngine(0.5), lambda step: SeededSource(5, "site", 1, step))
    return model.read()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_site_sends_the_mean_of_its_noised_iterates(optimizer: str) -> None:
    """A run of k steps ends at iterate k of a longer run with the same seeds."""
    model = small_model()
    start = model.read()
    iterates = [sent(model, start, steps=count, kind="none", optimizer=optimizer) for count in range(1, STEPS + 1)]
    weights = {"tail": [0.0, 0.0, 1 / 3, 1 / 3, 1 / 3], "ema": DECAY ** np.arange(STEPS - 1, -1, -1)}
    for kind, shares in weights.items():
        answer = sent(model, start, steps=STEPS, kind=kind, optimizer=optimizer)
        for name, value in answer.items():
            by_hand = np.average([iterate[name].astype(np.float64) for iterate in iterates], axis=0, weights=shares)
            np.testing.assert_allclose(value, by_hand, rtol=1e-6, atol=1e-7)
            assert not np.array_equal(value, iterates[-1][name]), name


def test_one_step_has_no_average() -> None:
    with pytest.raises(ValidationError, match="local_steps is 1"):
        Training(local_steps=1, iterate_average="tail")
