"""From the updates of a round to the next global adapter.

Next on the path: ``strategies/robust.py``, ``strategies/registry.py``, ``server/steering.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy

from fedethos.aggregation import HEAD_CENTER, trained_in
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import ARRAYS, TRAIN, Arrays, encode_arrays
from fedethos.server.state import RunState
from fedethos.server.steering import steered_step
from fedethos.strategies.averaging import aggregation_error, weighted_mean
from fedethos.strategies.fedavg import AdapterFedAvg
from fedethos.strategies.registry import strategy_arrays
from fedethos.strategies.robust import defend


def sent_in_next_round(state: RunState, job: Job) -> Arrays:
    """Of the global tensors those that train in the round after ``state``."""
    return {name: state.arrays[name] for name in trained_in(job.aggregation, state.round + 1, state.arrays)}


def combined(
    job: Job, strategy: Strategy, state: RunState, updates: Mapping[str, Arrays], shares: Mapping[str, float], frozen: Arrays
) -> RunState:
    """The state after the round's aggregation: robust step, aggregation rule, fairness weighting.

    Parameters
    ----------
    updates : by site
        Validated. Read one by one (``server/updates.py``); Krum, median and trimmed mean need all of them at once.
    shares : by site
        Approved weights.

    Raises
    ------
    FedethosError
        AGG-712 when the strategy returns nothing, or something that is not finite.
    """
    sent = sent_in_next_round(state, job)
    resting = {name: array for name, array in state.arrays.items() if name not in sent}
    defended = defend(job, updates, shares, sent, {**frozen, **resting})
    weights = [shares[name] for name in defended.updates]
    arrays = _aggregate(strategy, state.round + 1, defended.updates.values(), weights)
    error = defended.error + aggregation_error(state.arrays, defended.updates.values(), weights, arrays, frozen)
    arrays = steered_step(job, state, defended.updates, shares, arrays)
    memory = state.memory.model_copy(update={"aggregation_error": error})
    center = {name: array for name, array in state.arrays.items() if name == HEAD_CENTER}  # no strategy sees it
    return RunState(state.round + 1, {**center, **arrays}, memory, strategy_arrays(strategy))


def _aggregate(strategy: Strategy, number: int, updates: Collection[Arrays], weights: Sequence[float]) -> Arrays:
    """Combine what the robust step left, in the order of the sites' names, with approved weights.

    Our own rules read the updates one by one. A server optimizer of Flower's works on their mean alone, so it gets that as one reply.
    """
    if isinstance(strategy, AdapterFedAvg):
        arrays = strategy.aggregate(number, updates, weights)
    else:
        mean = encode_arrays(weighted_mean(updates, weights))
        asked = Message(RecordDict(), 0, TRAIN, group_id=str(number))
        reply = Message(RecordDict({ARRAYS: mean, "metrics": MetricRecord({"num-examples": sum(weights)})}), reply_to=asked)
        combined, _ = strategy.aggregate_train(number, [reply])
        arrays = {} if combined is None else {name: array.numpy().astype(np.float32) for name, array in combined.items()}
    if not arrays or not all(np.isfinite(array).all() for array in arrays.values()):
        raise FedethosError("AGG-712", f"Aggregation of round {number} gave no finite adapter.", fix="Lower the learning rate and resume.")
    return arrays
