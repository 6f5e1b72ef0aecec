"""Drawing on a committed plan: reserve, compute, release, record, send. In that order, and types see to it.

``reserve`` puts the cost on the disk and only then gives a ``Receipt``. A private mechanism turns its result into a ``Release`` with
that receipt, once, and names the event that it really performed. Whatever builds a reply takes a ``Release`` and nothing else::

    receipt = plan.reserve("train", 3)
    release = mechanism.run(data, receipt)              # ends with receipt.release(value, event=receipt.event)
    reply = encode(release.value)
    plan.record(release, reply)                         # from here on a repeated round gets these bytes
    send(reply)

Python cannot stop code that sets out to forge a release; it can make sure that none comes into being by mistake.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Generic, NoReturn, TypeVar

from fedethos.errors import FedethosError
from fedethos.privacy.events import Allotment, Event
from fedethos.privacy.ledger_books import Books
from fedethos.privacy.ledger_budget import charge_for, shortfall
from fedethos.privacy.ledger_chain import damaged
from fedethos.privacy.ledger_entries import Charge, PlanRevised, Released, Reserved, SpendingPlan
from fedethos.privacy.ledger_state import AccountState, PlanState, Reservation

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_SEAL = object()  # only this module builds receipts and releases


class _Unique:
    """Exists once: no copy, no pickle."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise _misuse("was copied")


class Receipt(_Unique):
    """Proof that one release of ``event`` for ``purpose`` in ``round`` is paid for, on the disk. Good for one release, in this process."""

    __slots__ = ("_plan", "_reservation")

    def __init__(self, seal: object, plan: CommittedPlan, reservation: Reservation) -> None:
        if seal is not _SEAL:
            raise _misuse("was not issued by a ledger")
        self._plan = plan
        self._reservation = reservation

    @property
    def event(self) -> Event:
        """What was paid for; the mechanism takes its noise from here."""
        return self._reservation.event

    @property
    def purpose(self) -> str:
        return self._reservation.purpose

    @property
    def round(self) -> int:
        return self._reservation.round

    @property
    def number(self) -> int:
        """Of its entry in the ledger."""
        return self._reservation.number

    def release(self, value: T, *, event: Event) -> Release[T]:
        """Wrap the output of a mechanism that performed ``event``.

        Raises
        ------
        FedethosError
            PRIV-317 when ``event`` is not what was paid for, or the receipt was used before, copied, or taken to another process.
        """
        return self._plan._redeem(self, value, event)


class Release(_Unique, Generic[T_co]):
    """A paid value: the only kind that a reply with basis ``charged`` may carry."""

    __slots__ = ("_receipt", "_value")

    def __init__(self, seal: object, receipt: Receipt, value: T_co) -> None:
        if seal is not _SEAL:
            raise _misuse("was not issued by a ledger")
        self._receipt = receipt
        self._value = value

    @property
    def value(self) -> T_co:
        return self._value

    @property
    def event(self) -> Event:
        return self._receipt.event

    @property
    def purpose(self) -> str:
        return self._receipt.purpose

    @property
    def round(self) -> int:
        return self._receipt.round

    @property
    def number(self) -> int:
        return self._receipt.number


class CommittedPlan:
    """A plan that the ledger has charged in full; ``Ledger.commit`` gives it. Not sharable across a fork."""

    def __init__(self, books: Books, number: int) -> None:
        self._books = books
        self._number = number
        self._open: dict[int, Receipt | Release[object]] = {}  # by reservation: what may still become a stored reply
        self._process = os.getpid()

    @property
    def plan(self) -> SpendingPlan:
        return self._state.plan

    def event(self, purpose: str) -> Event:
        """What the next release for ``purpose`` will be: the noise to plan with. PRIV-315 when nothing is left."""
        return self._left(purpose).event

    @property
    def drawn(self) -> Sequence[Allotment]:
        """Everything reserved so far."""
        return self._state.drawn

    def spent(self) -> float:
        """Epsilon at the plan's delta of everything reserved so far."""
        from fedethos.privacy.composition import epsilon

        return epsilon(self._state.drawn, delta=self.plan.delta, adjacency=self.plan.adjacency)

    def stored_reply(self, purpose: str, round: int) -> bytes | None:
        """The bytes that were recorded for this round, to send again; None when they have to be computed."""
        self._books.refresh()
        known = self._state.latest(purpose, round)
        reply = self._books.reply(known.number) if known and known.sha256 else None
        if known and reply is not None and hashlib.sha256(reply).hexdigest() != known.sha256:
            raise damaged(self._books.path, "a stored reply is not the one that was recorded")
        return reply

    def lost(self, purpose: str, round: int) -> bool:
        """Whether the round was paid for and its reply is gone, as after a kill. Computing it again costs: call ``replan`` first."""
        reply = self.stored_reply(purpose, round)
        return reply is None and not self.plan.seeded and self._state.latest(purpose, round) is not None

    def reserve(self, purpose: str, round: int) -> Receipt:
        """Draw one release; the disk has it when this returns.

        A seeded plan gets the receipt of a round that was reserved before again: the replay releases the same value.

        Raises
        ------
        FedethosError
            PRIV-315 when the plan has nothing left for ``purpose``; PRIV-310 when caps were tightened below what is committed.
        """
        with self._books.writing():
            earlier = self._state.latest(purpose, round) if self.plan.seeded else None
            if earlier is None:
                self._left(purpose)
                if refusal := shortfall(self._account, self.plan, self._state.charge, number=self._number):
                    raise refusal
                number = self._books.append(Reserved(plan=self._number, purpose=purpose, round=round))
            else:
                number = earlier.number
        receipt = Receipt(_SEAL, self, self._state.reservations[number])
        self._open[number] = receipt
        return receipt

    def record(self, release: Release[object], reply: bytes) -> None:
        """Store the bytes that carry ``release``, before they are sent. PRIV-317 for a release of another plan or a second time."""
        if self._open.get(release.number) is not release:
            raise _misuse("was recorded already or belongs to another plan")
        with self._books.writing():
            self._books.append(Released(reservation=release.number, sha256=hashlib.sha256(reply).hexdigest(), size=len(reply)))
            self._books.keep_reply(release.number, plan=self._number, purpose=release.purpose, round=release.round, reply=reply)
        del self._open[release.number]

    def replan(self, purpose: str, times: int) -> Event:
        """Make room for ``times`` more releases for ``purpose``: with as much more noise as keeps the whole within its budget.

        Everything reserved so far counts, lost or not; other purposes keep their noise. Returns the new event, which every receipt for
        this purpose now carries. What is charged never shrinks.

        Raises
        ------
        FedethosError
            PRIV-306 when no amount of noise makes room.
        """
        from fedethos.privacy.composition import epsilon, least_noise_factor

        with self._books.writing():
            state, account = self._state, self._account
            event = state.last_event(purpose)
            if event is None:
                raise _exhausted(purpose)
            others = [*state.drawn, *(allotment for name, allotment in state.left.items() if name != purpose)]

            def allotment(factor: float) -> Allotment:
                return Allotment(purpose=purpose, event=event.with_noise(factor), times=times)

            def charge(factor: float) -> Charge:
                return _never_less(charge_for(account, [*others, allotment(factor)]), state.charge)

            def fits(factor: float) -> bool:
                cost = epsilon([*others, allotment(factor)], delta=state.plan.delta, adjacency=state.plan.adjacency)
                return cost <= state.plan.epsilon and shortfall(account, state.plan, charge(factor), number=self._number) is None

            factor = least_noise_factor(fits)
            if factor is None:
                raise FedethosError(
                    "PRIV-306",
                    "What is left of the job's budget does not pay for the rounds that remain.",
                    why="A round that was begun and lost stays paid, and computing it again is a second release.",
                    fix="End the run here: the last finished round's adapter is complete.",
                )
            self._books.append(PlanRevised(plan=self._number, allotment=allotment(factor), charge=charge(factor)))
        return self.event(purpose)

    # --- inside ---

    @property
    def _state(self) -> PlanState:
        return self._books.state.plans[self._number]

    @property
    def _account(self) -> AccountState:
        return self._books.state.accounts[self._state.plan.account]

    def _left(self, purpose: str) -> Allotment:
        allotment = self._state.left.get(purpose)
        if allotment is None:
            raise _exhausted(purpose)
        return allotment

    def _redeem(self, receipt: Receipt, value: T, event: Event) -> Release[T]:
        if os.getpid() != self._process or self._open.get(receipt.number) is not receipt:
            raise _misuse("was used already, copied, or taken to another process")
        if event != receipt.event:
            raise _misuse("pays for another mechanism or another amount of noise")
        release = Release(_SEAL, receipt, value)
        self._open[receipt.number] = release
        return release


def _never_less(charge: Charge, earlier: Charge) -> Charge:
    return Charge(
        epsilon=max(charge.epsilon, earlier.epsilon), lifetime=max(charge.lifetime, earlier.lifetime), job=max(charge.job, earlier.job)
    )


def _exhausted(purpose: str) -> FedethosError:
    return FedethosError(
        "PRIV-315",
        "The plan that was paid for has no such release left.",
        where=purpose,
        why="Nothing was computed.",
        fix="A round that was lost and is to be computed again has to be planned anew first.",
    )


def _misuse(how: str) -> FedethosError:
    return FedethosError(
        "PRIV-317", f"A ledger receipt {how}.", why="What it would release is not paid for, so nothing was sent.", fix="Report a bug."
    )
