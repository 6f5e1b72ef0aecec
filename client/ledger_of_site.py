"""A site's privacy ledger as others read it: its balances, and whether it still knows everything that left.

A ledger that is put back from an old copy is whole in itself and has forgotten what was spent since. The record of what left
(``client/egress.py``) tells: every private message in it has to stand in the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedethos.client.egress import Line
from fedethos.errors import FedethosError
from fedethos.privacy.ledger import read_ledger
from fedethos.privacy.ledger_chain import head_path
from fedethos.privacy.ledger_state import LedgerState


def ledger_state(path: Path) -> LedgerState:
    """Balances; nothing spent where no ledger was made yet. PRIV-312 when it is damaged."""
    if not path.exists() and not head_path(path).exists():
        return LedgerState()
    return read_ledger(path)[0]


def check_ledger_remembers(lines: Iterable[Line], state: LedgerState) -> None:
    """PRIV-362 when a private message left that the ledger does not know: it was restored from a copy older than that message."""
    released = {
        (plan.plan.run, reservation.round)
        for plan in state.plans.values()
        for reservation in plan.reservations.values()
        if reservation.sha256 is not None
    }
    forgotten = [line for line in lines if line.sent.epsilon_after is not None and (line.sent.run, line.sent.round) not in released]
    if forgotten:
        raise FedethosError(
            "PRIV-362",
            f"The privacy ledger does not know {len(forgotten)} messages that left, the first of run {forgotten[0].sent.run}, "
            f"round {forgotten[0].sent.round}.",
            why="It was put back from an old copy, so it counts less than was spent.",
            fix="Restore a newer copy. If there is none, start no job on these people: ask your privacy officer.",
        )
