"""What a ledger says, for a person: how much was spent, and what the guarantee means and does not mean.

The terms are those of NIST SP 800-226 (Guidelines for Evaluating Differential Privacy Guarantees): unit of privacy, neighbouring data
sets, trust model, and the hazards that the mathematics does not cover. ``fedethos privacy spent`` and ``statement`` print it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedethos.privacy.events import Adjacency
from fedethos.privacy.ledger_entries import Unit
from fedethos.privacy.ledger_state import AccountState, LedgerState

NOT_COVERED = (
    "What the model says about people in general: a pattern that holds without this person's records is not protected.",
    "A pretrained base model: what it learned before this run.",
    "Floating-point noise, which follows a Gaussian only to rounding, and the time at which messages arrive.",
    "That a site takes part, its declared size, and everything else that the job and the manifest state.",
    "Whoever can read the site's own files: records, ledger, logs and a personal adapter at the site are not noised.",
)


@dataclass(frozen=True, kw_only=True)
class AccountSpending:
    """``epsilon`` of everything committed, at ``delta``; ``left`` for further plans. ``unanswered``: reserved without a stored reply."""

    account: str
    unit: Unit
    adjacency: Adjacency
    simulated: bool
    epsilon: float
    delta: float
    lifetime_epsilon: float
    per_job_epsilon: float
    left: float
    plans: int
    reserved: int
    unanswered: int


def spending(state: LedgerState) -> list[AccountSpending]:
    """One line an account, by name."""
    return [_of(name, account) for name, account in sorted(state.accounts.items())]


def _of(name: str, account: AccountState) -> AccountSpending:
    reservations = [one for plan in account.plans.values() for one in plan.reservations.values()]
    return AccountSpending(
        account=name,
        unit=account.opened.unit,
        adjacency=account.opened.adjacency,
        simulated=account.opened.simulated,
        epsilon=account.epsilon,
        delta=account.caps.delta,
        lifetime_epsilon=account.caps.lifetime_epsilon,
        per_job_epsilon=account.caps.per_job_epsilon,
        left=account.epsilon_left,
        plans=len(account.plans),
        reserved=len(reservations),
        unanswered=sum(1 for one in reservations if one.sha256 is None),
    )


@dataclass(frozen=True, kw_only=True)
class Statement:
    """The guarantee of a run. ``two_sites``: the two dearest sites and what a person bears who is at both; None with one site."""

    unit: Unit
    adjacency: Adjacency
    delta: float
    sites: Mapping[str, float]
    two_sites: tuple[str, str, float] | None
    seeded: bool
    covered: tuple[str, ...]
    not_covered: tuple[str, ...] = NOT_COVERED

    @property
    def lines(self) -> list[str]:
        """In plain words."""
        worst = max(self.sites.values())
        who = "all records of one person at a site" if self.unit == "person" else "one record"
        neighbours = "adding or removing" if self.adjacency == "add-remove" else "replacing"
        text = [
            f"Unit of privacy: {who}.",
            f"Neighbouring data sets: they differ by {neighbours} one unit ({self.adjacency}).",
            f"Guarantee: ({worst:.2f}, {self.delta:g})-differential privacy at the site with the largest epsilon, over everything it sent.",
            *(f"  {name}: epsilon {epsilon:.2f}" for name, epsilon in self.sites.items()),
            f"In words: whatever anybody learns from what a site sent, {neighbours} one unit changes how likely it is by a factor of"
            f" at most e^{worst:.2f}, but for a probability of {self.delta:g}.",
            "Trust model: each site adds its noise before anything leaves. Coordinator, network and other sites need not be trusted.",
            "Covered:",
            *(f"  {one}" for one in self.covered),
            "Not covered:",
            *(f"  {one}" for one in self.not_covered),
        ]
        if self.two_sites:
            one, other, together = self.two_sites
            text.append(
                f"A person with records at {one} and {other} bears both: epsilon {self.sites[one]:.2f} and {self.sites[other]:.2f} together"
                f" are {together:.2f}. With more sites it is more."
            )
        if self.unit == "record":
            text.append("A person with several records is protected less than this epsilon says: it holds for one record.")
        if self.seeded:
            text.append("SIMULATION, NOT A GUARANTEE: the noise comes from a seed, and whoever knows it can take it off again.")
        return text


def statement(state: LedgerState) -> Statement:
    """The guarantee of the run whose ledger this is; ``state`` has at least one plan."""
    accounts = {name: account for name, account in sorted(state.accounts.items()) if account.plans}
    first = next(iter(accounts.values()))
    plans = [plan for account in accounts.values() for plan in account.plans.values()]
    return Statement(
        unit=first.opened.unit,
        adjacency=first.opened.adjacency,
        delta=max(account.caps.delta for account in accounts.values()),
        sites={name: account.epsilon for name, account in accounts.items()},
        two_sites=_two_dearest(accounts),
        seeded=any(plan.plan.seeded for plan in plans),
        covered=tuple(sorted({_what(allotment.purpose, allotment.event.population) for plan in plans for allotment in plan.total})),
    )


def _what(purpose: str, population: str) -> str:
    return f"{purpose}: computed from {population} people with noise that the ledger accounts for."


def _two_dearest(accounts: Mapping[str, AccountState]) -> tuple[str, str, float] | None:
    if len(accounts) < 2:
        return None
    from fedethos.privacy.composition import epsilon_at_several_sites

    names = sorted(accounts, key=lambda name: -accounts[name].epsilon)[:2]
    first, second = (accounts[name] for name in names)
    if max(len(first.plans), len(second.plans)) > 1:  # plans chosen after seeing results: costs at one order that was fixed beforehand
        if (first.caps.delta, first.opened.lifetime_order) != (second.caps.delta, second.opened.lifetime_order):
            return None
        return names[0], names[1], first.lifetime_filter([*first.plans.values(), *second.plans.values()]).epsilon
    releases = [[allotment for plan in one.plans.values() for allotment in plan.total] for one in (first, second)]
    return names[0], names[1], epsilon_at_several_sites(releases, delta=first.caps.delta, adjacency=first.opened.adjacency)
