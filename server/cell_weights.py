"""The weights of cells that the coordinator asks sites to train with, from the job and what the run has released so far.

Next on the path: ``client/cell_weights.py``, which checks and bounds them.
"""

from __future__ import annotations

from fedethos.cells import constant_weights
from fedethos.job import Job
from fedethos.server.state import RunState


def cell_weights(job: Job, state: RunState) -> tuple[float, ...] | None:
    """Weights of the next round, in the order of ``fedethos/cells.py``; None when the job weighs nothing."""
    return constant_weights(job)
