"""What a plan costs that was fixed beforehand: all its releases together, by privacy loss distributions (PLD).

PLD (Koskela et al. 2020; Doroshenko et al. 2022, dp-accounting) is an upper bound, tight, and composes unlike mechanisms: training
steps and counts on the same people cost less jointly than the sum of their epsilons. Discrete Gaussian noise is accounted as
discrete: at sigma 0.45 it costs 12.09 where the formula of the continuous one says 11.39. PRV (Opacus) checks pure training,
Rényi accounting (``privacy/renyi.py``) is there for comparison. GDP is not an upper bound and is not offered.

Who bears what: the splits hold different people for ever, so adding or removing one unit touches one of them, and a plan costs the
maximum over populations. Replacing a unit can take it out of one split and put another into a second: there everything composes.

Across plans that were chosen after seeing results none of this holds; see ``privacy/renyi.py``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, reduce
from itertools import product

import dp_accounting
from dp_accounting.pld.privacy_loss_distribution import (
    PrivacyLossDistribution,
    from_discrete_gaussian_mechanism,
    from_gaussian_mechanism,
)

from fedethos.errors import FedethosError
from fedethos.privacy.events import Adjacency, Allotment, CountRelease, Event, Population, TrainingSteps

_INTERVAL = 1e-3  # discretisation of the privacy loss; every step rounds upwards
_RELATIONS = {
    "add-remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace-one": dp_accounting.NeighboringRelation.REPLACE_ONE,
}


def epsilon(allotments: Iterable[Allotment], *, delta: float, adjacency: Adjacency) -> float:
    """Epsilon at ``delta`` of everything in ``allotments``, whatever their order."""
    costs = [_joint_loss(events, adjacency).get_epsilon_for_delta(delta) for events in by_person(allotments, adjacency)]
    return max((float(cost) for cost in costs), default=0.0)


def by_person(allotments: Iterable[Allotment], adjacency: Adjacency) -> list[Counter[Event]]:
    """The releases that one unit can be part of, with their number: one list per population, or a single one under replace-one."""
    groups: dict[Population | None, Counter[Event]] = {}
    for allotment in allotments:
        group = allotment.event.population if adjacency == "add-remove" else None
        groups.setdefault(group, Counter())[allotment.event] += allotment.times
    return list(groups.values())


def epsilon_at_several_sites(sites: Sequence[Sequence[Allotment]], *, delta: float, adjacency: Adjacency) -> float:
    """What one person bears who has records at all of these sites: their releases compose, whatever split each site puts him in."""
    choices = product(*(by_person(allotments, adjacency) for allotments in sites if allotments))
    costs = [_joint_loss(_sum(choice), adjacency).get_epsilon_for_delta(delta) for choice in choices if choice]
    return max((float(cost) for cost in costs), default=0.0)


def prv_epsilon(allotments: Iterable[Allotment], *, delta: float) -> float:
    """The same by Opacus' PRV accountant (Gopi et al. 2021), for training steps under add-remove and nothing else (PRIV-305)."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    for allotment in allotments:
        event = allotment.event
        if not isinstance(event, TrainingSteps):
            raise FedethosError("PRIV-305", "The PRV accountant knows training steps only.", fix="Use the PLD accountant.")
        accountant.history.append((event.noise_multiplier, event.sampling_rate, event.steps * allotment.times))
    return float(accountant.get_epsilon(delta, eps_error=0.01))


def as_dp_event(event: Event) -> dp_accounting.DpEvent:
    """The event in dp-accounting's words under add-remove.

    Discrete Gaussian noise becomes continuous noise of the same parameter. That is an upper bound for Rényi accountants (Canonne,
    Kamath and Steinke 2020, proposition 5) and NOT for privacy loss distributions; ``epsilon`` does not use it.
    """
    if isinstance(event, TrainingSteps):
        gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        step = gaussian if event.sampling_rate == 1.0 else dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)
        return dp_accounting.SelfComposedDpEvent(step, event.steps)
    if isinstance(event, CountRelease):
        return dp_accounting.GaussianDpEvent(event.sigma / event.l2_sensitivity("add-remove"))
    return dp_accounting.GaussianDpEvent(event.noise_multiplier)


def least_noise_factor(fits: Callable[[float], bool], *, highest: float = 100.0, precision: float = 1e-3) -> float | None:
    """The smallest factor in [1, ``highest``] (to ``precision``, relative) that ``fits``; None when not even ``highest`` does.

    ``fits`` must stay true once it is true.
    """
    if fits(1.0):
        return 1.0
    low, high = 0.0, 0.05
    while not fits(math.exp(high)):
        low, high = high, 2.0 * high
        if low > math.log(highest):
            return None
    while high - low > precision:
        middle = (low + high) / 2.0
        low, high = (low, middle) if fits(math.exp(middle)) else (middle, high)
    return math.exp(high)


def _sum(counts: Iterable[Counter[Event]]) -> Counter[Event]:
    total: Counter[Event] = Counter()
    for count in counts:
        total.update(count)
    return total


def _joint_loss(events: Counter[Event], adjacency: Adjacency) -> PrivacyLossDistribution:
    losses: Sequence[PrivacyLossDistribution] = [_loss(event, times, adjacency) for event, times in events.items()]
    return reduce(lambda first, second: first.compose(second), losses)


@lru_cache(maxsize=64)
def _loss(event: Event, times: int, adjacency: Adjacency) -> PrivacyLossDistribution:
    """Privacy loss of ``times`` uses of one event."""
    if isinstance(event, CountRelease):
        return _discrete_loss(event.sigma, event.rows, times * event.moved_cells(adjacency))
    if isinstance(event, TrainingSteps):
        return _gaussian_loss(event.noise_multiplier, event.sampling_rate, times * event.steps, adjacency)
    return _gaussian_loss(event.noise_multiplier, 1.0, times, adjacency)


def _gaussian_loss(noise_multiplier: float, sampling_rate: float, times: int, adjacency: Adjacency) -> PrivacyLossDistribution:
    if sampling_rate == 1.0:  # then the composition is itself one Gaussian
        return _gaussian_step(noise_multiplier / math.sqrt(times), sampling_rate, adjacency)
    return _gaussian_step(noise_multiplier, sampling_rate, adjacency).self_compose(times)


@lru_cache(maxsize=64)
def _gaussian_step(noise_multiplier: float, sampling_rate: float, adjacency: Adjacency) -> PrivacyLossDistribution:
    return from_gaussian_mechanism(
        noise_multiplier,
        value_discretization_interval=_INTERVAL,
        sampling_prob=sampling_rate,
        neighboring_relation=_RELATIONS[adjacency],
    )


def _discrete_loss(sigma: float, rows: int, cells: int) -> PrivacyLossDistribution:
    """Noise in different cells is independent, so the loss of a table is the composition of its cells' losses.

    A unit's rows cost most when all fall into one cell. For rows spread one by one this is post-processing: the sum of the cells
    is a sufficient statistic, and one cell with the other cells' noise added has the same law. A test covers the ways between.
    """
    bound = math.ceil(11.6 * sigma) + rows  # leaves out less than 1e-30 of the mass
    loss = from_discrete_gaussian_mechanism(
        sigma, sensitivity=rows, truncation_bound=bound, value_discretization_interval=_INTERVAL, use_connect_dots=True
    )
    return loss.self_compose(cells)
