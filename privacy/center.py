"""The private mean of what the classification head reads, released once, before round 1 (``training.center_head``).

With x_u the mean of unit u's inputs, r a public reference, L a public bound and n the size that the site declares,

    μ = r + (1/n) · (Σ_u clip_L(x_u - r) + N(0, (z L)² I)),    clip_L(v) = v · min(1, L / ‖v‖),

so that adding or removing a unit moves the sum by at most L: one ``GaussianSum`` on the training people, paid together with training.
z is what costs ``EPSILON_SHARE`` of epsilon alone. Noise is float64, not discrete: a stated gap (docs/privacy.md).
Next: ``models/head_center.py`` uses μ, ``planner.py`` makes room for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedethos.aggregation import HEAD_CENTER
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.composition import epsilon as epsilon_of
from fedethos.privacy.composition import least_noise_factor
from fedethos.privacy.events import CENTER, Adjacency, Allotment, GaussianSum
from fedethos.privacy.randomness import RandomSource

if TYPE_CHECKING:
    from fedethos.privacy.ledger_plan import Receipt, Release

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

EPSILON_SHARE = 0.4  # alone; at epsilon 1 and 3 training's noise grows by 4 to 6 % for it

_LEAST_NOISE, _MOST_NOISE_FACTOR = 0.3, 1e4


def plan_center(job: Job) -> Allotment | None:
    """What pays for the centre; None for a job without one. PRIV-302 when no reasonable noise keeps the share."""
    noise = center_noise_multiplier(job)
    return None if noise is None else _allotment(noise)


def center_noise_multiplier(job: Job) -> float | None:
    """z; None for a job without a centre. Errors as for ``plan_center``."""
    privacy = job.privacy
    if not job.center_head or privacy.epsilon is None:
        return None
    return _noise_multiplier(EPSILON_SHARE * privacy.epsilon, privacy.delta, privacy.adjacency)


def release_center(
    inputs: Floats, unit: Indices, *, reference: Floats, bound: float, declared_size: int, receipt: Receipt, source: RandomSource
) -> Release[dict[str, npt.NDArray[np.float32]]]:
    """μ as a tensor of the adapter, float32[h], with the noise that ``receipt`` paid for. Parameters as for ``noisy_mean``.

    Raises
    ------
    FedethosError
        PRIV-356 when the receipt pays for something else; PRIV-357 as ``clipped_sum``; PRIV-317 for a receipt that was used.
    """
    event = receipt.event
    if not isinstance(event, GaussianSum):
        raise FedethosError("PRIV-356", "Sums were built, and a receipt for something else was given.", why="Nothing was sent.")
    mean = noisy_mean(
        inputs,
        unit,
        reference=reference,
        bound=bound,
        declared_size=declared_size,
        noise_multiplier=event.noise_multiplier,
        source=source,
    )
    return receipt.release({HEAD_CENTER: mean}, event=event)


def noisy_mean(
    inputs: Floats, unit: Indices, *, reference: Floats, bound: float, declared_size: int, noise_multiplier: float, source: RandomSource
) -> npt.NDArray[np.float32]:
    """The module's formula, float32[h].

    Parameters
    ----------
    inputs : float[n, h]
        What the head reads of each row.
    unit : int64[n]
        As for ``clipped_sum``.
    reference : float[h]
        r, public.
    bound : float
        L, public.
    """
    noise = noise_multiplier * bound * source.normal(len(reference))
    return (reference + (clipped_sum(inputs - reference, unit, bound=bound) + noise) / declared_size).astype(np.float32)


def clipped_sum(values: Floats, unit: Indices, *, bound: float) -> Floats:
    """Sum over units of the mean of a unit's rows, clipped to ``bound`` in L2 norm, float64[h]. Not private by itself.

    Parameters
    ----------
    values : float[n, h]
        A unit with a value that is not finite adds nothing at all.
    unit : int64[n]
        Unit of privacy of each row, dense from 0.
    bound : float
        L, public.

    Raises
    ------
    FedethosError
        PRIV-357 when these do not fit together.
    """
    from fedethos.privacy.clipping import rounding_margin  # brings torch, which a plan does not need

    if len(values) != len(unit) or not 0.0 < bound < np.inf or (len(unit) and unit.min() < 0):
        raise FedethosError("PRIV-357", "Values and units of a sum do not fit together, or the bound is not positive and finite.")
    if not len(unit):
        return np.zeros(values.shape[1])
    means = np.zeros((int(unit.max()) + 1, values.shape[1]))
    np.add.at(means, unit, values)
    means /= np.maximum(np.bincount(unit), 1)[:, None]
    norms = np.linalg.norm(means, axis=1)
    means[~np.isfinite(norms)] = 0.0
    within = bound / (1.0 + rounding_margin(values.shape[1]))
    factors = np.minimum(1.0, within / np.maximum(norms, within))
    factors[~np.isfinite(norms)] = 0.0
    total: Floats = factors @ means
    return total


@lru_cache(maxsize=64)
def _noise_multiplier(epsilon: float, delta: float, adjacency: Adjacency) -> float:
    """The least noise (to 0.1 %) at which the release alone costs at most ``epsilon``."""

    def fits(factor: float) -> bool:
        return epsilon_of([_allotment(_LEAST_NOISE * factor)], delta=delta, adjacency=adjacency) <= epsilon

    factor = least_noise_factor(fits, highest=_MOST_NOISE_FACTOR)
    if factor is None:
        raise FedethosError(
            "PRIV-302",
            f"No reasonable noise keeps the centre of the head's input within epsilon {epsilon:g} at delta {delta:g}.",
            where="training.center_head",
            fix="Write training.center_head: off, or raise privacy.epsilon.",
        )
    return _LEAST_NOISE * factor


def _allotment(noise_multiplier: float) -> Allotment:
    return Allotment(purpose=CENTER, event=GaussianSum(noise_multiplier=noise_multiplier, population="train"), times=1)
