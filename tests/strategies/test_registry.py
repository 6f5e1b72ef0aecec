"""Flower's server optimizers, made from the job: their steps by hand, and their state through a checkpoint."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedethos.errors import FedethosError
from fedethos.flower import identify_process
from fedethos.job import Job
from fedethos.messages import encode_arrays
from fedethos.strategies.registry import make_strategy, restore_strategy, strategy_arrays


def job(**federation: object) -> Job:
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "optimizer",
            "model": {"path": "asset:minilm"},
            "data": {"path": "builtin:adult", "text": "{age}", "label": {"column": "y", "values": ["a", "b"], "favorable": "b"}},
            "federation": federation,
        }
    )


class Two:
    def get_node_ids(self) -> list[int]:
        return [1, 2]


def rounds(plan: Job, start: list[float], means: list[list[float]]) -> list[np.ndarray]:
    """Global tensors after each round in which the sites' mean is ``means``; a new strategy a round, as the round loop makes them."""
    identify_process(run_id=1)
    state, current, seen = {}, encode_arrays({"v": np.float32(start), "a": np.float32(start)}), []
    for number, mean in enumerate(means, start=1):
        strategy = make_strategy(plan, 2)
        restore_strategy(strategy, state)
        replies = [
            Message(
                RecordDict(
                    {"arrays": encode_arrays({name: np.float32(mean) for name in current}), "metrics": MetricRecord({"num-examples": 0.5})}
                ),
                reply_to=message,
            )
            for message in strategy.configure_train(number, current, ConfigRecord(), Two())
        ]
        combined, _ = strategy.aggregate_train(number, replies)
        current = ArrayRecord({name: combined[name] for name in sorted(combined)})
        state = strategy_arrays(strategy)
        assert np.allclose(current["a"].numpy(), current["v"].numpy())
        seen.append(current["v"].numpy())
    return seen


START, STEP = [1.0, -2.0], np.array([0.5, -0.25])


def test_first_steps_by_hand() -> None:
    mean = [list(START + STEP)]
    adagrad = rounds(job(server_optimizer="fedadagrad", server_learning_rate=0.1), START, mean)[0]
    np.testing.assert_allclose(adagrad, START + 0.1 * STEP / (np.abs(STEP) + 1e-3), rtol=1e-5)
    yogi = rounds(job(server_optimizer="fedyogi", server_learning_rate=0.1), START, mean)[0]
    np.testing.assert_allclose(yogi, START + 0.1 * 0.1 * STEP / (0.1 * np.abs(STEP) + 1e-3), rtol=1e-5)


def test_momentum_goes_on_through_a_checkpoint() -> None:
    first, second = rounds(job(server_optimizer="fedavgm", server_momentum=0.8), START, [list(START + STEP)] * 2)
    np.testing.assert_allclose(first, START + STEP, rtol=1e-6)  # the usual step of fedavgm is 1
    np.testing.assert_allclose(second, first + 0.8 * STEP + 0.0, rtol=1e-6)  # the second mean is where the model is already


def test_adagrad_remembers_past_steps() -> None:
    first, second = rounds(job(server_optimizer="fedadagrad", server_learning_rate=0.1), START, [list(START + STEP)] * 2)
    rest = START + STEP - first
    np.testing.assert_allclose(second, first + 0.1 * rest / (np.sqrt(STEP**2 + rest**2) + 1e-3), rtol=1e-5)


def test_a_state_of_another_strategy_is_refused() -> None:
    with pytest.raises(FedethosError, match="RUN-931"):
        restore_strategy(make_strategy(job(server_optimizer="fedavgm"), 2), {"m_t/v": np.zeros(2)})
    with pytest.raises(FedethosError, match="RUN-931"):
        restore_strategy(make_strategy(job(), 2), {"momentum_vector/00000": np.zeros(2)})
