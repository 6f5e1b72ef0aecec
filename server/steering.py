"""Steering a run by counts of the training people: when they are asked for, what they change, and what the run remembers of it.

One table group × label × score bin of ``fairness.attribute``, paid together with training (``privacy/counts.py``) or exact under
``privacy.mode: none``. Bins are few, for a sum of noisy cells carries the noise of all of them: with ``fairness.thresholds: fixed`` two,
else six around the last threshold, which follow the base rate from release to release; before the first release nobody knows where
the scores are, so that it has sixteen.
Next on the path: ``server/steering_rules.py``, then the strategy's own file in ``strategies/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from fedethos.cells import cell_count, cell_names
from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import BINS, IntArray
from fedethos.fairness.layout import DEFAULT_CUTS, GROUP_SCORES, Layout
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.job_strategy import SITE_STRATEGIES
from fedethos.messages import Arrays
from fedethos.server.loss_weights import loss_cuts, loss_weights
from fedethos.server.site import Site
from fedethos.server.steering_rules import moved_cells, moved_sites, site_risks
from fedethos.storage import JsonValue
from fedethos.strategies import qfedavg
from fedethos.strategies.fairfed import aggregation_shares

_REACH = (1, 3)
"""Bins from the last threshold to where it may be next."""

if TYPE_CHECKING:
    from fedethos.server.decision import AskLayout
    from fedethos.server.measure import Measurement
    from fedethos.server.state import RunState


class Steering(BaseModel):
    """``log_multipliers`` and ``weights`` by cell (``fedethos/cells.py``), ``edge``: the last threshold.

    ``sites``: weights of sites, which FairFed and AFL move; ``risks``: F_k by site, q-FedAvg's alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_multipliers: tuple[float, ...]
    weights: tuple[float, ...]
    sites: dict[str, float]
    risks: dict[str, float] = {}
    edge: int = FIXED_EDGE

    @classmethod
    def start(cls, job: Job, sites: Iterable[Site] = ()) -> Steering:
        """Everybody weighs 1, sites what was approved."""
        cells = cell_count(job)
        return cls(log_multipliers=(0.0,) * cells, weights=(1.0,) * cells, sites={site.name: site.share for site in sites})

    def as_json(self, job: Job) -> dict[str, JsonValue]:
        """What a line of rounds.jsonl says about it."""
        if job.fairness.strategy in SITE_STRATEGIES:
            return {"site_weights": dict(self.site_shares(self.sites, job))}
        table: dict[str, dict[str, JsonValue]] = {}
        for (group, label), weight in zip(cell_names(job), self.weights, strict=True):
            table.setdefault(group, {})[label] = weight
        return {"weights": dict(table)}

    def site_shares(self, names: Iterable[str], job: Job) -> dict[str, float]:
        """Shares in the aggregation of the sites that take part, none above the cap."""
        weights = {name: self.sites[name] for name in names}
        if job.fairness.strategy == "qfedavg" and self.risks:
            weights = qfedavg.weighted(weights, self.risks, q=job.fairness.q)
        return aggregation_shares(weights, job.robustness.weight_cap)


def site_shares(job: Job, state: RunState, cohort: Iterable[Site]) -> dict[str, float]:
    """Each site's weight in the aggregation: the approved one, but for a strategy that moves it."""
    shares = {site.name: site.share for site in cohort}
    if job.fairness.strategy not in SITE_STRATEGIES or state.memory.steering is None:
        return shares
    return state.memory.steering.site_shares(shares, job)


def steered_step(job: Job, state: RunState, updates: Mapping[str, Arrays], shares: Mapping[str, float], mean: Arrays) -> Arrays:
    """The adapter after the round: the mean of the updates, or, for q-FedAvg, a shorter step towards it."""
    steering = state.memory.steering
    if job.fairness.strategy != "qfedavg" or steering is None or not steering.risks:
        return mean
    lipschitz = 1.0 / job.training.learning_rate
    return qfedavg.shortened(state.arrays, updates, shares, mean, steering.risks, q=job.fairness.q, lipschitz=lipschitz)


def steered(ask: AskLayout, state: RunState, job: Job, sites: Iterable[Site]) -> tuple[RunState, Sequence[Measurement]]:
    """The state with the weights of the next rounds, and what was asked for them; the same state and nothing where no release is due."""
    attribute = job.fairness_attribute
    if attribute is None or state.round not in job.steering_rounds:
        return state, ()
    known, by_loss = state.memory.steering, loss_cuts(job)
    before = known or Steering.start(job, sites)
    cuts = _cuts(known, job) if by_loss is None else by_loss
    asked = ask(state.arrays, "train", state.round, Layout(attribute=attribute, group_cuts=cuts))
    if by_loss is not None:
        return state.remembering(steering=_loss_weights(before, asked, job)), (asked,)
    move = _site_weights if job.fairness.strategy in SITE_STRATEGIES else _cell_weights
    return state.remembering(steering=move(before, asked, cuts, job)), (asked,)


def _loss_weights(before: Steering, asked: Measurement, job: Job) -> Steering:
    multipliers = np.reshape(before.log_multipliers, (-1, len(job.data.label.values)))
    multipliers, weights = loss_weights(multipliers, asked.tables[GROUP_SCORES], job)
    return before.model_copy(update={"log_multipliers": tuple(multipliers.ravel().tolist()), "weights": tuple(weights.ravel().tolist())})


def _cell_weights(before: Steering, asked: Measurement, cuts: tuple[int, ...], job: Job) -> Steering:
    cut, groups = _groups(asked, cuts, job)
    multipliers, weights = moved_cells(np.reshape(before.log_multipliers, (-1, 2)), np.reshape(before.weights, (-1, 2)), groups, job)
    moved = {"log_multipliers": tuple(multipliers.ravel().tolist()), "weights": tuple(weights.ravel().tolist())}
    return before.model_copy(update={**moved, "edge": cuts[cut]})


def _site_weights(before: Steering, asked: Measurement, cuts: tuple[int, ...], job: Job) -> Steering:
    cut, everybody = _groups(asked, cuts, job)
    sites = {
        name: GroupCounts.of(_decided(tables[GROUP_SCORES], cut), favorable=job.data.label.favorable_index)
        for name, tables in sorted(asked.by_site.items())
    }
    if job.fairness.strategy == "qfedavg":
        risks = site_risks(before.risks or dict.fromkeys(before.sites, float("nan")), sites, everybody)
        return before.model_copy(update={"risks": risks, "edge": cuts[cut]})
    return before.model_copy(update={"sites": moved_sites(before.sites, sites, everybody, job), "edge": cuts[cut]})


def _groups(asked: Measurement, cuts: tuple[int, ...], job: Job) -> tuple[int, GroupCounts]:
    """The cut that is the threshold, and everybody's counts there."""
    table, favorable = asked.tables[GROUP_SCORES], job.data.label.favorable_index
    cut = 0 if len(cuts) == 1 else _base_rate_cut(table.sum(axis=0), favorable)
    cells = np.array([cut + 1, table.shape[-1] - cut - 1])
    return cut, GroupCounts.of(_decided(table, cut), favorable=favorable, noise_variance=asked.noise_variance * cells)


def _decided(table: IntArray, cut: int) -> IntArray:
    return np.stack([table[..., : cut + 1].sum(axis=-1), table[..., cut + 1 :].sum(axis=-1)], axis=-1)


def _cuts(known: Steering | None, job: Job) -> tuple[int, ...]:
    if job.fairness.thresholds == "fixed":
        return (FIXED_EDGE,)
    if known is None:
        return DEFAULT_CUTS
    return tuple(sorted({min(max(known.edge + step, 1), BINS - 1) for reach in _REACH for step in (-reach, 0, reach)}))


def _base_rate_cut(scores: IntArray, favorable: int) -> int:
    """The cut whose share of favorable predictions is nearest the base rate, as in ``fairness/threshold.py``."""
    selected = scores.sum() - np.cumsum(scores.sum(axis=0))[:-1]
    return int(np.argmin(np.abs(selected - scores[favorable].sum())))
