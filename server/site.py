"""What the coordinator knows about a site: public facts from the job, nothing from its records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """``share``: approved weight in the aggregation, capped and normalised over all sites."""

    name: str
    node_id: int
    share: float
    declared_size: int
