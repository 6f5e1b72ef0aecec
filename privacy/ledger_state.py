"""What the entries of a ledger add up to: accounts, plans, what was drawn from them, what is left.

A pure fold, one entry at a time; ``privacy/ledger.py`` keeps it in step with the file. Plans are charged in full when they are
committed. Under add-remove a plan's cost is that of its dearest split; costs of several plans are added whatever their splits,
because two jobs may draw the line between training and test elsewhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedethos.caps import Caps
from fedethos.privacy.events import Allotment, Event
from fedethos.privacy.ledger_chain import damaged
from fedethos.privacy.ledger_entries import (
    AccountOpened,
    CapsTightened,
    Charge,
    PlanCommitted,
    PlanRevised,
    Released,
    Reserved,
    SpendingPlan,
    parse_entry,
)
from fedethos.privacy.renyi import RenyiFilter


@dataclass
class Reservation:
    """One use of an allotment. ``sha256`` of the stored reply, None as long as there is none."""

    number: int
    purpose: str
    round: int
    event: Event
    sha256: str | None = None


@dataclass
class PlanState:
    """``left``: what may still be drawn, by purpose. ``number`` is that of the entry that committed the plan."""

    number: int
    plan: SpendingPlan
    charge: Charge
    left: dict[str, Allotment]
    reservations: dict[int, Reservation] = field(default_factory=dict)

    @property
    def drawn(self) -> list[Allotment]:
        """Everything reserved so far."""
        uses = Counter((one.purpose, one.event) for one in self.reservations.values())
        return [Allotment(purpose=purpose, event=event, times=times) for (purpose, event), times in uses.items()]

    @property
    def total(self) -> list[Allotment]:
        """Everything reserved so far and everything that still may be."""
        return [*self.drawn, *self.left.values()]

    def last_event(self, purpose: str) -> Event | None:
        """What is left for ``purpose``, else what it was last drawn with; None when it is not in the plan."""
        if purpose in self.left:
            return self.left[purpose].event
        return next((one.event for one in reversed(self.reservations.values()) if one.purpose == purpose), None)

    def latest(self, purpose: str, round: int) -> Reservation | None:
        return next((one for one in reversed(self.reservations.values()) if (one.purpose, one.round) == (purpose, round)), None)


@dataclass
class AccountState:
    opened: AccountOpened
    caps: Caps
    plans: dict[int, PlanState] = field(default_factory=dict)

    def find(self, job_sha256: str, run: str) -> PlanState | None:
        return next((one for one in self.plans.values() if (one.plan.job_sha256, one.plan.run) == (job_sha256, run)), None)

    def besides(self, number: int | None, *, job_sha256: str | None = None) -> list[PlanState]:
        """All plans but ``number``; with ``job_sha256`` only those of that job."""
        return [one for one in self.plans.values() if one.number != number and job_sha256 in (None, one.plan.job_sha256)]

    def lifetime_filter(self, plans: Iterable[PlanState]) -> RenyiFilter:
        """The filter of the lifetime cap after ``plans``."""
        spent = math.fsum(one.charge.lifetime for one in plans)
        return RenyiFilter(epsilon_cap=self.caps.lifetime_epsilon, delta=self.caps.delta, order=self.opened.lifetime_order, spent=spent)

    def job_filter(self, plans: Iterable[PlanState]) -> RenyiFilter:
        """The filter of the per-job cap after ``plans`` of one job."""
        spent = math.fsum(one.charge.job for one in plans)
        return RenyiFilter(epsilon_cap=self.caps.per_job_epsilon, delta=self.caps.delta, order=self.opened.job_order, spent=spent)

    @property
    def epsilon(self) -> float:
        """What everything committed costs at the caps' delta."""
        booked = self.lifetime_filter(self.plans.values()).epsilon
        single = min((one.charge.epsilon for one in self.plans.values()), default=0.0)
        return min(booked, single) if len(self.plans) == 1 else booked

    @property
    def epsilon_left(self) -> float:
        """What further plans may cost; the whole cap before the first."""
        return self.lifetime_filter(self.plans.values()).remaining if self.plans else self.caps.lifetime_epsilon


@dataclass
class LedgerState:
    """``reservation_plan`` and ``plan_account`` find by entry number."""

    accounts: dict[str, AccountState] = field(default_factory=dict)
    plans: dict[int, PlanState] = field(default_factory=dict)
    reservations: dict[int, Reservation] = field(default_factory=dict)

    def fold(self, entries: Iterable[tuple[int, str]], path: Path) -> None:
        """Take in entries in order. PRIV-312 for one that does not make sense: another version's, or one that breaks a rule."""
        for number, text in entries:
            entry = parse_entry(text)
            try:
                if entry is None:
                    raise KeyError(number)
                self._apply(number, entry.body)
            except KeyError:
                raise damaged(path, f"entry {number} is not one of this version") from None

    def _apply(self, number: int, body: object) -> None:
        match body:
            case AccountOpened():
                self.accounts[body.account] = AccountState(body, body.caps)
            case CapsTightened():
                self.accounts[body.account].caps = body.caps
            case PlanCommitted():
                left = {allotment.purpose: allotment for allotment in body.plan.allotments}
                state = PlanState(number, body.plan, body.charge, left)
                self.plans[number] = self.accounts[body.plan.account].plans[number] = state
            case PlanRevised():
                self.plans[body.plan].left[body.allotment.purpose] = body.allotment
                self.plans[body.plan].charge = body.charge
            case Reserved():
                self._reserve(number, body)
            case Released():
                self.reservations[body.reservation].sha256 = body.sha256

    def _reserve(self, number: int, body: Reserved) -> None:
        plan = self.plans[body.plan]
        allotment = plan.left.pop(body.purpose)
        if allotment.times > 1:
            plan.left[body.purpose] = replace(allotment, times=allotment.times - 1)
        reservation = Reservation(number, body.purpose, body.round, allotment.event)
        plan.reservations[number] = self.reservations[number] = reservation
