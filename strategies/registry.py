"""From the job's words to a Flower strategy, and what of it a checkpoint must keep."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from flwr.serverapp.strategy import FedAdam, Strategy

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.strategies.fedavg import AdapterFedAvg
from fedethos.strategies.ffa import FfaLora

Moments = dict[str, npt.NDArray[np.floating]]

_MOMENTS = ("m_t", "v_t")  # array attributes of Flower's adaptive strategies


def make_strategy(job: Job, cohort_size: int) -> Strategy:
    """The strategy for a round with ``cohort_size`` sites; the grid that it sees holds the cohort alone."""
    if job.federation.server_optimizer == "fedadam":
        return FedAdam(
            eta=job.federation.server_learning_rate,
            min_train_nodes=cohort_size,
            min_evaluate_nodes=cohort_size,
            min_available_nodes=cohort_size,
        )
    rule = FfaLora if job.aggregation == "ffa" else AdapterFedAvg
    return rule(min_train_nodes=cohort_size, min_evaluate_nodes=cohort_size, min_available_nodes=cohort_size)


def strategy_arrays(strategy: Strategy) -> Moments:
    """The strategy's state between rounds as named arrays, ``m_t/<tensor>``; empty for a stateless one."""
    return {
        f"{moment}/{name}": np.asarray(array, dtype=np.float64)
        for moment in _MOMENTS
        for name, array in (getattr(strategy, moment, None) or {}).items()
    }


def restore_strategy(strategy: Strategy, arrays: Mapping[str, npt.NDArray[np.floating]]) -> None:
    """Put back what ``strategy_arrays`` gave.

    Raises
    ------
    FedethosError
        RUN-931 when the arrays belong to another strategy.
    """
    moments: dict[str, Moments] = {moment: {} for moment in _MOMENTS if hasattr(strategy, moment)}
    for key, array in arrays.items():
        moment, _, name = key.partition("/")
        if moment not in moments:
            raise FedethosError("RUN-931", "The checkpoint holds the state of another strategy.", where=key)
        moments[moment][name] = array
    for moment, state in moments.items():
        if state:
            setattr(strategy, moment, state)
