"""The privacy plan of one site: sampling, clipping, noise and cost in one frozen object, so that they cannot disagree.

The plan is made from public numbers alone (the job and the size that the site declares), before any record is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.accounting import epsilon_after, noise_multiplier_for
from fedethos.privacy.events import Adjacency
from fedethos.privacy.sampling import group_rates, group_shares, uniform_rate


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """DP-SGD (Abadi et al. 2016) over whole units.

    Each of ``steps`` steps takes every unit with probability ``sampling_rate`` or less, clips each unit's gradient to
    ``max_grad_norm`` (L2, over all trainable parameters), adds Gaussian noise of standard deviation
    ``noise_multiplier * max_grad_norm`` to the sum, and divides by ``expected_batch_size``.
    """

    unit: Literal["person", "record"]
    adjacency: Adjacency
    delta: float
    max_grad_norm: float
    sampling_rate: float
    expected_batch_size: float
    steps: int
    noise_multiplier: float

    def epsilon_after(self, steps: int) -> float:
        """What ``steps`` of the planned steps cost."""
        return epsilon_after(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=steps,
            delta=self.delta,
            adjacency=self.adjacency,
        )


def plan_training(job: Job, *, declared_size: int) -> PrivacyPlan | None:
    """The plan of a site that declares ``declared_size`` training units; None under ``privacy.mode: none``.

    Raises
    ------
    FedethosError
        PRIV-302 when the budget cannot be met; PRIV-303 when delta is too large for the size: a mechanism that publishes
        each unit with probability delta would meet it.
    """
    privacy = job.privacy
    if privacy.mode == "none" or privacy.epsilon is None:
        return None
    if privacy.delta >= 1.0 / declared_size:
        raise FedethosError(
            "PRIV-303",
            f"privacy.delta {privacy.delta:g} is not smaller than one in the declared size of {declared_size}.",
            where="privacy.delta",
            why="Such a delta allows that one whole record is published.",
            fix="Lower privacy.delta.",
        )
    sampling_rate = sampling_rate_of(job, declared_size)
    steps = job.federation.rounds * job.charged_steps
    return PrivacyPlan(
        unit=job.unit,
        adjacency=privacy.adjacency,
        delta=privacy.delta,
        max_grad_norm=privacy.max_grad_norm,
        sampling_rate=sampling_rate,
        expected_batch_size=expected_batch_size_of(job, declared_size),
        steps=steps,
        noise_multiplier=noise_multiplier_for(
            epsilon=privacy.epsilon, delta=privacy.delta, sampling_rate=sampling_rate, steps=steps, adjacency=privacy.adjacency
        ),
    )


def sampling_rate_of(job: Job, declared_size: int) -> float:
    """The public Poisson rate that is accounted for: the highest of any group (``sampling.py``)."""
    return max(group_rates(job, declared_size) or (uniform_rate(job, declared_size),))


def expected_batch_size_of(job: Job, declared_size: int) -> float:
    """What a step's sum is divided by: a public number, whoever is sampled."""
    rates = group_rates(job, declared_size)
    if rates is None:
        return uniform_rate(job, declared_size) * declared_size
    return declared_size * sum(share * rate for share, rate in zip(group_shares(job), rates, strict=True))
