"""Steering a run by counts of the training people: when they are asked for, what they change, and what the run remembers of it.

One table group × label × score bin of ``fairness.attribute``, paid together with training (``privacy/counts.py``) or exact under
``privacy.mode: none``. Bins are few, for a sum of noisy cells carries the noise of all of them: with ``fairness.thresholds: fixed`` two,
else the threshold's neighbourhood, which follows the base rate from release to release.
Next on the path: ``strategies/controller.py`` (weights of groups), ``strategies/fairfed.py`` (weights of sites).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from fedethos.cells import cell_count, cell_names
from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import BINS, IntArray
from fedethos.fairness.layout import GROUP_SCORES, Layout
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.server.site import Site
from fedethos.storage import JsonValue
from fedethos.strategies.controller import Controller
from fedethos.strategies.fairfed import FairFed, aggregation_shares

if TYPE_CHECKING:
    from fedethos.server.decision import AskLayout
    from fedethos.server.measure import Measurement
    from fedethos.server.state import RunState


class Steering(BaseModel):
    """``log_multipliers`` and ``weights`` by cell (``fedethos/cells.py``), ``sites``: FairFed's weights; ``edge``: the last threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_multipliers: tuple[float, ...]
    weights: tuple[float, ...]
    sites: dict[str, float]
    edge: int = FIXED_EDGE

    @classmethod
    def start(cls, job: Job, sites: Iterable[Site] = ()) -> Steering:
        """Everybody weighs 1, sites what was approved."""
        cells = cell_count(job)
        return cls(log_multipliers=(0.0,) * cells, weights=(1.0,) * cells, sites={site.name: site.share for site in sites})

    def as_json(self, job: Job) -> dict[str, JsonValue]:
        """What a line of rounds.jsonl says about it."""
        if job.fairness.strategy == "fairfed":
            return {"site_weights": dict(aggregation_shares(self.sites, job.robustness.weight_cap))}
        table: dict[str, dict[str, JsonValue]] = {}
        for (group, label), weight in zip(cell_names(job), self.weights, strict=True):
            table.setdefault(group, {})[label] = weight
        return {"weights": dict(table)}


def site_shares(job: Job, state: RunState, cohort: Iterable[Site]) -> dict[str, float]:
    """Each site's weight in the aggregation: the approved one, but for a strategy that moves it."""
    shares = {site.name: site.share for site in cohort}
    if job.fairness.strategy != "fairfed" or state.memory.steering is None:
        return shares
    return aggregation_shares({name: state.memory.steering.sites[name] for name in shares}, job.robustness.weight_cap)


def steered(ask: AskLayout, state: RunState, job: Job, sites: Iterable[Site]) -> tuple[RunState, Sequence[Measurement]]:
    """The state with the weights of the next rounds, and what was asked for them; the same state and nothing where no release is due."""
    attribute = job.fairness_attribute
    if attribute is None or state.round not in job.steering_rounds:
        return state, ()
    before = state.memory.steering or Steering.start(job, sites)
    cuts = _cuts(before.edge, job)
    asked = ask(state.arrays, "train", state.round, Layout(attribute=attribute, group_cuts=cuts))
    move = _site_weights if job.fairness.strategy == "fairfed" else _cell_weights
    return state.remembering(steering=move(before, asked, cuts, job)), (asked,)


def _cell_weights(before: Steering, asked: Measurement, cuts: tuple[int, ...], job: Job) -> Steering:
    cut, groups = _groups(asked, cuts, job)
    rule = Controller(
        constraint=job.fairness.constraint,
        favorable=job.data.label.favorable_index,
        learning_rate=job.fairness.learning_rate or 3.0,
        max_weight=job.fairness.max_weight,
        min_group_size=job.privacy.metrics.min_group_size,
    )
    multipliers = rule.updated(np.reshape(before.log_multipliers, (-1, 2)), groups)
    weights = rule.weights(multipliers, groups)
    moved = {"log_multipliers": tuple(multipliers.ravel().tolist()), "weights": tuple(weights.ravel().tolist())}
    return before.model_copy(update={**moved, "edge": cuts[cut]})


def _site_weights(before: Steering, asked: Measurement, cuts: tuple[int, ...], job: Job) -> Steering:
    cut, everybody = _groups(asked, cuts, job)
    rule = FairFed(
        constraint=job.fairness.constraint,
        learning_rate=job.fairness.learning_rate or 1.0,
        min_group_size=job.privacy.metrics.min_group_size,
    )
    sites = {
        name: GroupCounts.of(_decided(tables[GROUP_SCORES], cut), favorable=job.data.label.favorable_index)
        for name, tables in sorted(asked.by_site.items())
    }
    return before.model_copy(update={"sites": rule.updated(before.sites, sites, everybody), "edge": cuts[cut]})


def _groups(asked: Measurement, cuts: tuple[int, ...], job: Job) -> tuple[int, GroupCounts]:
    """The cut that is the threshold, and everybody's counts there."""
    table, favorable = asked.tables[GROUP_SCORES], job.data.label.favorable_index
    cut = 0 if len(cuts) == 1 else _base_rate_cut(table.sum(axis=0), favorable)
    cells = np.array([cut + 1, table.shape[-1] - cut - 1])
    return cut, GroupCounts.of(_decided(table, cut), favorable=favorable, noise_variance=asked.noise_variance * cells)


def _decided(table: IntArray, cut: int) -> IntArray:
    return np.stack([table[..., : cut + 1].sum(axis=-1), table[..., cut + 1 :].sum(axis=-1)], axis=-1)


def _cuts(edge: int, job: Job) -> tuple[int, ...]:
    if job.fairness.thresholds == "fixed":
        return (FIXED_EDGE,)
    return tuple(sorted({max(1, edge - 1), edge, min(BINS - 1, edge + 1)}))


def _base_rate_cut(scores: IntArray, favorable: int) -> int:
    """The cut whose share of favorable predictions is nearest the base rate, as in ``fairness/threshold.py``."""
    selected = scores.sum() - np.cumsum(scores.sum(axis=0))[:-1]
    return int(np.argmin(np.abs(selected - scores[favorable].sum())))
