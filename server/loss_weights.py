"""Losses that act by weights of cells: reweighing and group DRO, from the job's constants or from counts of the training people.

The counts are those of ``steering.py``: one charged table group × label × score bin. Next on the path: ``strategies/reweighing.py``,
``strategies/group_dro.py``.
"""

from __future__ import annotations

import numpy as np

from fedethos.fairness.histograms import FloatArray, IntArray
from fedethos.job import Job
from fedethos.job_data import UNKNOWN
from fedethos.strategies import group_dro
from fedethos.strategies.reweighing import reweighing_weights


def loss_cuts(job: Job) -> tuple[int, ...] | None:
    """Score bins of the counts that the job's loss asks for; none for reweighing, which reads no score. None: it asks for no counts."""
    return {"reweighing": (), "group_dro": group_dro.CUTS}.get(job.fairness.loss)


def loss_weights(log_multipliers: FloatArray, table: IntArray, job: Job) -> tuple[FloatArray, FloatArray]:
    """The next log multipliers and weights by cell, float64[G, L] each, from counts int64[G, L, bins] of the training people."""
    most, least = job.fairness.max_weight, job.privacy.metrics.min_group_size
    if job.fairness.loss == "reweighing":
        weights = reweighing_weights(table.sum(axis=-1).astype(np.float64), max_weight=most, least=least)
        return np.log(weights), weights
    losses, people = group_dro.group_losses(table, job.data.label.favorable_index)
    rate = job.fairness.learning_rate or 3.0
    moved = group_dro.updated(log_multipliers[:, 0], losses, people, learning_rate=rate, max_weight=most, least=least)
    labels = (1, log_multipliers.shape[1])
    return np.tile(moved[:, None], labels), np.tile(group_dro.group_weights(moved, people, max_weight=most)[:, None], labels)


def constant_reweighing(job: Job) -> tuple[float, ...] | None:
    """Weights by cell from ``fairness.training_shares``; None when the job does not reweigh by constants."""
    shares = job.fairness.training_shares
    if job.fairness.loss != "reweighing" or shares is None or job.fairness_attribute is None:
        return None
    groups = [*job.attributes[job.fairness_attribute], UNKNOWN]
    people = np.array([[shares.get(group, {}).get(label, 0.0) for label in job.data.label.values] for group in groups])
    return tuple(reweighing_weights(people, max_weight=job.fairness.max_weight).ravel().tolist())
