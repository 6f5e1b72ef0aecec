"""Ledger accounts of virtual sites: caps, the plan of the whole job, and one ledger for several runs.

Next on the path: ``privacy/ledger.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

from fedethos.caps import Caps
from fedethos.client.spending import plan_of
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.ledger import Ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.ledger_plan import CommittedPlan
from fedethos.storage import canonical_line


def ledger_path(job: Job, *, base: Path, own: Path) -> Path:
    """Where the accounts of the job's virtual sites are: the run's ``own`` ledger, or the one that ``simulation.site.ledger`` names."""
    shared = job.simulation.site.ledger
    return own if shared is None else base / shared


def committed_plans(job: Job, sizes: Mapping[str, int], path: Path, run: str, resources: ExitStack) -> dict[str, CommittedPlan]:
    """Each site's plan for the whole job, charged in full before training; empty under ``privacy.mode: none``.

    Raises
    ------
    FedethosError
        PRIV-310 and PRIV-311 when a site's caps do not allow it, PRIV-355 when an account was used for other people; then no site
        is charged. Others as ``Ledger.open_account`` and ``Ledger.commit``.
    """
    if job.privacy.mode == "none" or job.privacy.epsilon is None:
        return {}
    ledger = resources.enter_context(Ledger(path))
    plans = {name: _spending_plan(job, name, size, run) for name, size in sizes.items()}
    for name, plan in plans.items():
        ledger.open_account(name, caps=caps_of(job), unit=job.unit, adjacency=job.privacy.adjacency, simulated=True)
        _check_people(ledger, plan)
        if job.simulation.site.caps is not None:  # without caps of its own the plan is its own cap
            ledger.check(plan)
    return {name: ledger.commit(plan) for name, plan in plans.items()}


def caps_of(job: Job) -> Caps:
    """The caps of every virtual site: ``simulation.site.caps``, else just what this job asks for."""
    if job.simulation.site.caps is not None:
        return job.simulation.site.caps
    budget = job.privacy.epsilon or 0.0
    return Caps(lifetime_epsilon=budget, per_job_epsilon=budget, delta=job.privacy.delta, rounds=job.federation.rounds)


def _spending_plan(job: Job, name: str, size: int, run: str) -> SpendingPlan:
    return plan_of(job, account=name, size=size, run=run, seeded=job.privacy.secure_rng is not True, evidence=_people(job))


def _people(job: Job) -> str:
    """Hash of everything that decides who is at which virtual site. How each site splits its people does not matter to an account."""
    who = {
        "data": job.data.model_dump(mode="json", exclude={"text", "split", "split_salt", "limit"}),
        "sites": sorted(job.federation.sites) or job.simulation.sites,
        "partition": job.simulation.partition.model_dump(mode="json"),
        "seed": job.simulation.seed,
    }
    return sha256(canonical_line(who)).hexdigest()


def _check_people(ledger: Ledger, plan: SpendingPlan) -> None:
    if any(earlier.plan.evidence != plan.evidence for earlier in ledger.accounts[plan.account].plans.values()):
        raise FedethosError(
            "PRIV-355",
            "The shared ledger counts other people under the name of this site.",
            where="simulation.site.ledger",
            why="Two runs add up only if a virtual site holds the same people in both.",
            fix="Keep data, simulation.sites, partition and seed as they were, or name another ledger.",
        )
