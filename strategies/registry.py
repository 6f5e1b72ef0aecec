"""From the job's words to a Flower strategy, and what of it a checkpoint must keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi, Strategy

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.strategies.fedavg import AdapterFedAvg
from fedethos.strategies.fedex import FedEx
from fedethos.strategies.fedsb import FedSb
from fedethos.strategies.fedsvd import FedSvd
from fedethos.strategies.ffa import FfaLora
from fedethos.strategies.flexlora import FlexLora
from fedethos.strategies.flora import Flora
from fedethos.strategies.rolora import RoLora

Moments = dict[str, npt.NDArray[np.floating]]

_RULES = {rule.rule: rule for rule in (AdapterFedAvg, FfaLora, RoLora, FedSvd, FedEx, FlexLora, FedSb)}
_ADAPTIVE = {"fedadam": FedAdam, "fedyogi": FedYogi, "fedadagrad": FedAdagrad}  # Reddi et al. 2020, as Flower has them

_MOMENTS = ("m_t", "v_t")  # arrays by name in Flower's adaptive strategies
_MOMENTUM = "momentum_vector"  # Flower's FedAvgM keeps a list in the order of the sorted names


def make_strategy(job: Job, cohort_size: int) -> Strategy:
    """The strategy for a round with ``cohort_size`` sites; the grid that it sees holds the cohort alone."""
    return _strategy(job)(min_train_nodes=cohort_size, min_evaluate_nodes=cohort_size, min_available_nodes=cohort_size)


def _strategy(job: Job) -> Callable[..., Strategy]:
    federation = job.federation
    if federation.server_optimizer == "fedavgm":  # Hsu et al. 2019
        return partial(FedAvgM, server_learning_rate=job.server_learning_rate, server_momentum=federation.server_momentum)
    if federation.server_optimizer != "none":
        return partial(_ADAPTIVE[federation.server_optimizer], eta=job.server_learning_rate)
    return partial(Flora, seed=job.simulation.seed) if job.aggregation == "flora" else _RULES[job.aggregation]


def strategy_arrays(strategy: Strategy) -> Moments:
    """The strategy's state between rounds as named arrays, ``m_t/<tensor>``; empty for a stateless one."""
    if (momentum := getattr(strategy, _MOMENTUM, None)) is not None:
        return {f"{_MOMENTUM}/{number:05d}": np.asarray(array, dtype=np.float64) for number, array in enumerate(momentum)}
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
    moments: dict[str, Moments] = {moment: {} for moment in (*_MOMENTS, _MOMENTUM) if hasattr(strategy, moment)}
    for key, array in arrays.items():
        moment, _, name = key.partition("/")
        if moment not in moments:
            raise FedethosError("RUN-931", "The checkpoint holds the state of another strategy.", where=key)
        moments[moment][name] = array
    for moment, state in moments.items():
        if state:
            setattr(strategy, moment, [state[name] for name in sorted(state)] if moment == _MOMENTUM else state)
