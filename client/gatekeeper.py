"""What a node checks in a request before anything is computed: it must be what this site approved, and nothing else.

The coordinator may be hostile. What it cannot say at all (a clipping norm, an amount of noise, code) has no field here: those stand in the
approved job. What it can say is compared with the approval, the site's own document and what was asked before. Imports no deep-learning
library. Next on the path: ``client/release_contract.py`` (the way out).
"""

from __future__ import annotations

import re
from datetime import datetime

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message

from fedethos.aggregation import WITH_RESIDUAL, is_residual, lora_names, residual_names
from fedethos.client.approvals import Approval, Shapes
from fedethos.client.asked_counts import check_layout, check_personal, layout_of
from fedethos.client.cell_weights import accepted_weights
from fedethos.client.history import History
from fedethos.client.spending import check_protection
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import ARRAYS, CONFIG, EVALUATE, SETUP, TRAIN, Arrays, Request, decode_request
from fedethos.site import SiteDocument

MOST_ATTEMPTS = 1_000
LARGEST_VALUE = 1e6
"""Of an adapter's number. Trained ones are a few units; beyond it float32 arithmetic overflows."""

_HEADER_BYTES = 4_096  # of one tensor on the wire, beside its numbers
_LONGEST_TEXT, _LONGEST_LIST, _MOST_KEYS = 128, 4_096, 32


def named_job(message: Message) -> str:
    """The hash of the job that a message is about, to find its approval. SEC-630 when it names none."""
    config = message.content.config_records.get(CONFIG, ConfigRecord()) if message.has_content() else ConfigRecord()
    named = config.get("job-sha256")
    if not isinstance(named, str):
        raise FedethosError("SEC-630", "A message does not follow the message contract: it names no job.", why="Nothing was computed.")
    return named


def check_request(message: Message, approval: Approval, site: SiteDocument, history: History | None, now: datetime) -> Request:
    """The request of ``message``, which passed every check and is noted in ``history``.

    Parameters
    ----------
    approval : Approval
        Of the job that the request names (``approvals.find_approval``).
    history : History, optional
        None for a message that passed before and lay in the node's own inbox when the node stopped: all else is checked again.
    now : datetime
        With its time zone; compared with the site's ``hours``.

    Raises
    ------
    FedethosError
        SEC-610 another job; SEC-630 not a request of the contract; SEC-631 a round that the job does not have; SEC-632 other tensors, or
        SEC-645 another residual; SEC-633 a name, number or size out of range; SEC-634 came before; SEC-636 an adapter with NaN, infinity or
        huge numbers; SEC-640 to SEC-643 cell weights; SEC-650 and SEC-651 counts that the job does not name; PRIV-311 more rounds than the
        site allows; PRIV-330 exact counts of a private job; PRIV-360 no privacy at all; NODE-530 outside the site's hours.
    """
    job, kind = approval.job, message.metadata.message_type
    if kind not in (SETUP, TRAIN, EVALUATE) or not message.has_content():
        raise FedethosError("SEC-630", "A message is not of a type that this version answers.", why="Nothing was computed.")
    _check_sizes(message, approval)
    request = decode_request(message)
    if request.job_sha256 != approval.job_sha256:
        raise FedethosError(
            "SEC-610",
            "The coordinator asked for another job than the one approved here.",
            why="Nothing was computed.",
            fix="Ask the coordinator for the job file and review it again.",
        )
    _check_names_and_numbers(request, job, kind)
    _check_tensors(request, approval, kind)
    _check_wishes(request, job, kind)
    _check_site_limits(job, site, kind, now)
    message_id = message.metadata.message_id
    round = None if kind == SETUP or (kind == EVALUATE and job.privacy.mode == "none") else request.round
    if history is not None:
        history.check(message_id, request.job_sha256, request.run, round)
        history.record(message_id, request.job_sha256, request.run, round)
    return request


def most_request_bytes(approval: Approval) -> int:
    """More bytes than any request of an approved job has on the wire: what a node reads before it looks at one."""
    _, training = _most(approval.tensors, approval.job)
    _, setup = _most(approval.frozen, approval.job)
    return max(training, setup) + _LONGEST_LIST * _MOST_KEYS * 16


def _most(expected: Shapes, job: Job) -> tuple[int, int]:
    """Tensors and bytes of a request that carries ``expected``, and a residual where the job has one."""
    residual = job.aggregation in WITH_RESIDUAL
    tensors = len(expected) * (2 if residual else 1)
    numbers = sum(_bytes_of(shape) for shape in expected.values()) + (_residual_bytes(expected) if residual else 0)
    return tensors, numbers + tensors * _HEADER_BYTES


def _check_sizes(message: Message, approval: Approval) -> None:
    """Before anything is decoded: not more tensors, keys, characters or bytes than a request of this job has."""
    most_tensors, most_bytes = _most(approval.tensors if message.metadata.message_type != SETUP else approval.frozen, approval.job)
    arrays = message.content.array_records.get(ARRAYS, ArrayRecord())
    if len(arrays) > most_tensors or sum(len(array.data) for array in arrays.values()) > most_bytes:
        raise _out_of_range("carries more tensors or bytes than the adapter of this job has")
    config = message.content.config_records.get(CONFIG, ConfigRecord())
    if len(config) > _MOST_KEYS or any(_is_long(name) or _is_long(value) for name, value in config.items()):
        raise _out_of_range("has more keys, or longer texts or lists, than any request")


def _is_long(value: object) -> bool:
    most = _LONGEST_LIST if isinstance(value, list) else _LONGEST_TEXT
    return isinstance(value, (str, bytes, list)) and len(value) > most


def _check_names_and_numbers(request: Request, job: Job, kind: str) -> None:
    if re.fullmatch(re.escape(job.name) + "-[0-9a-f]{8}", request.run) is None:
        raise _out_of_range("names a run that is not of this job")
    if not 0 <= request.attempt <= MOST_ATTEMPTS:
        raise _out_of_range("counts attempts that nobody makes")
    first, last = {SETUP: (0, 0), TRAIN: (0 if job.center_head else 1, job.federation.rounds), EVALUATE: (0, job.federation.rounds)}[kind]
    if not first <= request.round <= last:
        raise FedethosError("SEC-631", "A message names a round that the job does not have.", why="Nothing was computed.")


def _check_tensors(request: Request, approval: Approval, kind: str) -> None:
    expected = approval.tensors if kind != SETUP else approval.frozen
    residual = {name: array for name, array in request.arrays.items() if is_residual(name)}
    if residual and (kind == SETUP or approval.job.aggregation not in WITH_RESIDUAL):
        raise _not_negotiated()
    if {name: array.shape for name, array in request.arrays.items() if name not in residual} != dict(expected):
        raise _not_negotiated()
    if residual:
        _check_residual(residual, expected)
    for array in request.arrays.values():
        if array.size and not float(np.abs(array).max()) <= LARGEST_VALUE:  # NaN compares false
            raise FedethosError(
                "SEC-636",
                f"An adapter value in a message is not finite, or larger than {LARGEST_VALUE:g}.",
                why="It would spoil the model, or make gradients tell more than they should. Nothing was computed.",
            )


def _check_residual(residual: Arrays, tensors: Shapes) -> None:
    """Pairs [d_out, k], [k, d_in] of adapted layers, with a k that a product of that size can need."""
    left = {name: array.shape for name, array in residual.items()}
    for name in tensors:
        if ".lora_B." not in name:
            continue
        layer = name.partition(".lora_B.")[0]
        d_out, d_in = tensors[name][0], tensors[lora_names(layer)[1]][1]
        b, a = (left.pop(one, None) for one in residual_names(layer))
        if b is None and a is None:
            continue
        rank = b[-1] if b else 0
        if (b, a) != ((d_out, rank), (rank, d_in)) or not 1 <= rank <= min(d_out, d_in):
            raise _misfit()
    if left:
        raise _misfit()


def _check_wishes(request: Request, job: Job, kind: str) -> None:
    """What the coordinator may choose: weights of cells and tables of counts, each within what the job names."""
    if kind == TRAIN:
        accepted_weights(request.cell_weights, job)
        most = job.fairness.max_weight * (1.0 + 1e-9)
        if request.cell_weights is not None and max(request.cell_weights) > most:
            raise FedethosError(
                "SEC-643",
                "A cell weight is larger than the approved job allows.",
                where="fairness.max_weight",
                why="The noise grows with the largest weight, so an honest coordinator never sends one. Nothing was computed.",
            )
    if kind == EVALUATE:
        layout = layout_of(request)
        if request.split is None:
            raise FedethosError("SEC-630", "An evaluate message names no split.", why="Nothing was computed.")
        check_layout(request.split, layout, job)
        check_personal(request, job)
        if layout.wanted:
            layout.predictions(len(job.data.label.values))
        elif job.privacy.mode != "none":
            raise FedethosError(
                "PRIV-330",
                "Exact counts were asked for, but the job is private.",
                why="A count without noise is not covered by the job's epsilon.",
            )


def _check_site_limits(job: Job, site: SiteDocument, kind: str, now: datetime) -> None:
    """Caps in epsilon are the ledger's to check: it commits the whole plan before the first round."""
    check_protection(job, site)
    if job.federation.rounds > site.caps.rounds:
        raise FedethosError(
            "PRIV-311",
            f"The job plans more rounds than this site allows ({site.caps.rounds}). Nothing was sent.",
            where="caps.rounds",
            fix="Plan fewer federation.rounds, or ask the site.",
        )
    if kind == TRAIN and not site.may_train_at(now):
        raise FedethosError(
            "NODE-530",
            "This site trains at other hours.",
            where="hours",
            why="Nothing was computed; the request may come again.",
            fix="Plan federation.deadline so that the site's hours fall into each round.",
        )


def _bytes_of(shape: tuple[int, ...]) -> int:
    return 4 * int(np.prod(shape, dtype=object))


def _residual_bytes(tensors: Shapes) -> int:
    total = 0
    for name, shape in tensors.items():
        if ".lora_B." in name:
            d_out, d_in = shape[0], tensors[lora_names(name.partition(".lora_B.")[0])[1]][1]
            total += 4 * min(d_out, d_in) * (d_out + d_in)
    return total


def _out_of_range(how: str) -> FedethosError:
    return FedethosError("SEC-633", f"A message {how}.", why="Nothing was computed.")


def _not_negotiated() -> FedethosError:
    return FedethosError("SEC-632", "A message carries other tensors than the adapter of this job.", why="Nothing was computed.")


def _misfit() -> FedethosError:
    return FedethosError(
        "SEC-645", "A residual does not fit the adapted layers of this job.", why="It would change other weights than the job says."
    )
