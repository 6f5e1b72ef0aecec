"""Measuring the global adapter: summed tables from the sites, or from the exact evaluation that only a simulation has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from flwr.app import Message

from fedethos.fairness.histograms import check_tables, pool, table_shapes
from fedethos.fairness.layout import FINE, SCORES, WHOLE, Layout
from fedethos.fairness.summary import Summary, summarise, summarise_scores
from fedethos.fairness.threshold import FIXED_EDGE, base_rate_edge
from fedethos.job import Job
from fedethos.messages import EVALUATE, Arrays, EvaluateReply, Reply, SplitName, Tables, encode_request
from fedethos.privacy.counts import watches_groups
from fedethos.privacy.discrete_gaussian import discrete_gaussian_variance
from fedethos.server.exchange import Exchange
from fedethos.server.plausibility import check_counts
from fedethos.server.roster import Roster
from fedethos.server.site import Site
from fedethos.server.validation import check_counts_statement

MeasureBasis = Literal["oracle", "unprotected", "released"]
METRICS = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy")


@dataclass(frozen=True)
class Measurement:
    """``tables`` summed over all sites: full histograms by attribute, or the noisy tables of a ``Layout``.

    ``exact_auc`` only from exact scores. ``noise_variance``: of one cell of the sum. ``epsilon``: what each site has spent, this included.
    ``by_site``: the tables as each site sent them; empty where nobody sent any.
    """

    tables: Tables
    exact_auc: float | None = None
    noise_variance: float = 0.0
    epsilon: Mapping[str, float] = field(default_factory=dict)
    by_site: Mapping[str, Tables] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0


class Measure(Protocol):
    """Evaluate an adapter on one split of all sites: full histograms, or the tables of a ``Layout``."""

    @property
    def basis(self) -> MeasureBasis: ...

    def __call__(self, arrays: Arrays, split: SplitName, round: int, layout: Layout = WHOLE) -> Measurement: ...

    def of_personal(self) -> Measure:
        """The same of every site's personal adapter in place of the one that is given."""


class ExactMeasure(Measure, Protocol):
    """What only a simulation has: exact values, and the exact number of people by split."""

    @property
    def people(self) -> Mapping[SplitName, int]: ...

    def of_personal(self) -> ExactMeasure: ...


@dataclass(frozen=True)
class Everybody:
    """All sites of a run, to be asked for counts by message; ``personal``: for those of their personal adapters."""

    roster: Roster
    personal: bool = False

    @property
    def job(self) -> Job:
        return self.roster.job

    def ask(
        self, arrays: Arrays, split: SplitName, round: int, layout: Layout, check: Callable[[Site, EvaluateReply], None]
    ) -> tuple[dict[str, EvaluateReply], Exchange]:
        """Valid replies by site. ``check`` raises FedethosError to refuse one; AGG-710 below the quorum."""

        def accept(site: Site, reply: Reply) -> Reply:
            if isinstance(reply, EvaluateReply):
                check(site, reply)
            return reply

        request = replace(
            self.roster.request(round, arrays),
            split=split,
            cuts=layout.cuts,
            edge=layout.edge,
            attribute=layout.rules.attribute if layout.rules else layout.attribute,
            group_cuts=layout.group_cuts,
            rules=layout.rules.numbers if layout.rules else None,
            personal=self.personal,
        )
        content = encode_request(EVALUATE, request)
        messages = [Message(content, node_id, EVALUATE, group_id=str(round)) for node_id in self.roster.active()]
        outcome = self.roster.ask(messages, accept, doing=f"evaluation of round {round}")
        return {name: reply for name, reply in outcome.replies.items() if isinstance(reply, EvaluateReply)}, outcome


@dataclass(frozen=True)
class EvaluateBySites:
    """Every site's exact counts; sites send them only under ``privacy.mode: none``."""

    everybody: Everybody
    basis: MeasureBasis = "unprotected"

    def of_personal(self) -> EvaluateBySites:
        """The same of every site's personal adapter."""
        return EvaluateBySites(replace(self.everybody, personal=True))

    def __call__(self, arrays: Arrays, split: SplitName, round: int, layout: Layout = WHOLE) -> Measurement:
        shapes = shapes_of(self.everybody.job, layout)

        def check(site: Site, reply: EvaluateReply) -> None:
            check_counts_statement(reply, self.everybody.job)
            check_tables(reply.tables, shapes)
            check_counts(reply, self.everybody.job, site, split, layout)

        replies, outcome = self.everybody.ask(arrays, split, round, layout, check)
        tables = pool([reply.tables for reply in replies.values()], shapes)
        by_site = {name: reply.tables for name, reply in replies.items()}
        return Measurement(tables, by_site=by_site, bytes_up=outcome.bytes_up, bytes_down=outcome.bytes_down)


@dataclass(frozen=True)
class ReleaseBySites:
    """Every site's noisy counts, which its ledger has paid for."""

    everybody: Everybody
    basis: MeasureBasis = "released"

    def of_personal(self) -> ReleaseBySites:
        """The same of every site's personal adapter."""
        return ReleaseBySites(replace(self.everybody, personal=True))

    def __call__(self, arrays: Arrays, split: SplitName, round: int, layout: Layout) -> Measurement:
        shapes = layout.shapes(self.everybody.job.counted, len(self.everybody.job.data.label.values))

        def check(site: Site, reply: EvaluateReply) -> None:
            check_counts_statement(reply, self.everybody.job)
            check_tables(reply.tables, shapes, charged=True)
            check_counts(reply, self.everybody.job, site, split, layout)

        replies, outcome = self.everybody.ask(arrays, split, round, layout, check)
        return Measurement(
            pool([reply.tables for reply in replies.values()], shapes, charged=True),
            noise_variance=sum(discrete_gaussian_variance(reply.sigma) for reply in replies.values() if reply.sigma is not None),
            epsilon={name: reply.epsilon for name, reply in replies.items() if reply.epsilon is not None},
            by_site={name: reply.tables for name, reply in replies.items()},
            bytes_up=outcome.bytes_up,
            bytes_down=outcome.bytes_down,
        )


def decision_edge(validation: Tables, job: Job) -> int:
    """Bin edge of everybody's threshold (``fairness.thresholds``), from any pooled validation table with fine bins."""
    if job.fairness.thresholds == "fixed":
        return FIXED_EDGE
    return base_rate_edge(next(iter(validation.values())), job.data.label.favorable_index)


def noisy_edge(validation: Tables, job: Job) -> int | None:
    """``decision_edge`` from noisy counts; None where these hold nobody: with few people the noise may be larger than they are."""
    table = next(iter(validation.values()))
    return None if table.sum() <= 0 and job.fairness.thresholds != "fixed" else decision_edge(validation, job)


def exact_layout(job: Job) -> Layout:
    """What is asked for where counts may be exact: full histograms, unless these do not tell what is predicted, or how likely it was."""
    return Layout(FINE, FIXED_EDGE) if job.data.label.multiclass or job.counts_responses else WHOLE


def shapes_of(job: Job, layout: Layout) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the tables that every site is asked for."""
    labels = len(job.data.label.values)
    return layout.shapes(job.counted, labels) if layout.wanted else table_shapes(job.counted, labels)


def describe(measurement: Measurement, edge: int | None, job: Job, *, withhold: bool = True) -> Summary:
    """Metrics with intervals at the threshold ``edge`` of full histograms; tables of a ``Layout`` are cut already.

    Small groups are withheld unless only a simulation sees the result.
    """
    return summarise(
        measurement.tables,
        edge=None if SCORES in measurement.tables else edge,
        categories=job.attributes,
        slices=job.slices,
        label_values=job.data.label.values,
        favorable=job.data.label.favorable,
        min_group_size=job.privacy.metrics.min_group_size if withhold else 1,
        tolerance=job.privacy.metrics.tolerance,
        noise_variance=measurement.noise_variance,
        exact_auc=measurement.exact_auc,
        responses=job.counts_responses,
    )


def watched_metric(release: ReleaseBySites, arrays: Arrays, round: int, metric: str) -> tuple[float | None, list[Measurement]]:
    """The early-stop metric from charged validation counts, and what was asked for it. None where the noisy counts hold nobody.

    Everybody's scores are enough, but for the worst group, or predictions among several labels, the groups' tables are asked for too.
    """
    job = release.everybody.job
    scores = release(arrays, "validation", round, Layout(cuts=FINE))
    edge = noisy_edge(scores.tables, job)
    if edge is None:
        return None, [scores]
    if not watches_groups(job):
        table, noise = scores.tables[SCORES], scores.noise_variance
        return summarise_scores(table, edge=edge, favorable=job.data.label.favorable_index, noise_variance=noise)[metric].value, [scores]
    groups = release(arrays, "validation", round, Layout(edge=edge))
    both = replace(groups, tables={**scores.tables, **groups.tables})
    return describe(both, None, job).metrics[metric].value, [scores, groups]
