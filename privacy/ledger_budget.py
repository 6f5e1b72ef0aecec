"""What a plan is charged, and when a site refuses it.

Two caps, the account's lifetime and the job's, each with its own Rényi filter (``privacy/renyi.py``). A plan fits under a cap
- if the filter lets it pass after all other plans under that cap, or
- if it is the first one under that cap and its own epsilon, by privacy loss distributions, keeps the cap.
The second rule is no loophole: which rule admits the first plan is settled before anything is released, and when the filter would
not have let it pass, nothing ever fits after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedethos.errors import FedethosError
from fedethos.privacy.events import Allotment
from fedethos.privacy.ledger_entries import Charge, SpendingPlan
from fedethos.privacy.ledger_state import AccountState
from fedethos.privacy.renyi import RenyiFilter, renyi_cost


def charge_for(account: AccountState, allotments: Sequence[Allotment]) -> Charge:
    """What the account books for a plan with these allotments."""
    from fedethos.privacy.composition import epsilon  # takes a second to import, and only a new plan needs it

    opened = account.opened
    return Charge(
        epsilon=epsilon(allotments, delta=account.caps.delta, adjacency=opened.adjacency),
        lifetime=renyi_cost(allotments, order=opened.lifetime_order, adjacency=opened.adjacency),
        job=renyi_cost(allotments, order=opened.job_order, adjacency=opened.adjacency),
    )


def shortfall(account: AccountState, plan: SpendingPlan, charge: Charge, *, number: int | None) -> FedethosError | None:
    """The refusal PRIV-310 of a plan at this charge, or None when it fits. ``number`` is the plan's own, if it is booked already."""
    others = account.besides(number)
    same_job = account.besides(number, job_sha256=plan.job_sha256)
    lifetime, job = account.lifetime_filter(others), account.job_filter(same_job)
    if not _fits(lifetime, charge.lifetime, charge.epsilon, first=not others):
        return _refusal("This site has {} of its lifetime budget left", lifetime, charge.lifetime, charge.epsilon, first=not others)
    if not _fits(job, charge.job, charge.epsilon, first=not same_job):
        return _refusal("At this site the job has {} of its budget left", job, charge.job, charge.epsilon, first=not same_job)
    return None


def _fits(earlier: RenyiFilter, rho: float, epsilon: float, *, first: bool) -> bool:
    return earlier.fits(rho) or (first and epsilon <= earlier.epsilon_cap)


def _refusal(sentence: str, earlier: RenyiFilter, rho: float, epsilon: float, *, first: bool) -> FedethosError:
    left = math.floor(100.0 * (earlier.epsilon_cap if first else earlier.remaining)) / 100.0
    cost = epsilon if first else rho
    needs = math.ceil(100.0 * cost) / 100.0 if math.isfinite(cost) else cost
    return FedethosError(
        "PRIV-310",
        f"{sentence.format(f'{left:g}')} and the run needs {needs:g}. Nothing was sent.",
        where="caps",
        why="Over the cap, what leaves could tell too much about one of its people.",
        fix="Ask your privacy officer, or plan a smaller privacy.epsilon; `fedethos privacy spent` shows what the budget went into.",
    )
