"""From a message to what may be sent back: approval, gatekeeper, ledger, worker, release contract, in this order.

Nothing is asked of the worker before the plan that pays for the answer is on the disk; nothing leaves that the release contract does not
know. Any failure on the way becomes a code of the fixed list and a random incident id. Imports no deep-learning library.
Next on the path: ``client/gatekeeper.py``, ``client/worker.py``, ``client/release_contract.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Message, RecordDict

from fedethos.client.approvals import Approval, approvals_that_hold, find_approval
from fedethos.client.asked_counts import layout_of
from fedethos.client.egress import Sent
from fedethos.client.error_guard import error_reply
from fedethos.client.frames import Order
from fedethos.client.gatekeeper import check_request, most_request_bytes, named_job
from fedethos.client.history import History
from fedethos.client.release import stored_counts, stored_update
from fedethos.client.release_contract import check_reply
from fedethos.client.spending import open_site_account, spending_plan
from fedethos.client.worker_handle import WorkerDiedError, WorkerHandle
from fedethos.errors import FedethosError
from fedethos.flower import all_objects
from fedethos.flower_fleet import SMALL_MESSAGE
from fedethos.logs import INCIDENTS
from fedethos.messages import EVALUATE, SETUP, STATEMENT, Request, encode_reply
from fedethos.messages import TRAIN as TRAIN_MESSAGE
from fedethos.privacy.events import TRAIN, purpose_of
from fedethos.privacy.ledger import Ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.ledger_plan import CommittedPlan
from fedethos.site import SiteDocument

log = logging.getLogger(__name__)
incidents = logging.getLogger(INCIDENTS)

_TRIES = 2  # a worker that dies is started again once


@dataclass(frozen=True)
class Answer:
    """``request``: None when it did not pass. ``code``: of an error reply, else None."""

    reply: RecordDict
    request: Request | None
    code: str | None

    def as_sent(self, message_type: str) -> Sent:
        """For the record of what left. A request that did not pass is not quoted."""
        statement = self.reply.config_records.get(STATEMENT)
        epsilon = None if statement is None else statement.get("epsilon")
        return Sent(
            run="" if self.request is None else self.request.run,
            round=0 if self.request is None else self.request.round,
            message_type="" if self.request is None else message_type,
            shapes={name: array.shape for record in self.reply.array_records.values() for name, array in record.items()},
            bytes=sum(len(item.deflate()) for item in all_objects(self.reply).values()),
            sha256=self.reply.object_id,
            epsilon_after=epsilon if isinstance(epsilon, float) else None,
            refused=self.code,
        )


class RequestHandler:
    """Holds the site's ledger and history open; as a context manager it closes them."""

    def __init__(self, site: SiteDocument, folder: Path, worker: WorkerHandle) -> None:
        self._site, self._worker = site, worker
        self._state, self._key, self._ledger_path = folder / site.state, folder / site.key, folder / site.ledger
        self._resources = ExitStack()
        self._ledger: Ledger | None = None
        self._plans: dict[tuple[str, str], SpendingPlan] = {}
        self._setup: tuple[Order, RecordDict] | None = None
        self._history: History

    def __enter__(self) -> RequestHandler:
        self._history = self._resources.enter_context(History(self._state / "history.sqlite"))
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def most_bytes(self) -> int:
        """What the largest request of an approved job may have on the wire."""
        try:
            approvals = approvals_that_hold(self._state, self._key, self._site)
        except FedethosError:  # the key, without which every request is refused
            return SMALL_MESSAGE
        return max([SMALL_MESSAGE, *map(most_request_bytes, approvals)])

    def answer(self, message: Message, *, known: bool, kept: RecordDict | None, on_checked: Callable[[Request], None]) -> Answer:
        """The reply to one message; it never raises for anything that a message can cause.

        Parameters
        ----------
        known : bool
            The message passed the history before the node was restarted.
        kept : RecordDict, optional
            The reply that was computed then.
        on_checked : callable
            Called when the request has passed the gatekeeper, before anything is computed.
        """
        request = None
        try:
            if not message.has_content():
                raise FedethosError("SEC-633", "A message is damaged, or larger than any request of an approved job.")
            approval = find_approval(self._state, named_job(message), self._key, self._site)
            request = check_request(message, approval, self._site, None if known else self._history, datetime.now(UTC))
            request = replace(request, arrays={})  # checked; the worker gets them from the message, and an adapter can be large
            on_checked(request)
            kind = message.metadata.message_type
            plan = self._paid(kind, request, approval)
            reply = kept or _stored(kind, request, plan) or self._computed(kind, message.content, request, approval)
            check_reply(kind, request, reply, approval, None if approval.job.privacy.mode == "none" else self._ledger_path)
        except Exception as failure:  # whatever it is, its text must not leave the site
            refusal = error_reply(failure)
            incidents.error("incident %s", refusal.incident, exc_info=failure)
            log.warning("a request was refused", extra={"code": refusal.code, "incident": refusal.incident})
            return Answer(encode_reply(refusal), request, refusal.code)
        return Answer(reply, request, _code_of(reply))

    def _paid(self, kind: str, request: Request, approval: Approval) -> CommittedPlan | None:
        """The plan of the request's run, on the disk. Setup computes nothing, so it only asks whether the caps allow the plan."""
        if approval.job.privacy.mode == "none":
            return None
        if self._ledger is None:
            self._ledger = self._resources.enter_context(Ledger(self._ledger_path))
        open_site_account(self._ledger, approval.job, self._site)
        key = request.job_sha256, request.run
        if key not in self._plans:
            self._plans[key] = spending_plan(approval.job, self._site, request.run)
        if kind == SETUP:
            self._ledger.check(self._plans[key])
            return None
        return self._ledger.commit(self._plans[key])

    def _computed(self, kind: str, content: RecordDict, request: Request, approval: Approval) -> RecordDict:
        order = Order(job=approval.job.model_dump_json(by_alias=True), run=request.run, message_type=kind)
        for _ in range(_TRIES):
            try:
                return self._asked(order, content)
            except WorkerDiedError as death:
                log.error("the worker died", extra={"run": request.run, "round": request.round, "exit_status": death.status})
        raise FedethosError(
            "NODE-543",
            "The process that trains ended twice without an answer.",
            why="What it had begun to release stays paid in the ledger.",
            fix="Look for a lack of memory in the system's log; memory_gb in site.yaml and training.micro_batch_tokens bound it.",
        )

    def _asked(self, order: Order, content: RecordDict) -> RecordDict:
        """The worker's answer. A worker that was started in the middle of a run is given the run's setup first: what travels only once."""
        if order.message_type == SETUP:
            self._setup = order, content
        elif self._worker.pid is None and self._setup is not None and self._setup[0].run == order.run:
            self._worker.ask(*self._setup)
        return self._worker.ask(order, content)


def _stored(kind: str, request: Request, plan: CommittedPlan | None) -> RecordDict | None:
    """The recorded reply of a round that was answered before: the same bytes again, and nothing is paid twice."""
    if plan is None:
        return None
    if kind == TRAIN_MESSAGE:
        stored = plan.stored_reply(TRAIN, request.round)
        return None if stored is None else encode_reply(stored_update(stored))
    if kind == EVALUATE and request.split is not None:
        stored = plan.stored_reply(purpose_of(layout_of(request).wanted, request.split, personal=request.personal), request.round)
        return None if stored is None else encode_reply(stored_counts(stored))
    return None


def _code_of(reply: RecordDict) -> str | None:
    code = reply.config_records["error"].get("code") if "error" in reply.config_records else None
    return code if isinstance(code, str) else None
