"""Measuring the global adapter: summed tables from the sites, or from the exact evaluation that only a simulation has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from fedethos.fairness.histograms import check_tables, pool, table_shapes
from fedethos.fairness.summary import Summary, summarise
from fedethos.fairness.threshold import FIXED_EDGE, base_rate_edge
from fedethos.job import Job
from fedethos.messages import EVALUATE, Arrays, EvaluateReply, Reply, Request, SplitName, Tables, encode_request
from fedethos.server.exchange import exchange, require_quorum
from fedethos.server.site import Site

MeasureBasis = Literal["oracle", "unprotected", "released"]
METRICS = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy")


@dataclass(frozen=True)
class Measurement:
    """``tables``: attribute -> int64[groups, labels, bins] over all sites. ``exact_auc`` only from exact scores."""

    tables: Tables
    exact_auc: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0


class Measure(Protocol):
    """Evaluate an adapter on one split of all sites."""

    @property
    def basis(self) -> MeasureBasis: ...

    def __call__(self, arrays: Arrays, split: SplitName, round: int) -> Measurement: ...


class ExactMeasure(Measure, Protocol):
    """What only a simulation has: exact values, and the exact number of people by split."""

    @property
    def people(self) -> Mapping[SplitName, int]: ...


@dataclass(frozen=True)
class EvaluateBySites:
    """Ask every site by message. Until private counts are paid from a ledger, sites answer only under ``privacy.mode: none``."""

    grid: Grid
    job: Job
    run: str
    sites: Mapping[int, Site]
    basis: MeasureBasis = "unprotected"

    def __call__(self, arrays: Arrays, split: SplitName, round: int) -> Measurement:
        request = Request(job_sha256=self.job.sha256, run=self.run, round=round, attempt=0, arrays=arrays, split=split)
        messages = [Message(encode_request(EVALUATE, request), node_id, EVALUATE, group_id=str(round)) for node_id in self.sites]
        outcome = exchange(
            self.grid, messages, self.sites, deadline=self.job.federation.deadline, validate=self._check, on_state=lambda *_: None
        )
        require_quorum(outcome, self.job.federation.min_sites, doing=f"evaluation of round {round}")
        tables = [reply.tables for reply in outcome.replies.values() if isinstance(reply, EvaluateReply)]
        return Measurement(pool(tables, self._shapes), bytes_up=outcome.bytes_up, bytes_down=outcome.bytes_down)

    def _check(self, site: Site, reply: Reply) -> None:
        if isinstance(reply, EvaluateReply):
            check_tables(reply.tables, self._shapes)

    @property
    def _shapes(self) -> dict[str, tuple[int, int, int]]:
        return shapes_of(self.job)


def decision_edge(validation: Tables, job: Job) -> int:
    """Bin edge of the decision threshold (``fairness.thresholds``), from pooled validation tables."""
    if job.fairness.thresholds == "fixed":
        return FIXED_EDGE
    favorable = job.data.label.values.index(job.data.label.favorable)
    return base_rate_edge(next(iter(validation.values())), favorable)


def shapes_of(job: Job) -> dict[str, tuple[int, int, int]]:
    """Shapes of the tables that the job asks every site for."""
    return table_shapes(job.data.sensitive, len(job.data.label.values))


def describe(measurement: Measurement, edge: int, job: Job, *, withhold: bool = True) -> Summary:
    """Metrics with intervals at the given threshold. Small groups are withheld unless only a simulation sees the result."""
    return summarise(
        measurement.tables,
        edge=edge,
        categories=job.data.sensitive,
        label_values=job.data.label.values,
        favorable=job.data.label.favorable,
        min_group_size=job.privacy.metrics.min_group_size if withhold else 1,
        tolerance=job.privacy.metrics.tolerance,
        exact_auc=measurement.exact_auc,
    )
