"""The weights of cells that the coordinator asks sites to train with, from the job and what the run has released so far.

Next on the path: ``server/steering.py``, which moves them; ``client/cell_weights.py``, which checks and bounds them.
"""

from __future__ import annotations

from fedethos.cells import constant_weights
from fedethos.job import Job
from fedethos.server.loss_weights import constant_reweighing
from fedethos.server.state import RunState
from fedethos.server.steering import Steering


def cell_weights(job: Job, state: RunState) -> tuple[float, ...] | None:
    """Weights of the next round, in the order of ``fedethos/cells.py``; None when the job weighs nothing."""
    moved = state.memory.steering if job.weighs_cells else None
    return first_weights(job) if moved is None else moved.weights


def first_weights(job: Job) -> tuple[float, ...] | None:
    """Weights of the first round: the job's constants, or 1 for every cell that counts will weigh."""
    if job.weighs_cells and job.steering_rounds:
        return Steering.start(job).weights
    return constant_reweighing(job) or constant_weights(job)
