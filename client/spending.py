"""What a job will spend at a real site: the plan that its ledger commits, from the job and the site's own document.

Everything follows from public numbers, so ``fedethos client review`` shows it and the running node commits the same.
Next on the path: ``privacy/ledger.py``.
"""

from __future__ import annotations

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.ledger import Ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.site import SiteDocument


def declared_size(job: Job, name: str) -> int:
    """The public size of a site. SEC-615 when the job does not name the site, CFG-231 when it declares no size for it."""
    planned = job.federation.sites.get(name)
    if planned is None:
        raise FedethosError(
            "SEC-615",
            "The job does not name this site.",
            where="federation.sites",
            why="A job decides beforehand who takes part, and with which weight and size.",
            fix="Compare `name` in site.yaml with federation.sites, or ask the coordinator for the right job.",
        )
    if planned.declared_size is None:
        raise FedethosError(
            "CFG-231",
            "The job declares no size for this site, so nothing can be planned for it.",
            where="federation.sites.*.declared_size",
            why="Sampling rate and noise come from one size that is public; the real one is a fact about your records.",
            fix="Agree with the coordinator on a round number.",
        )
    return planned.declared_size


def check_protection(job: Job, site: SiteDocument) -> None:
    """PRIV-360 for a job without privacy at a site that does not allow it."""
    if job.privacy.mode == "none" and not site.allow_unprotected:
        raise FedethosError(
            "PRIV-360",
            "The job has no differential privacy (privacy.mode: none), and this site does not allow that.",
            where="allow_unprotected",
            why="Exact updates and counts can give away who is in the records.",
            fix="Ask for a private job. For made-up records: allow_unprotected: true in site.yaml.",
        )


def spending_plan(job: Job, site: SiteDocument, run: str) -> SpendingPlan:
    """What the ledger is asked to pay for one run. Errors as for ``declared_size`` and ``planner.allotments``."""
    name, _ = site.as_node()
    return plan_of(job, account=site.account, size=declared_size(job, name), run=run, seeded=job.privacy.secure_rng is False)


def plan_of(job: Job, *, account: str, size: int, run: str, seeded: bool, evidence: str = "") -> SpendingPlan:
    """All rounds and counts of one run at a site that declares ``size`` training units. Errors as for ``planner.allotments``."""
    from fedethos.privacy.planner import allotments

    return SpendingPlan(
        account=account,
        job_sha256=job.sha256,
        run=run,
        unit=job.unit,
        adjacency=job.privacy.adjacency,
        epsilon=job.privacy.epsilon or 0.0,
        delta=job.privacy.delta,
        allotments=allotments(job, declared_size=size, rows_per_unit=job.rows_per_unit),
        seeded=seeded,
        evidence=evidence,
    )


def open_site_account(ledger: Ledger, job: Job, site: SiteDocument) -> None:
    """Open the account of the site's population, or find it again with the same or tighter caps. Errors as ``Ledger.open_account``."""
    ledger.open_account(site.account, caps=site.caps, unit=job.unit, adjacency=job.privacy.adjacency, simulated=False)
