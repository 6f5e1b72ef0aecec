"""The process that trains: ``python -m fedethos.client.worker SITE DESCRIPTOR``, started by the supervisor and expendable.

It knows no network. Each order names the approved job and brings the records of one message; the answer is what the installed ClientApp
(``client/app.py``) says to it. Records and model stay loaded from one message to the next. Libraries that train are imported with the
first order, so that a waiting worker is small. It ends when the supervisor does.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict

from fedethos.client.app import Answers, build_client_app
from fedethos.client.frames import BrokenConnectionError, Order, receive_record, send_record
from fedethos.collector import spare_collections
from fedethos.errors import FedethosError
from fedethos.flower import identify_process, quiet_logs
from fedethos.job import Job
from fedethos.logs import incident_log, structured_log
from fedethos.messages import ERROR, SETUP
from fedethos.orphans import end_with_parent
from fedethos.site import SiteDocument, load_site

if TYPE_CHECKING:
    from fedethos.client.node import Node
    from fedethos.privacy.ledger_plan import CommittedPlan

log = logging.getLogger(__name__)


class Worker:
    """Answers orders with one open node: that of the last order's job and run. As a context manager it closes what it opened."""

    def __init__(self, site: SiteDocument, folder: Path) -> None:
        self._site, self._folder = site, folder
        self._resources = ExitStack()
        self._open: tuple[str, str] | None = None
        self._set_up = False  # whether the node has the frozen tensors of its run
        self._node: Node | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def answer(self, order: Order, record: RecordDict) -> RecordDict:
        """The ClientApp's reply; a failure of any kind is a code and an incident id in it."""
        app = build_client_app(lambda context: self._node_for(order))
        message = Message(record, dst_node_id=1, message_type=order.message_type)
        reply = app(message, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})).content
        self._set_up = self._set_up or (order.message_type == SETUP and ERROR not in reply)
        return reply

    def _node_for(self, order: Order) -> Answers:
        job = Job.model_validate_json(order.job)
        if self._open != (job.sha256, order.run) or self._node is None:
            self._close()
            from fedethos.client.devices import use_device
            from fedethos.client.site_node import open_site_node

            use_device(self._site)
            self._node = self._resources.enter_context(open_site_node(job, self._site, self._folder, order.run))
            self._open = job.sha256, order.run
        if order.message_type != SETUP and self._node.model.frozen_names and not self._set_up:
            raise FedethosError(
                "NODE-540",
                "This process has not been set up for the run: it was started in its middle.",
                why="It lacks the tensors that travel once. The coordinator sends them and asks again.",
            )
        if order.message_type != SETUP and self._node.ledger is None and job.privacy.mode != "none":
            self._node.ledger = self._committed(job, order.run)
        return self._node

    def _committed(self, job: Job, run: str) -> CommittedPlan:
        """The plan that the supervisor committed; committing it again finds it."""
        from fedethos.client.spending import spending_plan
        from fedethos.privacy.ledger import Ledger

        ledger = self._resources.enter_context(Ledger(self._folder / self._site.ledger))
        return ledger.commit(spending_plan(job, self._site, run))

    def _close(self) -> None:
        self._open = self._node = None
        self._set_up = False
        self._resources.close()
        self._resources = ExitStack()


def main(arguments: list[str]) -> int:
    """Serve orders until the supervisor closes the connection."""
    spare_collections()
    document, connection = Path(arguments[0]), Connection(int(arguments[1]))
    end_with_parent()
    quiet_logs()
    identify_process(run_id=1)
    site = load_site(document)
    logs = document.parent / site.log
    with (
        structured_log(logs / "worker.jsonl", component="worker"),
        incident_log(document.parent / site.state / "incidents-worker.log"),
        Worker(site, document.parent) as worker,
    ):
        while True:
            try:
                record, order = receive_record(connection)
                if order is None:
                    return 1
                send_record(connection, worker.answer(order, record))
            except BrokenConnectionError:
                return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
