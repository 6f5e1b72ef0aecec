"""``fedethos privacy audit RUN``: audit one site of a simulation, and what the run states about all of them.

Next on the path: ``simulations/audit.py``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fedethos.aggregation import trained_in
from fedethos.client.cell_weights import accepted_weights, weighed
from fedethos.client.node import Node, clipping_engine
from fedethos.client.trainer import StepPlan
from fedethos.errors import FedethosError
from fedethos.fairness.losses import example_loss
from fedethos.job import Job
from fedethos.privacy.accounting import epsilon_after, noise_multiplier_for
from fedethos.privacy.conformance import ACCOUNTING_TOLERANCE, Check
from fedethos.privacy.plan import PrivacyPlan, expected_batch_size_of
from fedethos.progress import Observer
from fedethos.records import Round
from fedethos.runfolder import RunFolder
from fedethos.server.cell_weights import first_weights
from fedethos.simulations.accounts import ledger_path
from fedethos.simulations.audit import Audit, Subject, audit
from fedethos.simulations.count_audit import check_released_counts
from fedethos.simulations.virtual_sites import Federation, open_federation

SMALL_CLAIM = 2.0  # a thousand canaries can refute it when something is wrong


@dataclass(frozen=True, kw_only=True)
class RunAudit:
    """An audit at one site of a run; the first of its checks is about what the run states for all sites, the last about released counts."""

    site: str
    audit: Audit


def audit_run(folder: RunFolder, *, canaries: int, steps: int | None, claim: float | None, seed: int, observer: Observer) -> RunAudit:
    """Audit the first site of a finished simulation.

    Parameters
    ----------
    steps : int, optional
        Train only so many steps; default: as many as the run planned.
    claim : float, optional
        Plan the noise for this epsilon. Default: the run's own noise, or noise for ``SMALL_CLAIM`` if the run's costs more.
    seed : int
        Of the canaries' coins; noise and sampling come from where the job has them from.

    Raises
    ------
    FedethosError
        PRIV-342 when the run claims nothing; PRIV-370 for causal-lm; PRIV-343; PRIV-358; RUN-903 for an unfinished run.
    """
    job = folder.parse_job()
    if job.task == "causal-lm":
        raise FedethosError(
            "PRIV-370",
            "The audit cannot read canaries off a causal-lm job: they are told apart by two labels, and it has one.",
            where="task",
            fix="Audit the same job as preference or multiple-choice: model, engine, sampling and noise are the same.",
        )
    stated = _stated(folder)
    with (
        tempfile.TemporaryDirectory(prefix="fedethos-") as name,
        _open_federation(job, folder, Path(name), observer) as federation,
    ):
        observer.stage(f"Training with {canaries} canaries")
        site, node = federation.sites[1].name, federation.nodes[1]
        plan, claimed = _planned(job, stated[site], node.declared_size, steps, claim)
        ledger = ledger_path(job, base=Path(folder.read_local().base), own=folder.ledger)
        counts = check_released_counts(job, folder, ledger, node, site, observer)
        with node.model.training(trained_in(job.aggregation, 1, node.model.exchanged_names)):
            found = audit(_subject(node, plan), claim=claimed, canaries=canaries, seed=seed)
    statement = _check_statement(job, stated, folder.read_rounds())
    return RunAudit(site=site, audit=replace(found, checks=(statement, *found.checks, counts)))


def _open_federation(job: Job, folder: RunFolder, scratch: Path, observer: Observer) -> AbstractContextManager[Federation]:
    """The run's first site again, with a ledger that is thrown away: an audit releases nothing of it."""
    base = Path(folder.read_local().base)
    return open_federation(job, base=base, scratch=scratch, ledger=scratch / "ledger.sqlite", observer=observer, only=1)


@dataclass(frozen=True, kw_only=True)
class _Stated:
    """What ``privacy.json`` says about a site's training."""

    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float


def _stated(folder: RunFolder) -> dict[str, _Stated]:
    stated = {}
    for name, site in folder.read_privacy().sites.items():
        if site.epsilon is None or site.delta is None or site.noise_multiplier is None or site.sampling_rate is None:
            raise FedethosError("PRIV-342", "This run claims no privacy, so there is nothing to audit.", where="privacy.mode")
        stated[name] = _Stated(
            epsilon=site.epsilon, delta=site.delta, noise_multiplier=site.noise_multiplier, sampling_rate=site.sampling_rate
        )
    return stated


def _check_statement(job: Job, stated: Mapping[str, _Stated], rounds: Sequence[Round]) -> Check:
    """Whether the epsilon that each site states covers every round that it sent."""

    def cost(name: str, site: _Stated) -> float:
        return epsilon_after(
            noise_multiplier=site.noise_multiplier,
            sampling_rate=site.sampling_rate,
            steps=sum(line.sites.get(name) == "sent" for line in rounds) * job.charged_steps,
            delta=site.delta,
            adjacency=job.privacy.adjacency,
        )

    holds = all(cost(name, site) <= site.epsilon * (1 + ACCOUNTING_TOLERANCE) for name, site in stated.items())
    return Check("statement", holds, "the run's stated epsilon covers every round that each site sent")


def _planned(job: Job, stated: _Stated, declared_size: int, steps: int | None, claim: float | None) -> tuple[PrivacyPlan, float]:
    plan = PrivacyPlan(
        unit=job.unit,
        adjacency=job.privacy.adjacency,
        delta=stated.delta,
        max_grad_norm=job.privacy.max_grad_norm,
        sampling_rate=stated.sampling_rate,
        expected_batch_size=expected_batch_size_of(job, declared_size),
        steps=steps or job.federation.rounds * job.training.local_steps,
        noise_multiplier=stated.noise_multiplier,
    )
    own = plan.epsilon_after(plan.steps)
    if claim is None and own <= SMALL_CLAIM:
        return plan, own
    claim = claim or SMALL_CLAIM
    noise = noise_multiplier_for(
        epsilon=claim, delta=plan.delta, sampling_rate=plan.sampling_rate, steps=plan.steps, adjacency=plan.adjacency
    )
    return replace(plan, noise_multiplier=noise), claim


def _subject(node: Node, plan: PrivacyPlan) -> Subject:
    job = node.job
    weights = accepted_weights(first_weights(job), job)
    largest = 1.0 if weights is None else float(weights.max())
    return Subject(
        model=node.model,
        examples=weighed(node.examples["train"], weights, job),
        plan=plan,
        step=StepPlan.of(job, declared_size=node.declared_size, noise_multiplier=plan.noise_multiplier, largest_weight=largest),
        make_engine=partial(clipping_engine, job),
        source_of=lambda step: node.source_of(1 + step // job.training.local_steps, step % job.training.local_steps),
        largest_weight=largest,
        loss=example_loss(job),
    )
