"""The only way for an update or a count to leave: a ``Release`` that the ledger paid for, or a job that says there is no privacy.

Next on the path: ``privacy/ledger_plan.py`` (receipts), ``fedethos/messages.py`` (what a reply looks like on the wire).
"""

from __future__ import annotations

import json
from typing import Any

from safetensors.numpy import load, save

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import Arrays, Basis, EvaluateReply, Tables, TrainReply
from fedethos.privacy.events import CountRelease, TrainingSteps
from fedethos.privacy.ledger_plan import CommittedPlan, Release


def paid_update(release: Release[Arrays], ledger: CommittedPlan) -> TrainReply:
    """A private update with the statement of what has been spent so far. Its bytes are on disk before it can be sent."""
    reply = TrainReply(
        arrays=release.value,
        basis=Basis.CHARGED,
        unit=ledger.plan.unit,
        adjacency=ledger.plan.adjacency,
        epsilon=ledger.spent(),
        delta=ledger.plan.delta,
        steps=sum(one.times * one.event.steps for one in ledger.drawn if isinstance(one.event, TrainingSteps)),
    )
    ledger.record(release, to_bytes(reply))
    return reply


def unprotected_update(arrays: Arrays, job: Job) -> TrainReply:
    """An update without noise. Refused (PRIV-335) unless the job says ``privacy.mode: none``."""
    if job.privacy.mode != "none":
        raise FedethosError("PRIV-335", "An update without noise was about to leave a private job.", why="Nothing was sent.")
    return TrainReply(arrays, Basis.UNPROTECTED, job.unit, job.privacy.adjacency, epsilon=None, delta=None, steps=job.training.local_steps)


def paid_counts(release: Release[Tables], ledger: CommittedPlan) -> EvaluateReply:
    """Noisy counts with the parameter of their noise. Their bytes are on disk before they can be sent."""
    if not isinstance(release.event, CountRelease):
        raise FedethosError("PRIV-336", "The ledger paid for another mechanism than was used.", why="Nothing was sent.")
    reply = EvaluateReply(release.value, Basis.CHARGED, sigma=release.event.sigma, epsilon=ledger.spent())
    ledger.record(release, to_bytes(reply))
    return reply


def to_bytes(reply: TrainReply | EvaluateReply) -> bytes:
    """A paid reply as one byte string, to be stored and sent again."""
    tensors = reply.arrays if isinstance(reply, TrainReply) else reply.tables
    statement = {name: value for name, value in vars(reply).items() if name not in ("arrays", "tables", "basis")}
    stored: bytes = save(dict(tensors), metadata={"statement": json.dumps(statement, sort_keys=True)})
    return stored


def stored_update(stored: bytes) -> TrainReply:
    """The update that ``to_bytes`` stored. The ledger has checked its hash."""
    return TrainReply(arrays=load(stored), basis=Basis.CHARGED, **_statement(stored))


def stored_counts(stored: bytes) -> EvaluateReply:
    """The counts that ``to_bytes`` stored."""
    return EvaluateReply(tables=load(stored), basis=Basis.CHARGED, **_statement(stored))


def _statement(stored: bytes) -> dict[str, Any]:
    length = int.from_bytes(stored[:8], "little")
    statement: dict[str, Any] = json.loads(json.loads(stored[8 : 8 + length])["__metadata__"]["statement"])
    return statement
