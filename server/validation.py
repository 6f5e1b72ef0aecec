"""Checks on a site's reply before any strategy sees it."""

from __future__ import annotations

import numpy as np

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import Arrays, TrainReply


def check_update(reply: TrainReply, sent: Arrays, job: Job) -> None:
    """Compare an update with what was ``sent`` of the tensors that train in its round.

    Refuse other names or shapes (AGG-702), values that are not finite (AGG-703), a step longer than
    ``robustness.max_update_norm`` (AGG-704), or a privacy statement that is not the job's (AGG-705)."""
    if {name: array.shape for name, array in reply.arrays.items()} != {name: array.shape for name, array in sent.items()}:
        raise FedethosError("AGG-702", "An update has other tensor names or shapes than were sent.")
    if not all(np.isfinite(array).all() for array in reply.arrays.values()):
        raise FedethosError("AGG-703", "An update has values that are not finite.")
    limit = job.robustness.max_update_norm
    if limit is not None and update_norm(reply.arrays, sent) > limit:
        raise FedethosError("AGG-704", "An update is longer than the job allows.", where="robustness.max_update_norm")
    expected = (job.unit, job.privacy.adjacency, job.privacy.mode == "none")
    if (reply.unit, reply.adjacency, reply.epsilon is None) != expected:
        raise FedethosError("AGG-705", "An update's privacy statement is not the job's.")
    if reply.epsilon is not None and not (job.privacy.epsilon is not None and 0 <= reply.epsilon <= job.privacy.epsilon + 1e-6):
        raise FedethosError("AGG-705", "An update's privacy statement is not the job's.", where="epsilon")


def update_norm(arrays: Arrays, sent: Arrays) -> float:
    """L2 distance over all tensors, float64."""
    return float(np.sqrt(sum(np.square(arrays[name].astype(np.float64) - sent[name]).sum() for name in sent)))
