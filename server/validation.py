"""Checks on a site's reply before any strategy sees it. Counts of people are checked in ``server/plausibility.py``."""

from __future__ import annotations

import math

import numpy as np

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import Arrays, Basis, EvaluateReply, TrainReply

LARGEST_VALUE = 1e6
"""Of an adapter's number. Trained ones are a few units; one such value decides the mean of all sites."""

_MOST_REPLANS = 10  # a lost round is charged and planned anew, so that a site makes more steps than the job has


def check_update(reply: TrainReply, sent: Arrays, job: Job) -> None:
    """Compare an update with what was ``sent`` of the tensors that train in its round.

    Refuse other names or shapes (AGG-702), values that are not finite (AGG-703) or larger than ``LARGEST_VALUE`` (AGG-715), a step
    longer than ``robustness.max_update_norm`` (AGG-704), or a privacy statement that is not the job's (AGG-705)."""
    if {name: array.shape for name, array in reply.arrays.items()} != {name: array.shape for name, array in sent.items()}:
        raise FedethosError("AGG-702", "An update has other tensor names or shapes than were sent.")
    largest = [float(np.abs(array).max()) for array in reply.arrays.values() if array.size]
    if not all(math.isfinite(value) for value in largest):
        raise FedethosError("AGG-703", "An update has values that are not finite.")
    if any(value > LARGEST_VALUE for value in largest):
        raise FedethosError("AGG-715", f"An update has values beyond {LARGEST_VALUE:g}.")
    limit = job.robustness.max_update_norm
    if limit is not None and update_norm(reply.arrays, sent) > limit:
        raise FedethosError("AGG-704", "An update is longer than the job allows.", where="robustness.max_update_norm")
    private = job.privacy.mode != "none"
    _check_epsilon(reply.epsilon, reply.basis, job)
    most_steps = _MOST_REPLANS * job.federation.rounds * job.training.local_steps if private else job.training.local_steps
    expected = (job.unit, job.privacy.adjacency, job.privacy.delta if private else None)
    if (reply.unit, reply.adjacency, reply.delta) != expected or not 0 <= reply.steps <= most_steps:
        raise _another_statement("unit, adjacency, delta or steps")


def check_counts_statement(reply: EvaluateReply, job: Job) -> None:
    """AGG-705 when what a site says about the protection of its counts is not the job's."""
    _check_epsilon(reply.epsilon, reply.basis, job)
    if (reply.sigma is None) != (reply.epsilon is None) or (
        reply.sigma is not None and not (math.isfinite(reply.sigma) and reply.sigma > 0)
    ):
        raise _another_statement("sigma")


def _check_epsilon(epsilon: float | None, basis: Basis, job: Job) -> None:
    if job.privacy.mode == "none":
        if epsilon is not None or basis is not Basis.UNPROTECTED:
            raise _another_statement("epsilon")
    elif epsilon is None or job.privacy.epsilon is None or basis is not Basis.CHARGED or not 0 <= epsilon <= job.privacy.epsilon + 1e-6:
        raise _another_statement("epsilon")


def _another_statement(where: str) -> FedethosError:
    return FedethosError("AGG-705", "A reply's privacy statement is not the job's.", where=where)


def update_norm(arrays: Arrays, sent: Arrays) -> float:
    """L2 distance over all tensors, float64."""
    return float(np.sqrt(sum(np.square(arrays[name].astype(np.float64) - sent[name]).sum() for name in sent)))
