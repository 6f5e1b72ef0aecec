"""What the coordinator knows about a site: public facts from the job, nothing from its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.strategies.averaging import capped_shares


@dataclass(frozen=True)
class Site:
    """``share``: approved weight in the aggregation, capped and normalised over all sites."""

    name: str
    node_id: int
    share: float
    declared_size: int


def deployed_sites(job: Job, node_ids: Mapping[str, int]) -> dict[int, Site]:
    """The job's sites by node id, with the weights and sizes that the job declares.

    Parameters
    ----------
    node_ids : mapping of str to int
        Site name to the id of the node that has its key.

    Raises
    ------
    FedethosError
        CFG-376 when the job declares no sites, or one without a size; CFG-377 when a site has no key.
    """
    check_declared(job)
    if missing := sorted(set(job.federation.sites) - set(node_ids)):
        raise FedethosError(
            "CFG-377",
            f"{len(missing)} of the job's sites have no valid key: {', '.join(missing)}.",
            where="trust.yaml",
            fix="Add the key that `fedethos client init` printed at the site, or take the site out of the job.",
        )
    shares = capped_shares({name: plan.weight for name, plan in job.federation.sites.items()}, job.robustness.weight_cap)
    return {
        node_ids[name]: Site(name=name, node_id=node_ids[name], share=shares[name], declared_size=plan.declared_size or 0)
        for name, plan in sorted(job.federation.sites.items())
    }


def check_declared(job: Job) -> None:
    """CFG-376 unless the job names every site with its size, as a deployment needs: nothing is planned from a site's real size."""
    if not job.federation.sites or any(plan.declared_size is None for plan in job.federation.sites.values()):
        raise FedethosError(
            "CFG-376",
            "The job does not name every site with its declared size.",
            where="federation.sites",
            why="Sampling rate, noise and weight follow from the size that a site declares as public, never from its records.",
            fix="Write federation.sites: {NAME: {weight: 1.0, declared_size: 1200}, …}.",
        )
    if len(job.federation.sites) < job.federation.min_sites:
        raise FedethosError(
            "CFG-378",
            f"The job names {len(job.federation.sites)} sites, and federation.min_sites is {job.federation.min_sites}.",
            where="federation.min_sites",
            fix="Name more sites or lower federation.min_sites.",
        )
