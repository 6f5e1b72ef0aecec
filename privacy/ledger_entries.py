"""What stands in a ledger: one strict model per kind of entry, in the order in which they come to be.

``SpendingPlan`` is what a node asks the ledger to pay for. Entries go to disk as canonical JSON (``privacy/ledger_chain.py``) and
are folded into balances by ``privacy/ledger_state.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, TypeAdapter, ValidationError

from fedethos.caps import Caps
from fedethos.privacy.events import Adjacency, Allotment
from fedethos.storage import canonical_line

Unit = Literal["person", "record"]

_CONFIG = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True, kw_only=True)
class SpendingPlan:
    """Everything that one run of a job will release about one account, fixed before any record is read.

    ``epsilon`` at ``delta`` is the job's budget for it. ``seeded``: the noise comes from a seed, so that a replay releases the same
    values and is not charged twice; allowed in simulated accounts only. ``evidence`` is the fingerprint of the data file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    account: str
    job_sha256: str
    run: str
    unit: Unit
    adjacency: Adjacency
    epsilon: float
    delta: float
    allotments: tuple[Allotment, ...]
    seeded: bool = False
    evidence: str = ""

    def is_same(self, other: SpendingPlan) -> bool:
        """Equal but for the evidence: a refreshed file is still the same plan."""
        return replace(self, evidence="") == replace(other, evidence="")


class _Model(BaseModel):
    model_config = _CONFIG


class Charge(_Model):
    """What a plan costs: epsilon by privacy loss distributions at the account's delta, rho at the orders of the two filters."""

    epsilon: float
    lifetime: float
    job: float


class AccountOpened(_Model):
    entry: Literal["account-opened"] = "account-opened"
    account: str
    unit: Unit
    adjacency: Adjacency
    simulated: bool
    caps: Caps
    lifetime_order: float
    job_order: float


class CapsTightened(_Model):
    """The orders stay: a filter that chose anew after spending would be none."""

    entry: Literal["caps-tightened"] = "caps-tightened"
    account: str
    caps: Caps


class PlanCommitted(_Model):
    entry: Literal["plan-committed"] = "plan-committed"
    plan: SpendingPlan
    charge: Charge


class PlanRevised(_Model):
    """From here on ``allotment`` is what is left for its purpose."""

    entry: Literal["plan-revised"] = "plan-revised"
    plan: int
    allotment: Allotment
    charge: Charge


class Reserved(_Model):
    """One use of the plan's allotment for ``purpose`` is gone, whether or not anything gets released."""

    entry: Literal["reserved"] = "reserved"
    plan: int
    purpose: str
    round: int


class Released(_Model):
    """The reply that carries the release is stored and may be sent. ``size`` in bytes."""

    entry: Literal["released"] = "released"
    reservation: int
    sha256: str
    size: int


EntryBody = AccountOpened | CapsTightened | PlanCommitted | PlanRevised | Reserved | Released


class Entry(_Model):
    """One line of the ledger. ``time`` is UTC, ISO 8601, and evidence only."""

    time: str
    body: Annotated[EntryBody, Discriminator("entry")]

    def to_json(self) -> str:
        return canonical_line(self.model_dump(mode="json")).decode().rstrip("\n")


_ENTRY = TypeAdapter(Entry)


def parse_entry(text: str) -> Entry | None:
    """None for anything that this version does not write."""
    try:
        return _ENTRY.validate_json(text)
    except ValidationError:
        return None
