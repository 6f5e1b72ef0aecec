"""The weights of cells that the coordinator asks sites to train with, from the job and what the run has released so far.

Next on the path: ``server/steering.py``, which moves them; ``client/cell_weights.py``, which checks and bounds them.
"""

from __future__ import annotations

from fedethos.cells import constant_weights
from fedethos.job import Job
from fedethos.server.state import RunState
from fedethos.server.steering import Steering


def cell_weights(job: Job, state: RunState) -> tuple[float, ...] | None:
    """Weights of the next round, in the order of ``fedethos/cells.py``; None when the job weighs nothing."""
    if job.fairness.strategy != "controller":
        return constant_weights(job)
    return (state.memory.steering or Steering.start(job)).weights
