"""From the job's words to the rule of its fairness strategy: released counts in, the next weights of cells or of sites out.

Next on the path: the strategy's own file in ``strategies/``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import FloatArray
from fedethos.job import Job
from fedethos.strategies import afl, qfedavg
from fedethos.strategies.controller import Controller
from fedethos.strategies.fairfed import FairFed
from fedethos.strategies.fedfb import FedFB
from fedethos.strategies.fedminmax import FedMinMax
from fedethos.strategies.risks import risk
from fedethos.strategies.term import Tilted

LEARNING_RATES: Mapping[str, float] = {"controller": 3.0, "fairfed": 1.0, "fedfb": 0.01, "fedminmax": 0.1, "afl": 0.1}
"""``fairness.learning_rate: null``."""


def moved_cells(log_multipliers: FloatArray, weights: FloatArray, groups: GroupCounts, job: Job) -> tuple[FloatArray, FloatArray]:
    """The next log multipliers, which the controller alone keeps, and weights, float64[G, 2] each by (group, label)."""
    fairness, least = job.fairness, job.privacy.metrics.min_group_size
    favorable, most = job.data.label.favorable_index, fairness.max_weight
    if fairness.strategy == "term":
        return log_multipliers, Tilted(tilt=fairness.tilt, max_weight=most, min_group_size=least).updated(weights, groups)
    rate = _learning_rate(job)
    if fairness.strategy == "fedminmax":
        return log_multipliers, FedMinMax(learning_rate=rate, max_weight=most, min_group_size=least).updated(weights, groups)
    aim = fairness.constraint
    if fairness.strategy == "fedfb":
        fedfb = FedFB(constraint=aim, favorable=favorable, learning_rate=rate, max_weight=most, min_group_size=least)
        return log_multipliers, fedfb.updated(weights, groups)
    controller = Controller(constraint=aim, favorable=favorable, learning_rate=rate, max_weight=most, min_group_size=least)
    multipliers = controller.updated(log_multipliers, groups)
    return multipliers, controller.weights(multipliers, groups)


def moved_sites(weights: Mapping[str, float], sites: Mapping[str, GroupCounts], everybody: GroupCounts, job: Job) -> dict[str, float]:
    """The next weights of sites, before cap and normalisation. For q-FedAvg ``weights`` are the approved shares."""
    fairness = job.fairness
    if fairness.strategy == "fairfed":
        least = job.privacy.metrics.min_group_size
        fairfed = FairFed(constraint=fairness.constraint, learning_rate=_learning_rate(job), min_group_size=least)
        return fairfed.updated(weights, sites, everybody)
    return afl.updated(weights, {name: risk(counts) for name, counts in sites.items()}, learning_rate=_learning_rate(job))


def site_risks(before: Mapping[str, float], sites: Mapping[str, GroupCounts], everybody: GroupCounts) -> dict[str, float]:
    """Each site's F_k for q-FedAvg; a site without counts keeps its last one, or has everybody's (1 where nobody was counted)."""
    common = risk(everybody) if np.isfinite(risk(everybody)) else 1.0
    found = {name: risk(counts) for name, counts in sites.items()}
    values = {name: found.get(name, np.nan) if np.isfinite(found.get(name, np.nan)) else known for name, known in before.items()}
    return {name: max(value if np.isfinite(value) else common, qfedavg.LEAST_RISK) for name, value in values.items()}


def _learning_rate(job: Job) -> float:
    return job.fairness.learning_rate or LEARNING_RATES[job.fairness.strategy]
