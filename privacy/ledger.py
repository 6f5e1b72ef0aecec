"""The privacy ledger of a site: what was spent on whom, on disk before it is spent.

One account per declared population. Its name is the key, not a file's fingerprint: a refreshed export of the same people does not
get a new budget. A plan is charged in full when it is committed, before any record is read; stopping early refunds nothing::

    with Ledger(path) as ledger:
        ledger.open_account("patients", caps=caps, unit="person", adjacency="add-remove", simulated=False)
        plan = ledger.commit(spending_plan)       # PRIV-310: over a cap, nothing computed

Next on the path: ``privacy/ledger_plan.py`` draws on the plan; ``privacy/ledger_budget.py`` has the rule for the caps,
``privacy/ledger_chain.py`` the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from fedethos.caps import Caps
from fedethos.errors import FedethosError
from fedethos.privacy.events import Adjacency
from fedethos.privacy.ledger_books import Books
from fedethos.privacy.ledger_budget import charge_for, shortfall
from fedethos.privacy.ledger_chain import Head, read_only
from fedethos.privacy.ledger_entries import AccountOpened, CapsTightened, Charge, PlanCommitted, SpendingPlan, Unit
from fedethos.privacy.ledger_plan import CommittedPlan
from fedethos.privacy.ledger_state import AccountState, LedgerState
from fedethos.privacy.renyi import RenyiFilter

FILE = "ledger.sqlite"


class Ledger:
    """An open ledger file. Several processes may write one file; each opens its own ``Ledger``, also after a fork."""

    def __init__(self, path: Path) -> None:
        """Open or create, and check every entry. PRIV-312 when damaged, PRIV-307 when it cannot be read or written."""
        self._books = Books(path)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._books.close()

    @property
    def head(self) -> Head:
        """Number and hash of the last entry. Kept elsewhere, it proves later that nothing before it was touched."""
        return self._books.head

    @property
    def accounts(self) -> Mapping[str, AccountState]:
        return self._books.state.accounts

    def open_account(self, name: str, *, caps: Caps, unit: Unit, adjacency: Adjacency, simulated: bool) -> None:
        """Open an account, or check that it is this one and tighten its caps.

        ``simulated`` accounts may hold seeded plans and are never valid in a deployment.

        Raises
        ------
        FedethosError
            PRIV-313 when the account is of another unit, adjacency or kind; PRIV-314 when ``caps`` allow more than the ledger's.
        """
        with self._books.writing() as state:
            known = state.accounts.get(name)
            if known is None:
                self._books.append(_opened(name, caps, unit, adjacency, simulated=simulated))
                return
            if (known.opened.unit, known.opened.adjacency, known.opened.simulated) != (unit, adjacency, simulated):
                raise _another_account(name, "was opened for another unit or adjacency, or for simulations")
            _check_caps(caps, known)
            if caps != known.caps:
                self._books.append(CapsTightened(account=name, caps=caps))

    def commit(self, plan: SpendingPlan) -> CommittedPlan:
        """Charge a plan in full, or find it again after a restart: job and run name it.

        Raises
        ------
        FedethosError
            PRIV-310 over a cap; PRIV-301 when the plan costs more than its own epsilon; PRIV-311 too many rounds; PRIV-313 an
            account that is not open or does not fit; PRIV-316 when another plan was committed for this job and run; PRIV-304 a plan
            without allotments, or with two for one purpose.
        """
        with self._books.writing() as state:
            account = _account_for(plan, state)
            known = account.find(plan.job_sha256, plan.run)
            if known is not None and not known.plan.is_same(plan):
                raise FedethosError(
                    "PRIV-316",
                    "Another plan was committed for this job and run.",
                    why="A plan that changes on the way would be charged for something else than it releases.",
                    fix="Start a new run; what the old plan was charged stays charged.",
                )
            number = known.number if known else self._charge(account, plan)
        return CommittedPlan(self._books, number)

    def check(self, plan: SpendingPlan) -> None:
        """Refuse what ``commit`` would refuse, and charge nothing. For one ledger that holds all sites of a simulation."""
        with self._books.writing() as state:
            account = _account_for(plan, state)
            if account.find(plan.job_sha256, plan.run) is None:
                _priced(account, plan)

    def _charge(self, account: AccountState, plan: SpendingPlan) -> int:
        return self._books.append(PlanCommitted(plan=plan, charge=_priced(account, plan)))


def _priced(account: AccountState, plan: SpendingPlan) -> Charge:
    """What a new plan costs, once nothing speaks against it."""
    _check_shape(plan, account.caps)
    _check_own_budget(plan)
    charge = charge_for(account, plan.allotments)
    if refusal := shortfall(account, plan, charge, number=None):
        raise refusal
    return charge


def read_ledger(path: Path) -> tuple[LedgerState, Head]:
    """The balances of a ledger and its head, without writing to it. Errors as on opening."""
    entries, head = read_only(path)
    state = LedgerState()
    state.fold(entries, path)
    return state, head


def quote(state: LedgerState, plan: SpendingPlan, caps: Caps) -> tuple[AccountState, Charge]:
    """The account as it is, and what ``commit`` would charge to it, from a ledger that was only read.

    ``caps``: of the site's document, for an account that is not open yet or would be tightened by it. A plan that is committed already
    gives its charge. Errors as for ``open_account`` and ``commit``.
    """
    known = state.accounts.get(plan.account)
    if known is None:
        account = AccountState(_opened(plan.account, caps, plan.unit, plan.adjacency, simulated=False), caps)
    else:
        _check_caps(caps, known)
        account = AccountState(known.opened, caps, known.plans)
    _check_account(plan, account)
    committed = account.find(plan.job_sha256, plan.run)
    return account, committed.charge if committed else _priced(account, plan)


def _opened(name: str, caps: Caps, unit: Unit, adjacency: Adjacency, *, simulated: bool) -> AccountOpened:
    return AccountOpened(
        account=name,
        unit=unit,
        adjacency=adjacency,
        simulated=simulated,
        caps=caps,
        lifetime_order=RenyiFilter.opened(caps.lifetime_epsilon, caps.delta).order,
        job_order=RenyiFilter.opened(caps.per_job_epsilon, caps.delta).order,
    )


def _check_caps(caps: Caps, account: AccountState) -> None:
    if not caps.tightens(account.caps):
        raise FedethosError(
            "PRIV-314",
            "The caps of the site allow more than the ledger's.",
            where="caps",
            why="A cap that can be raised after seeing results protects nobody.",
            fix="Put back the old caps or tighter ones; delta stays what it was.",
        )


def _account_for(plan: SpendingPlan, state: LedgerState) -> AccountState:
    account = state.accounts.get(plan.account)
    if account is None:
        raise _another_account(plan.account, "is not in this ledger")
    _check_account(plan, account)
    return account


def _check_account(plan: SpendingPlan, account: AccountState) -> None:
    if (plan.unit, plan.adjacency) != (account.opened.unit, account.opened.adjacency):
        raise _another_account(plan.account, "counts another unit or adjacency than the job protects")
    if plan.seeded and not account.opened.simulated:
        raise _another_account(plan.account, "is not for simulations, and the job's noise comes from a seed")


def _another_account(name: str, how: str) -> FedethosError:
    return FedethosError(
        "PRIV-313",
        f"The ledger account {how}.",
        where=name,
        why="Costs of different kinds do not add up to one guarantee. Nothing was sent.",
        fix="Name the right account in site.yaml; a simulation keeps its own ledger in the run folder.",
    )


def _check_shape(plan: SpendingPlan, caps: Caps) -> None:
    purposes = [allotment.purpose for allotment in plan.allotments]
    if not purposes or len(set(purposes)) != len(purposes):
        raise FedethosError("PRIV-304", "A spending plan needs allotments, one for each purpose.", why="Nothing was charged.")
    if max(allotment.times for allotment in plan.allotments) > caps.rounds:
        raise FedethosError(
            "PRIV-311",
            f"The job plans more rounds than this site allows ({caps.rounds}). Nothing was sent.",
            where="caps.rounds",
            fix="Plan fewer federation.rounds, or ask the site.",
        )


def _check_own_budget(plan: SpendingPlan) -> None:
    from fedethos.privacy.composition import epsilon

    cost = epsilon(plan.allotments, delta=plan.delta, adjacency=plan.adjacency)
    if cost > plan.epsilon * (1.0 + 1e-9):
        raise FedethosError(
            "PRIV-301",
            f"This plan costs epsilon {cost:.2f}; the job's limit is {plan.epsilon:g}. Nothing was sent.",
            where="privacy.epsilon",
            fix="Plan more noise or fewer rounds: `fedethos privacy plan`.",
        )
