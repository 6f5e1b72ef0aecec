"""What may leave a site, checked once more on the way out: a white list of records, names, shapes, dtypes and bytes.

The supervisor checks what its worker gives it, so that a worker that is broken cannot send what was not agreed or not paid for. A private
reply has to be, byte for byte, one that the ledger recorded as released for this run, purpose and round. Whatever is not on the list is
held back (fail closed) and stays in the site's log. Next on the path: ``client/egress.py``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import Array, RecordDict

import fedethos
from fedethos.aggregation import trained_in
from fedethos.client.approvals import Approval
from fedethos.client.asked_counts import layout_of
from fedethos.client.error_guard import LEAVING
from fedethos.client.release import to_bytes
from fedethos.errors import FedethosError
from fedethos.fairness.histograms import check_tables, table_shapes
from fedethos.job import Job
from fedethos.messages import Basis, ErrorReply, EvaluateReply, Reply, Request, SetupReply, TrainReply, decode_reply, encode_reply
from fedethos.privacy.events import CENTER, TRAIN, CountRelease, GaussianSum, TrainingSteps, purpose_of
from fedethos.privacy.ledger import read_ledger
from fedethos.privacy.ledger_state import Reservation

_MOST_STEPS = 10**9


def check_reply(message_type: str, request: Request, reply: RecordDict, approval: Approval, ledger: Path | None) -> None:
    """Let ``reply`` pass, or hold it back. What passed may be sent as it is: these bytes and no others.

    Parameters
    ----------
    request : Request
        What is answered.
    ledger : Path, optional
        The site's privacy ledger; None only where the job has no privacy.

    Raises
    ------
    FedethosError
        SEC-660 for records, fields, error codes or bytes that are not on the list; SEC-661 for tensors or tables with other names, shapes
        or values than agreed; SEC-662 for a statement that is not the job's; SEC-663 for a private reply that the ledger did not record.
    """
    try:
        decoded = decode_reply(message_type, reply)
    except FedethosError as refusal:
        raise _held_back("SEC-660", "is not a reply of the message contract") from refusal
    if not _is_canonical(reply, decoded):
        raise _held_back("SEC-660", "has fields or bytes that no reply of its kind has")
    match decoded:
        case ErrorReply():
            if decoded.code not in LEAVING:  # that the incident is a random number, decode_reply has checked
                raise _held_back("SEC-660", "has an error code that is not on the list")
        case SetupReply():
            if (decoded.fedethos, decoded.model_sha256) != (fedethos.__version__, approval.base_sha256):
                raise _held_back("SEC-662", "names another fedethos or another base model than was approved")
        case TrainReply():
            _check_update(decoded, request, approval, ledger)
        case EvaluateReply():
            _check_counts(decoded, request, approval, ledger)


def _check_update(reply: TrainReply, request: Request, approval: Approval, ledger: Path | None) -> None:
    job = approval.job
    expected = {name: approval.tensors[name] for name in trained_in(job.aggregation, request.round, approval.tensors)}
    if {name: array.shape for name, array in reply.arrays.items()} != expected:
        raise _held_back("SEC-661", "has other tensors than train in this round")
    if not all(bool(np.isfinite(array).all()) for array in reply.arrays.values()):
        raise _held_back("SEC-661", "has values that are not finite")
    _check_basis(reply.basis, job)
    if (reply.unit, reply.adjacency) != (job.unit, job.privacy.adjacency) or not 0 <= reply.steps <= _MOST_STEPS:
        raise _held_back("SEC-662", "states another unit, adjacency or number of steps than the job")
    if reply.basis is Basis.CHARGED:
        if reply.delta != job.privacy.delta:
            raise _held_back("SEC-662", "states another delta than the job")
        _check_epsilon(reply.epsilon, job)
        purpose, kind = (CENTER, GaussianSum) if request.round == 0 else (TRAIN, TrainingSteps)
        if not isinstance(_paid(reply, purpose, request, approval, ledger).event, kind):
            raise _held_back("SEC-663", "was paid for as something else")
    elif reply.epsilon is not None:
        raise _held_back("SEC-662", "states an epsilon, and the job has no privacy")


def _check_counts(reply: EvaluateReply, request: Request, approval: Approval, ledger: Path | None) -> None:
    job, layout = approval.job, layout_of(request)
    labels, charged = len(job.data.label.values), reply.basis is Basis.CHARGED
    try:
        check_tables(
            reply.tables, layout.shapes(job.counted, labels) if layout.wanted else table_shapes(job.counted, labels), charged=charged
        )
    except FedethosError as refusal:
        raise _held_back("SEC-661", "has other tables than were asked for, or counts that nobody has") from refusal
    _check_basis(reply.basis, job)
    if not charged:
        if reply.sigma is not None or reply.epsilon is not None:
            raise _held_back("SEC-662", "states noise, and the job has no privacy")
        return
    _check_epsilon(reply.epsilon, job)
    event = _paid(reply, purpose_of(layout.wanted, request.split or "test", personal=request.personal), request, approval, ledger).event
    if not isinstance(event, CountRelease) or event.sigma != reply.sigma:
        raise _held_back("SEC-663", "has another noise than was paid for")


def _check_basis(basis: Basis, job: Job) -> None:
    if basis is not (Basis.UNPROTECTED if job.privacy.mode == "none" else Basis.CHARGED):
        raise _held_back("SEC-662", "does not have the basis on which this job may send it")


def _check_epsilon(epsilon: float | None, job: Job) -> None:
    most = (job.privacy.epsilon or 0.0) * (1.0 + 1e-9)
    if epsilon is None or not (math.isfinite(epsilon) and 0.0 <= epsilon <= most):
        raise _held_back("SEC-662", "states an epsilon that the job does not have")


def _paid(reply: TrainReply | EvaluateReply, purpose: str, request: Request, approval: Approval, ledger: Path | None) -> Reservation:
    """The ledger's reservation whose recorded reply this is. SEC-663 when there is none."""
    if ledger is None:
        raise _held_back("SEC-663", "is private, and this site keeps no ledger")
    state, _ = read_ledger(ledger)
    account = state.accounts.get(approval.account)
    plan = account.find(approval.job_sha256, request.run) if account else None
    reservation = plan.latest(purpose, request.round) if plan else None
    if reservation is None or reservation.sha256 != hashlib.sha256(to_bytes(reply)).hexdigest():
        raise _held_back("SEC-663", "is not one that the privacy ledger recorded for this run and round")
    return reservation


def _is_canonical(reply: RecordDict, decoded: Reply) -> bool:
    """Whether ``reply`` is what ``encode_reply`` writes, to the byte. One tensor at a time: an adapter can be large."""
    arrays: Mapping[str, npt.NDArray[np.generic]] = {}
    if isinstance(decoded, TrainReply):
        arrays = decoded.arrays
    elif isinstance(decoded, EvaluateReply):
        arrays = decoded.tables
    written = encode_reply(_without_arrays(decoded))
    if any(dict(reply.config_records[name]) != dict(record) for name, record in written.config_records.items()):
        return False
    for record in reply.array_records.values():
        if list(record) != sorted(record):
            return False
        if any(item.data != Array(np.ascontiguousarray(arrays[name])).data for name, item in record.items()):
            return False
    return True


def _without_arrays(reply: Reply) -> Reply:
    if isinstance(reply, TrainReply):
        return replace(reply, arrays={})
    return replace(reply, tables={}) if isinstance(reply, EvaluateReply) else reply


def _held_back(code: str, how: str) -> FedethosError:
    return FedethosError(
        code,
        f"A reply {how}.",
        why="It was held back: nothing but what was approved and paid for leaves this site.",
        fix="Report a bug with the incident from the node's log.",
    )
