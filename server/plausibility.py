"""Can these be the counts of this site? Public facts alone decide: its declared size, the job's splits, the noise of its plan.

Metrics come from pooled counts, which weigh each site by its people. A site that forges its counts therefore moves a pooled proportion
by at most b'/(b + b'), where b people of all other sites and b' of its own stand in the denominator (``leverage``). ``check_counts``
keeps b' near what the declared size allows. Next on the path: ``server/measure.py``.
"""

from __future__ import annotations

import math

import numpy as np

from fedethos.errors import FedethosError
from fedethos.fairness.histograms import Tables
from fedethos.fairness.layout import Layout
from fedethos.job import Job
from fedethos.messages import EvaluateReply, SplitName
from fedethos.privacy.counts import plan_counts
from fedethos.privacy.events import purpose_of
from fedethos.server.site import Site

_DEVIATIONS = 6.0  # of the hash that splits the people; an honest site is refused once in 10^7 evaluations
_NOISE_DEVIATIONS = 7.0  # of the noise, in every cell and every sum
_MOST_REPLANNED_NOISE = 4.0  # a site that lost rounds plans the rest anew, with more noise


def most_records(job: Job, declared_size: int, split: SplitName) -> int | None:
    """The most records that a site with ``declared_size`` training units can hold in a split; None when that is not bounded.

    With the shares p (train) and s (this split), ρ = s/p, the number of units exceeds ρ·size by more than
    6·sqrt(size·ρ·(1 + ρ)) + 6·max(1, ρ) with a probability below e⁻¹⁸ (Bernstein's inequality over people, each hashed on its own).
    A unit brings at most ``rows_per_unit`` records. Nobody bounds the records of a person without privacy, nor where the unit of privacy is
    a record: all of them are hashed into one split together.
    """
    if job.data.person_id is not None and (job.privacy.mode == "none" or job.unit == "record"):
        return None
    shares: dict[SplitName, float] = {"train": job.data.split.train, "validation": job.data.split.validation, "test": job.data.split.test}
    ratio = shares[split] / shares["train"]
    units = ratio * declared_size + _DEVIATIONS * (math.sqrt(declared_size * ratio * (1 + ratio)) + max(1.0, ratio))
    return math.ceil(units) * job.rows_per_unit


def leverage(forged: float, others: float) -> float:
    """The most that ``forged`` people can move a proportion pooled with ``others`` people: forged / (others + forged)."""
    return forged / (others + forged) if forged > 0 else 0.0


def check_counts(reply: EvaluateReply, job: Job, site: Site, split: SplitName, layout: Layout) -> None:
    """Refuse what cannot be the counts of ``site``. Names, shapes and dtypes have been checked (``check_tables``).

    Raises
    ------
    FedethosError
        AGG-750 for more people than its declared size allows; AGG-751 for a count that is more negative than noise explains;
        AGG-752 for noisy tables that do not count the same people; AGG-753 for another noise than the plan's.
    """
    sigma = 0.0
    if reply.sigma is not None:
        _check_noise(reply.sigma, job, split, layout)
        sigma = reply.sigma
    most = most_records(job, site.declared_size, split)
    for name, table in reply.tables.items():
        if most is not None and table.sum() > most + _NOISE_DEVIATIONS * sigma * math.sqrt(table.size):
            raise FedethosError(
                "AGG-750",
                "A site counts more people than its declared size allows.",
                where=name,
                why="Pooled metrics weigh a site by its people.",
                fix="Ask the site whether it declared its size rightly (federation.sites).",
            )
        if table.min() < -_NOISE_DEVIATIONS * sigma:
            raise FedethosError("AGG-751", "A count is more negative than its noise explains.", where=name)
    _check_agreement(reply.tables, sigma)


def _check_noise(sigma: float, job: Job, split: SplitName, layout: Layout) -> None:
    planned = {one.allotment.purpose: one.release.sigma for one in plan_counts(job, rows_per_unit=job.rows_per_unit)}
    expected = planned.get(purpose_of(layout.wanted, split))
    if expected is None or not 0.99 * expected <= sigma <= _MOST_REPLANNED_NOISE * expected:
        raise FedethosError("AGG-753", "The noise that a site claims in its counts is not that of its plan.")


def _check_agreement(tables: Tables, sigma: float) -> None:
    """All tables hold the same people of each label, within the noise of the two sums (cells of a label: the table's over L)."""
    sums = {name: np.moveaxis(table, -2, 0).reshape(table.shape[-2], -1) for name, table in tables.items()}
    first, *others = sums.values()
    for name, other in zip(list(sums)[1:], others, strict=True):
        spread = sigma * math.sqrt(first.shape[1] + other.shape[1])
        if np.abs(first.sum(axis=1) - other.sum(axis=1)).max() > _NOISE_DEVIATIONS * spread:
            raise FedethosError("AGG-752", "Two tables of a site do not count the same people.", where=name)
