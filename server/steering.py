"""Steering a run by counts of the training people: when they are asked for, what they change, and what the run remembers of it.

One table group × label × score bin of ``fairness.attribute``, paid together with training (``privacy/counts.py``) or exact under
``privacy.mode: none``. Bins are few, for a sum of noisy cells carries the noise of all of them: with ``fairness.thresholds: fixed`` two,
else the threshold's neighbourhood, which follows the base rate from release to release.
Next on the path: ``strategies/controller.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from fedethos.cells import cell_count, cell_names
from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import BINS, FloatArray
from fedethos.fairness.layout import GROUP_SCORES, Layout
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.server.loss_weights import loss_cuts, loss_weights
from fedethos.storage import JsonValue
from fedethos.strategies.controller import Controller

if TYPE_CHECKING:
    from fedethos.server.decision import AskLayout
    from fedethos.server.measure import Measurement
    from fedethos.server.state import RunState


class Steering(BaseModel):
    """``log_multipliers`` and ``weights`` by cell (``fedethos/cells.py``); ``edge``: the threshold at the last release."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_multipliers: tuple[float, ...]
    weights: tuple[float, ...]
    edge: int = FIXED_EDGE

    @classmethod
    def start(cls, job: Job) -> Steering:
        """Everybody weighs 1."""
        cells = cell_count(job)
        return cls(log_multipliers=(0.0,) * cells, weights=(1.0,) * cells)

    def as_json(self, job: Job) -> dict[str, JsonValue]:
        """Group to label to weight."""
        table: dict[str, dict[str, JsonValue]] = {}
        for (group, label), weight in zip(cell_names(job), self.weights, strict=True):
            table.setdefault(group, {})[label] = weight
        return dict(table)


def steered(ask: AskLayout, state: RunState, job: Job) -> tuple[RunState, Sequence[Measurement]]:
    """The state with the weights of the next rounds, and what was asked for them; the same state and nothing where no release is due."""
    attribute = job.fairness_attribute
    if attribute is None or state.round not in job.steering_rounds:
        return state, ()
    before = state.memory.steering or Steering.start(job)
    by_loss = loss_cuts(job)
    cuts = _cuts(before.edge, job) if by_loss is None else by_loss
    asked = ask(state.arrays, "train", state.round, Layout(attribute=attribute, group_cuts=cuts))
    after = _next(before, asked, cuts, job) if by_loss is None else _next_by_loss(before, asked, job)
    return state.remembering(steering=after), (asked,)


def _next(before: Steering, asked: Measurement, cuts: tuple[int, ...], job: Job) -> Steering:
    table, favorable = asked.tables[GROUP_SCORES], job.data.label.favorable_index
    cut = 0 if len(cuts) == 1 else _base_rate_cut(table.sum(axis=0), favorable)
    counts = np.stack([table[..., : cut + 1].sum(axis=-1), table[..., cut + 1 :].sum(axis=-1)], axis=-1)
    cells = np.array([cut + 1, table.shape[-1] - cut - 1])
    groups = GroupCounts.of(counts, favorable=favorable, noise_variance=asked.noise_variance * cells)
    rule = controller(job)
    multipliers = rule.updated(np.reshape(before.log_multipliers, (-1, 2)), groups)
    weights = rule.weights(multipliers, groups)
    return Steering(log_multipliers=tuple(multipliers.ravel().tolist()), weights=tuple(weights.ravel().tolist()), edge=cuts[cut])


def _next_by_loss(before: Steering, asked: Measurement, job: Job) -> Steering:
    multipliers = np.reshape(before.log_multipliers, (-1, len(job.data.label.values)))
    multipliers, weights = loss_weights(multipliers, asked.tables[GROUP_SCORES], job)
    return before.model_copy(update={"log_multipliers": tuple(multipliers.ravel().tolist()), "weights": tuple(weights.ravel().tolist())})


def controller(job: Job) -> Controller:
    """The job's words as the pure rule."""
    fairness = job.fairness
    return Controller(
        constraint=fairness.constraint,
        favorable=job.data.label.favorable_index,
        learning_rate=fairness.learning_rate,
        max_weight=fairness.max_weight,
        min_group_size=job.privacy.metrics.min_group_size,
    )


def _cuts(edge: int, job: Job) -> tuple[int, ...]:
    if job.fairness.thresholds == "fixed":
        return (FIXED_EDGE,)
    return tuple(sorted({max(1, edge - 1), edge, min(BINS - 1, edge + 1)}))


def _base_rate_cut(scores: FloatArray, favorable: int) -> int:
    """The cut whose share of favorable predictions is nearest the base rate, as in ``fairness/threshold.py``."""
    selected = scores.sum() - np.cumsum(scores.sum(axis=0))[:-1]
    return int(np.argmin(np.abs(selected - scores[favorable].sum())))
