"""``manifest.json``: versions, seeds, hashes and public facts, enough to run a job again and compare. Known before round 1."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

from fedethos.aggregation import ever_trained
from fedethos.job import Job
from fedethos.messages import Arrays
from fedethos.privacy.plan import plan_training
from fedethos.privacy.planner import training_noise
from fedethos.server.outcome import DEPLOYMENT, NO_PRIVACY, SEEDED
from fedethos.server.site import Site
from fedethos.storage import JsonValue

_PACKAGES = ("fedethos", "flwr", "torch", "transformers", "peft", "opacus", "dp-accounting", "fairlearn", "numpy", "pandas", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """``initial``: what a request carries before round 1. ``weights_sha256``: of the weights below the adapter, None without one."""

    initial: Arrays
    base_sha256: str
    weights_sha256: str | None
    device: str


def run_manifest(job: Job, sites: Iterable[Site], model: ModelFacts, *, engine: str, marks: Sequence[str] = ()) -> dict[str, JsonValue]:
    """``marks`` stand on every page, beside those that follow from the job."""
    sites = list(sites)
    private, secure = job.privacy.mode != "none", job.privacy.secure(deployed=engine == DEPLOYMENT)
    trainable = ever_trained(job.aggregation, model.initial)
    return {
        "name": job.name,
        "job_sha256": job.sha256,
        "engine": engine,
        "versions": {package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "device": model.device,
        "seed": job.simulation.seed,
        "base_model": {"path": job.model.path, "sha256": model.base_sha256, "weights_sha256": model.weights_sha256},
        "trainable": trainable,
        "trainable_parameters": sum(model.initial[name].size for name in trainable),
        "basis": "released" if private else "unprotected",
        "secure_rng": secure,
        "sites": {
            site.name: {
                "declared_size": site.declared_size,
                "weight": site.share,
                "declared": "site" if site.name in job.federation.sites else "rounded-from-simulation",
            }
            for site in sites
        },
        "privacy": {
            site.name: {
                "noise_multiplier": training_noise(job, declared_size=site.declared_size, rows_per_unit=job.rows_per_unit),
                "sampling_rate": plan.sampling_rate,
                "steps": plan.steps,
            }
            for site in sites
            if (plan := plan_training(job, declared_size=site.declared_size)) is not None
        },
        "marks": [*marks] + ([] if private else [NO_PRIVACY]) + ([SEEDED] if private and not secure else []),
    }
