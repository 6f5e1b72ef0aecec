"""The robust step of a round (``robustness.rule``): what stands between validated updates and the aggregation rule.

It maps updates by site to updates by site, so that it works in front of every aggregation rule, server optimizer and fairness
weighting: Krum drops sites, norm bounding shortens updates, median and trimmed mean put the same adapter, the middle of all, in
everybody's place. Whatever weights come later then act on updates that no minority controls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from fedethos.job import Job
from fedethos.messages import Arrays
from fedethos.strategies.coordinatewise import coordinatewise, weighted_median, weighted_trimmed_mean
from fedethos.strategies.krum import krum
from fedethos.strategies.norm_bound import bounded
from fedethos.strategies.product import Geometry


@dataclass(frozen=True)
class Defended:
    """Updates by site as the aggregation rule gets them; ``error``: relative Frobenius error of a projection to rank r, 0 without."""

    updates: Mapping[str, Arrays]
    error: float = 0.0


def defend(job: Job, updates: Mapping[str, Arrays], shares: Mapping[str, float], sent: Arrays, frozen: Arrays) -> Defended:
    """The updates after the job's robust rule.

    Parameters
    ----------
    updates : by site
        Validated: finite, with the names and shapes of ``sent``.
    shares : by site
        Approved weights; median and trimmed mean respect them.
    sent : dict of float32 array
        What trains in this round, as the round began with it.
    frozen : dict of float32 array
        The tensors that do not train in it (lora_A under ffa).

    Raises
    ------
    FedethosError
        AGG-754 when Krum has too few updates.
    """
    chosen = job.robustness
    geometry = Geometry(frozen, job.lora.lora_alpha / job.lora.r)
    if chosen.rule == "norm-bound":
        return Defended(bounded(updates, sent, geometry, chosen.norm_bound))
    if chosen.rule in ("krum", "multi-krum") and chosen.assumed_attackers is not None:
        kept = krum(updates, chosen.assumed_attackers, geometry, multi=chosen.rule == "multi-krum")
        return Defended({name: updates[name] for name in kept})
    if chosen.rule in ("median", "trimmed-mean"):
        centre = weighted_median if chosen.trim_share is None else partial(weighted_trimmed_mean, trim_share=chosen.trim_share)
        middle, error = coordinatewise(list(updates.values()), [shares[name] for name in updates], centre, sent, geometry)
        return Defended(dict.fromkeys(updates, middle), error)
    return Defended(updates)
