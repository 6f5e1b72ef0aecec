"""What a number of private steps costs, and how much noise a budget needs.

The accountant is Google's dp-accounting with privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022),
which is tight and an upper bound. One step is the Gaussian mechanism on a Poisson sample of the units.
"""

from __future__ import annotations

import math
from functools import lru_cache

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

from fedethos.errors import FedethosError
from fedethos.privacy.events import Adjacency

ACCOUNTANT = "PLD (dp-accounting)"

_RELATIONS = {
    "add-remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace-one": dp_accounting.NeighboringRelation.REPLACE_ONE,
}
_INTERVAL = 1e-3  # discretisation of the privacy loss; the accountant rounds upwards
_MAX_NOISE = 1e4
_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)  # whole ones: quick, and never short of convergence
_LEAST_NOISE = 0.05
_WIDTH = 0.2  # of the search bracket, in log noise
_PRECISION = 1e-3


@lru_cache(maxsize=4096)
def epsilon_after(*, noise_multiplier: float, sampling_rate: float, steps: int, delta: float, adjacency: Adjacency = "add-remove") -> float:
    """Epsilon at ``delta`` of ``steps`` Gaussian steps, each on a Poisson sample at ``sampling_rate``."""
    if steps == 0:
        return 0.0
    accountant = PLDAccountant(_RELATIONS[adjacency], _INTERVAL)
    accountant.compose(_steps(noise_multiplier, sampling_rate, steps))
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=4096)
def noise_multiplier_for(*, epsilon: float, delta: float, sampling_rate: float, steps: int, adjacency: Adjacency = "add-remove") -> float:
    """The smallest noise multiplier (to 0.1 %) whose ``steps`` steps cost at most ``epsilon``.

    Raises
    ------
    FedethosError
        PRIV-302 when no noise multiplier below 10,000 reaches the budget.
    """

    def excess(log_noise: float) -> float:
        spent = epsilon_after(
            noise_multiplier=math.exp(log_noise), sampling_rate=sampling_rate, steps=steps, delta=delta, adjacency=adjacency
        )
        return math.log(max(spent, 1e-12) / epsilon)

    high = math.log(_first_guess(epsilon, delta, sampling_rate, steps))
    while excess(high) > 0:
        high += _WIDTH
    low = high - _WIDTH
    while excess(low) <= 0 and low > math.log(_LEAST_NOISE):
        low, high = low - _WIDTH, low
    if excess(low) <= 0:
        return math.exp(low)
    found = float(brentq(excess, low, high, xtol=_PRECISION / 2))
    while excess(found) > 0:
        found += _PRECISION / 2
    return math.exp(found)


def _first_guess(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Where to begin: enough noise by Rényi accounting (Mironov et al. 2019), which is fast and never below the truth.

    Privacy loss distributions of far too little noise are slow to compute, so the search comes from above.
    """
    guess = 0.1
    while _renyi_epsilon(guess, delta, sampling_rate, steps) > epsilon:
        guess *= 1.2
        if guess > _MAX_NOISE:
            raise FedethosError(
                "PRIV-302",
                f"No amount of noise keeps {steps} steps within epsilon {epsilon:g} at delta {delta:g}.",
                where="privacy.epsilon",
                fix="Raise privacy.epsilon or privacy.delta, or plan fewer federation.rounds or training.local_steps.",
            )
    return guess


def _renyi_epsilon(noise_multiplier: float, delta: float, sampling_rate: float, steps: int) -> float:
    accountant = RdpAccountant(orders=_ORDERS)
    accountant.compose(_steps(noise_multiplier, sampling_rate, steps))
    return float(accountant.get_epsilon(delta))


def _steps(noise_multiplier: float, sampling_rate: float, steps: int) -> dp_accounting.DpEvent:
    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    step = gaussian if sampling_rate >= 1.0 else dp_accounting.PoissonSampledDpEvent(sampling_rate, gaussian)
    return dp_accounting.SelfComposedDpEvent(step, steps)
