"""The cells that a job weighs: (group, label) of one sensitive attribute, in one order for coordinator and node.

Cell ``group * labels + label``, the group ``unknown`` last: ``(categories + 1) * labels`` cells. The weights that a job writes down
are public constants; those of a request are checked and bounded by ``client/cell_weights.py``.
"""

from __future__ import annotations

from fedethos.job import Job
from fedethos.job_data import UNKNOWN


def weighed_attribute(job: Job) -> str:
    """The sensitive attribute of the cells, ``Job.fairness_attribute``, which a job that weighs has."""
    if job.fairness_attribute is None:
        raise ValueError("this job declares no sensitive attribute")
    return job.fairness_attribute


def cell_count(job: Job) -> int:
    """Number of cells, the group ``unknown`` included."""
    return len(_groups(job)) * len(job.data.label.values)


def constant_weights(job: Job) -> tuple[float, ...] | None:
    """``fairness.cell_weights`` in the order of the cells, 1 where the job names none; None when the job weighs nothing."""
    named = job.fairness.cell_weights
    if named is None:
        return None
    return tuple(named.get(group, {}).get(label, 1.0) for group in _groups(job) for label in job.data.label.values)


def cell_names(job: Job) -> list[tuple[str, str]]:
    """(group, label) of each cell."""
    return [(group, label) for group in _groups(job) for label in job.data.label.values]


def _groups(job: Job) -> list[str]:
    return [*job.attributes[weighed_attribute(job)], UNKNOWN]
