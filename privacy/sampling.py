"""At which public rates a site's units are sampled: one for everybody, or one for each group, so that a batch holds as many of each.

With N the declared size, B the batch size, P(g) the job's share of group g among the G groups that have one, u that of ``unknown``, and
W = ``fairness.max_weight``:

    uniform           q = min(1, B / N)
    group_balanced    q_g = min(1, W·q, q·(1 - u) / (G·P(g))),    q for ``unknown``

Poisson sampling with a rate for each unit costs a unit what its own rate costs, and that grows with the rate: a site accounts for the
highest rate of any declared group, whether anybody is in it or not. Next on the path: ``plan.py``.
"""

from __future__ import annotations

from fedethos.job import Job
from fedethos.job_data import UNKNOWN


def uniform_rate(job: Job, declared_size: int) -> float:
    """q = min(1, batch_size / declared size)."""
    return min(1.0, job.training.batch_size / declared_size)


def group_rates(job: Job, declared_size: int) -> tuple[float, ...] | None:
    """The rate of each group of ``fairness.attribute``, ``unknown`` last; None when everybody has the same."""
    if job.training.sampling == "uniform":
        return None
    q = uniform_rate(job, declared_size)
    *known, unknown = group_shares(job)
    rates = (q * (1.0 - unknown) / (len(known) * share) for share in known)
    return (*(min(1.0, job.fairness.max_weight * q, rate) for rate in rates), q)


def group_shares(job: Job) -> tuple[float, ...]:
    """P(g) by ``fairness.training_shares``, ``unknown`` last, 0 where the job gives it none; they add up to 1."""
    shares = job.fairness.training_shares
    if shares is None or job.fairness_attribute is None:
        raise ValueError("this job gives no shares of its groups")
    by_group = [sum(shares.get(group, {}).values()) for group in (*job.attributes[job.fairness_attribute], UNKNOWN)]
    return tuple(share / sum(by_group) for share in by_group)
