"""Weights of cells as a node takes them from a coordinator: checked, bounded, and dealt to its records.

A unit's clipped gradient is multiplied by the weight of its cell, and the noise grows with the largest weight of all declared
cells, whether or not anybody is in them. Both are public: they come from the request and the job, never from this site's records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedethos.cells import cell_count, weighed_attribute
from fedethos.errors import FedethosError
from fedethos.job import Job

if TYPE_CHECKING:
    from fedethos.client.examples import Examples

Floats = npt.NDArray[np.float64]


def accepted_weights(proposed: Sequence[float] | None, job: Job) -> Floats | None:
    """The weights of a request, float64[cells], none above ``fairness.max_weight``; None for a job without weights.

    Raises
    ------
    FedethosError
        SEC-640 for weights where the job has none, or none where it has some; SEC-641 for a wrong number of them; SEC-642 when one is
        negative or not finite, or when all are 0.
    """
    if (proposed is None) != (not job.weighs_cells):
        raise FedethosError("SEC-640", "A message and the approved job disagree on whether cells are weighed.", why="Nothing was computed.")
    if proposed is None:
        return None
    weights = np.asarray(proposed, dtype=np.float64)
    if weights.shape != (cell_count(job),):
        raise FedethosError(
            "SEC-641", "A message carries another number of cell weights than there are cells.", why="Nothing was computed."
        )
    if not (np.isfinite(weights).all() and (weights >= 0.0).all() and weights.any()):
        raise FedethosError("SEC-642", "A cell weight is negative or not finite, or all are 0.", why="Nothing was computed.")
    return np.minimum(weights, job.fairness.max_weight)


def weighed(examples: Examples, weights: Floats | None, job: Job) -> Examples:
    """The same records, each with the weight of its cell."""
    if weights is None:
        return examples
    cells = examples.groups[weighed_attribute(job)] * len(job.data.label.values) + examples.label
    return replace(examples, weight=weights[cells])
