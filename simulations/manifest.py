"""``manifest.json`` of a simulation: versions, seeds, hashes and public facts, enough to run it again and compare."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

import torch

from fedethos.aggregation import ever_trained
from fedethos.job import Job
from fedethos.privacy.plan import plan_training
from fedethos.privacy.planner import training_noise
from fedethos.server.outcome import NO_PRIVACY, SEEDED
from fedethos.simulations.virtual_sites import Federation
from fedethos.storage import JsonValue

SHARED_LEDGER = "Other runs may have spent on the same people: see fedethos privacy spent"

_PACKAGES = ("fedethos", "flwr", "torch", "transformers", "peft", "opacus", "dp-accounting", "fairlearn", "numpy", "pandas", "tokenizers")


def simulation_manifest(
    job: Job, federation: Federation, base_weights: str | None, *, engine: str, marks: Sequence[str] = ()
) -> dict[str, JsonValue]:
    """Facts known before round 1. ``base_weights`` is ``NodeModel.base_weights()``; ``marks`` stand on every page."""
    private = job.privacy.mode != "none"
    initial = federation.model.read()
    trainable = ever_trained(job.aggregation, initial)
    return {
        "name": job.name,
        "job_sha256": job.sha256,
        "engine": engine,
        "versions": {package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": federation.model.device.type,
        "seed": job.simulation.seed,
        "base_model": {"path": job.model.path, "sha256": federation.model.base_sha256, "weights_sha256": base_weights},
        "trainable": trainable,
        "trainable_parameters": sum(initial[name].size for name in trainable),
        "basis": "released" if private else "unprotected",
        "secure_rng": job.privacy.secure_rng is True,
        "sites": {
            site.name: {
                "declared_size": site.declared_size,
                "weight": site.share,
                "declared": "site" if site.name in job.federation.sites else "rounded-from-simulation",
            }
            for site in federation.sites.values()
        },
        "privacy": {
            site.name: {
                "noise_multiplier": training_noise(job, declared_size=site.declared_size, rows_per_unit=job.rows_per_unit),
                "sampling_rate": plan.sampling_rate,
                "steps": plan.steps,
            }
            for site in federation.sites.values()
            if (plan := plan_training(job, declared_size=site.declared_size)) is not None
        },
        "marks": [*marks]
        + ([] if private else [NO_PRIVACY])
        + ([SEEDED] if private and job.privacy.secure_rng is not True else [])
        + ([SHARED_LEDGER] if job.simulation.site.ledger else []),
    }
