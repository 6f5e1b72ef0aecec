"""A node of few lines on Flower's own fleet connection, for tests of the coordinator: real training, no approvals, one thread."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects, push_objects
from flwr.supernode.fleet_http_connection import http_request_response


class PlainNode:
    """Answers with ``app`` in a thread until ``stop``. ``folder``: of the trial, with node.key and ca.pem."""

    def __init__(self, folder: Path, address: str, app: ClientApp, lock: threading.Lock, *, slow: float = 0.0) -> None:
        self._folder, self._address, self._app, self._lock, self._slow = folder, address, app, lock, slow
        self._stop = threading.Event()
        self.answered: list[str] = []
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)

    def _run(self) -> None:
        key = load_ssh_private_key((self._folder / "node.key").read_bytes(), None)
        while not self._stop.is_set():
            try:
                with http_request_response(
                    self._address, False, (self._folder / "ca.pem").read_bytes(), (key, key.public_key()), max_wait_time=5
                ) as calls:
                    self._serve(*calls)
            except BaseException as failure:
                self.failure = failure
                time.sleep(0.5)

    def _serve(self, node_id, receive, send, get_run, get_fab, pull, push, confirm):
        while not self._stop.is_set():
            began = time.monotonic()
            if (received := receive()) is None:
                self._stop.wait(0.3 if time.monotonic() - began < 0.3 else 0.0)
                continue
            message, tree = received
            run_id, message_id = message.metadata.run_id, message.metadata.message_id
            try:
                wanted = [one.object_id for one in iterate_object_tree(tree)]
                contents = pull_objects(wanted, pull_object_fn=lambda one, run_id=run_id: pull(run_id, one), initial_backoff=0.05)
                confirm(run_id, message_id)
                whole = inflate_object_from_contents(message_id, contents)
                whole.metadata.__dict__["_message_id"] = message_id
                with self._lock:
                    reply = self._app(whole, Context(run_id, node_id, {}, RecordDict(), {}))
                time.sleep(self._slow)
                with no_object_id_recompute():
                    reply.metadata.__dict__["_message_id"] = reply.object_id
                    objects, session = send(_without_content(reply), get_object_tree(reply), 0.0)
                    push_objects(
                        get_all_nested_objects(reply),
                        push_object_fn=lambda one, content, run_id=run_id, session=session: push(run_id, session, one, content),
                        object_ids_to_push=objects,
                    )
                self.answered.append(message.metadata.message_type)
            except BaseException as failure:  # a run that was dropped: its objects are gone
                self.failure = failure


def _without_content(message: Message) -> Message:
    return message
