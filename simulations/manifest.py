"""``manifest.json`` of a simulation. What every run says is in ``server/manifest.py``."""

from __future__ import annotations

from collections.abc import Sequence

from fedethos.job import Job
from fedethos.server.manifest import ModelFacts, run_manifest
from fedethos.simulations.virtual_sites import Federation
from fedethos.storage import JsonValue

PLANTED = "Made-up secrets stand among the training records"
SHARED_LEDGER = "Other runs may have spent on the same people: see fedethos privacy spent"


def simulation_manifest(
    job: Job, federation: Federation, base_weights: str | None, *, engine: str, marks: Sequence[str] = ()
) -> dict[str, JsonValue]:
    """Facts known before round 1. ``base_weights`` is ``NodeModel.base_weights()``; ``marks`` stand on every page."""
    model = federation.model
    facts = ModelFacts(initial=model.read(), base_sha256=model.base_sha256, weights_sha256=base_weights, device=model.device.type)
    shared = [SHARED_LEDGER] if job.simulation.site.ledger else []
    planted = [PLANTED] if job.simulation.canaries is not None else []
    return run_manifest(job, federation.sites.values(), facts, engine=engine, marks=[*marks, *planted, *shared])
