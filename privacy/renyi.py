"""A cap over plans that are chosen after seeing results: a Rényi filter at one order, fixed beforehand.

Feldman and Zrnic (2021, theorem 4.3): mechanisms may be chosen adaptively, each with a Rényi cost rho at ONE order alpha; as long as one
stops before the costs sum to more than ``rho_cap``, everything together is (alpha, rho_cap)-RDP. Concurrent plans compose the same way
(Haney et al. 2023). Taking the best order afterwards, as an accountant of a fixed plan may, is not allowed here.

From (alpha, rho)-RDP follows (epsilon, delta)-DP with (Canonne, Kamath and Steinke 2020, proposition 12)

    epsilon = rho + overhead(alpha),   overhead(alpha) = log(1 - 1/alpha) - (log delta + log alpha) / (alpha - 1)

so ``rho_cap = epsilon_cap - overhead(alpha)``. The order is a function of cap and delta alone: the one that lets the most Gaussian
noise precision pass, i.e. that maximises ``rho_cap / alpha`` (a Gaussian of parameter sigma costs ``alpha / (2 sigma^2)``).
Costs are in units of epsilon: beyond the overhead, which the first plan pays, each plan uses up its rho of the cap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedethos.privacy.events import Adjacency, Allotment, CountRelease, Event, Population, TrainingSteps

_FINE = tuple(1.0 + step / 4.0 for step in range(1, 61))
_COARSE = tuple(float(order) for order in (*range(17, 65), *range(68, 257, 4), 512, 1024))
_ORDERS = _FINE + _COARSE


@dataclass(frozen=True, kw_only=True)
class RenyiFilter:
    """``spent`` is the sum of what was charged at ``order``. Frozen: the ledger makes one from what it has on disk."""

    epsilon_cap: float
    delta: float
    order: float
    spent: float = 0.0

    @classmethod
    def opened(cls, epsilon_cap: float, delta: float) -> RenyiFilter:
        """A new filter; chooses its order."""
        order = max(_ORDERS, key=lambda order: (epsilon_cap - _overhead(order, delta)) / order)
        return cls(epsilon_cap=epsilon_cap, delta=delta, order=order)

    @property
    def rho_cap(self) -> float:
        """What all costs together may reach; negative when no private release at all keeps the cap at this order."""
        return self.epsilon_cap - _overhead(self.order, self.delta)

    @property
    def remaining(self) -> float:
        """What further plans may cost."""
        return max(0.0, self.rho_cap - self.spent)

    @property
    def epsilon(self) -> float:
        """The guarantee of everything so far at ``delta``; 0 when nothing was charged."""
        return self.spent + _overhead(self.order, self.delta) if self.spent > 0.0 else 0.0

    def fits(self, rho: float) -> bool:
        """Whether a plan that costs ``rho`` keeps the cap."""
        return self.spent + rho <= self.rho_cap


def renyi_cost(allotments: Iterable[Allotment], *, order: float, adjacency: Adjacency) -> float:
    """Rényi cost at ``order``: for the unit that bears most under add-remove, over all splits under replace-one."""
    costs: dict[Population | None, float] = {}
    for allotment in allotments:
        group = allotment.event.population if adjacency == "add-remove" else None
        costs[group] = costs.get(group, 0.0) + allotment.times * _cost(allotment.event, order, adjacency)
    return max(costs.values(), default=0.0)


def renyi_epsilon(allotments: Sequence[Allotment], *, delta: float, adjacency: Adjacency) -> float:
    """Epsilon at ``delta`` of one plan fixed beforehand, at the best order: an upper bound, larger than that of ``composition.epsilon``."""
    return min(renyi_cost(allotments, order=order, adjacency=adjacency) + _overhead(order, delta) for order in _ORDERS)


def epsilon_of_trials(allotments: Sequence[Allotment], trials: int, *, delta: float, adjacency: Adjacency) -> float:
    """The least lifetime cap (to 0.01) under which a ledger lets ``trials`` runs of one plan pass, each chosen after seeing the others.

    It is also the epsilon at ``delta`` of all of them together.
    """

    def fits(cap: float) -> bool:
        opened = RenyiFilter.opened(cap, delta)
        return opened.fits(trials * renyi_cost(allotments, order=opened.order, adjacency=adjacency))

    low, high = 0.0, 1.0
    while not fits(high):
        low, high = high, 2.0 * high
    while high - low > 0.005:
        middle = (low + high) / 2.0
        low, high = (low, middle) if fits(middle) else (middle, high)
    cap = math.ceil(100.0 * high)
    while not fits(cap / 100.0):  # where the order changes, a little more may fit a little less
        cap += 1
    return cap / 100.0


def _overhead(order: float, delta: float) -> float:
    return math.log1p(-1.0 / order) - (math.log(delta) + math.log(order)) / (order - 1.0)


def _cost(event: Event, order: float, adjacency: Adjacency) -> float:
    """Closed form but for subsampled steps. A discrete Gaussian costs no more than a continuous one (same paper, proposition 5)."""
    doubled = 1.0 if adjacency == "add-remove" else 2.0  # replacing a unit moves a sum by twice its bound
    if isinstance(event, CountRelease):
        return order * (event.l2_sensitivity(adjacency) / event.sigma) ** 2 / 2.0
    if not isinstance(event, TrainingSteps):
        return order * (doubled / event.noise_multiplier) ** 2 / 2.0
    if event.sampling_rate == 1.0:
        return event.steps * order * (doubled / event.noise_multiplier) ** 2 / 2.0
    return event.steps * _sampled_step(event.sampling_rate, event.noise_multiplier, order, adjacency)


@lru_cache(maxsize=1024)
def _sampled_step(rate: float, noise: float, order: float, adjacency: Adjacency) -> float:
    """Rényi divergence of one Gaussian step on a Poisson sample, bound 1, by the trapezoid rule, which is exact on so smooth a peak.

    Between the worst pair: with q = ``rate``, (1-q) N(0) + q N(1) and N(0) when a unit is added or removed (Mironov, Talwar and
    Zhang 2019), and N(-1) mixed into the second one when it is replaced (as dp-accounting's privacy loss distributions have it).
    """
    x = np.arange(-40.0 * noise - 1.0, 2.0 * order + 40.0 * noise, noise / 64.0)
    without = -(x**2) / (2.0 * noise**2)
    absent = math.log1p(-rate) + without
    one = np.logaddexp(absent, math.log(rate) - (x - 1.0) ** 2 / (2.0 * noise**2))
    other = np.logaddexp(absent, math.log(rate) - (x + 1.0) ** 2 / (2.0 * noise**2)) if adjacency == "replace-one" else without
    logs = order * one + (1.0 - order) * other
    peak = float(logs.max())
    integral = float(np.exp(logs - peak).sum()) / (64.0 * math.sqrt(2.0 * math.pi))
    return max(0.0, (peak + math.log(integral)) / (order - 1.0))
