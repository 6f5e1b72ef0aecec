"""A node's end of Flower's Fleet API: receive, confirm, send. It never asks for code: ``get_fab`` is not called anywhere.

Flower's own node (``flwr.supernode``) fetches the run's bundle and executes it, ends the process when a connection fails, and follows
redirects and proxies of the environment. This connection uses the same client and the same keys, and does none of that. The node
only ever connects outwards, to the one address of its site document. Contract with the pinned Flower: ``tests/core/test_flower_fleet.py``.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    UnexpectedObjectContentError,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    pull_objects,
    push_object_contents_from_iterable,
    validate_object_content,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedethos.abandoned import unless_stopped
from fedethos.errors import FedethosError
from fedethos.flower import all_objects, rebuild_from_wire, unreadable, with_content, with_message_id
from fedethos.flower_fleet_client import Endpoint, FleetClient, RunEndedError, UnusableError, answered, translated
from fedethos.flower_packing import packed, unpacked
from fedethos.storage import write_atomically

__all__ = ["SMALL_MESSAGE", "Endpoint", "FleetConnection", "RunEndedError"]

SMALL_MESSAGE = 2**20  # bytes that are read of any message, if only to say what is wrong with it
HEARTBEAT_INTERVAL = 10.0  # seconds; the least that a SuperLink accepts. A node that is silent for two of them counts as gone
_BEAT_EVERY = 7.0
_MOST_OBJECTS = 100_000
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds between two attempts to reach the coordinator
_QUICK_POLL, _IDLE_POLL = 0.1, 1.25  # seconds between two questions for work
_HELD = 1.0  # a question that took so long was held by a gateway


class FleetConnection:
    """An authenticated connection of one node; entering it connects to nobody, the first ``receive`` does.

    ``problem`` says why there is no connection at the moment. Safe to use from one thread; heartbeats have their own.

    Parameters
    ----------
    stop : threading.Event
        Ends every wait.
    number : Path, optional
        Where the node keeps its number at the coordinator, so that a killed one is let in again at once.

    Raises
    ------
    FedethosError
        SEC-680 when ``insecure`` is asked for and the address is not on the loopback interface; NET-542 when the certificate
        authority's file holds no certificate.
    """

    def __init__(self, endpoint: Endpoint, key: ec.EllipticCurvePrivateKey, stop: threading.Event, number: Path | None = None) -> None:
        self._number = number
        self._client = FleetClient(endpoint, key)
        self._public_key = public_key_to_bytes(key.public_key())
        self._stop = stop
        self._node: Node | None = None
        self._left = threading.Event()
        self._beats = threading.Thread(target=self._send_heartbeats, name="heartbeats", daemon=True)
        self._failures = 0
        self._took = 0.0
        self._last_message = float("-inf")
        self.problem: FedethosError | None = None

    def __enter__(self) -> FleetConnection:
        self._beats.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._left.set()
        self._beats.join()
        if self._node is not None:
            with suppress(FedethosError):  # it will be missed after two heartbeats
                answered(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node.node_id))
        self._client.close()

    @property
    def node_id(self) -> int | None:
        """Flower's number of this node; None while it is not connected."""
        return None if self._node is None else int(self._node.node_id)

    @property
    def pause(self) -> float:
        """Seconds to wait before the next ``receive``.

        Short while a run goes on, about one request a second when nothing happens, and from 1 to 30 seconds, at random, after failures.
        A gateway may hold a question until there is something to say; then it is asked again at once.
        """
        if self._failures:
            longest = min(_FIRST_WAIT * 2.0 ** (self._failures - 1), _LONGEST_WAIT)
            return longest * random.uniform(0.5, 1.0)  # noqa: S311  (so that many nodes do not come back at once)
        if self._took > _HELD:
            return _QUICK_POLL
        return min(max(_QUICK_POLL, (time.monotonic() - self._last_message) / 5.0), _IDLE_POLL)

    def receive(self, most_bytes: Callable[[], int]) -> Message | None:
        """The next message, whole; None when there is none or no connection (``problem``).

        A message larger than ``SMALL_MESSAGE`` and ``most_bytes()``, or with damaged objects, comes without content, so that it can be
        refused. It is the sender's to repeat until ``confirm``. None at once when ``stop`` is set: a gateway may hold the question
        for long.
        """
        try:
            began = time.monotonic()
            node = self._activated()
            response = unless_stopped(lambda: answered(self._client.PullMessages, PullMessagesRequest(node=node)), self._stop)
            self._took = time.monotonic() - began
            self._failures, self.problem = 0, None
            if response is None or not response.messages_list:
                return None
            self._last_message = time.monotonic()
            announced = message_from_proto(response.messages_list[0])
            return self._whole(node, announced, response.message_object_trees[0], most_bytes)
        except RunEndedError:
            return None
        except FedethosError as problem:
            self._failed(problem)
            return None

    def confirm(self, message: Message) -> None:
        """Tell the coordinator that the message arrived, so that it can drop its copy. Best effort: nothing depends on it."""
        if self._node is not None:
            confirm = make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, self._node, message.metadata.run_id)
            with suppress(FedethosError, RunEndedError):
                answered(confirm, message.metadata.message_id)

    def send(self, reply: Message) -> None:
        """Deliver a reply. It keeps trying while the coordinator cannot be reached, until ``stop`` is set.

        Raises
        ------
        FedethosError
            NET-546 when it was stopped before the reply was delivered.
        RunEndedError
            When nobody waits for it.
        """
        if reply.has_content():
            reply = with_content(reply, packed(reply.content))
        with no_object_id_recompute():  # each id is a hash over the whole reply
            with_message_id(reply, reply.object_id)
            objects, tree = all_objects(reply), get_object_tree(reply)

        def attempt() -> None:
            if time.time() > reply.metadata.created_at + reply.metadata.ttl:
                raise RunEndedError
            node = self._activated()
            pushed = answered(
                self._client.PushMessages,
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(with_content(reply, RecordDict()))],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[0.0],  # how long a site computed is data too
                ),
            )
            push = make_push_object_fn_protobuf(self._client.PushObject, node, reply.metadata.run_id, pushed.session_id)
            contents = ((name, objects[name].deflate()) for name in pushed.objects_to_push if name in objects)
            answered(lambda _: push_object_contents_from_iterable(contents, push), None)

        self._until_it_works(attempt)
        self._last_message = time.monotonic()

    def _until_it_works(self, attempt: Callable[[], None]) -> None:
        while True:
            try:
                attempt()
            except FedethosError as problem:
                self._failed(problem)
            else:
                self._failures, self.problem = 0, None
                return
            if self._stop.wait(self.pause):
                raise FedethosError(
                    "NET-546", "The node was stopped before a reply was delivered.", fix="Start it again: the reply is kept."
                )

    def _failed(self, problem: FedethosError) -> None:
        self._failures, self.problem = self._failures + 1, problem
        if problem.code == "NET-543":  # perhaps another node id: ask anew
            self._node = None

    def _activated(self) -> Node:
        if self._node is None:
            try:
                node = self._activate()
            except FedethosError as refusal:
                self._leave_as_it_was(refusal)
                node = self._activate()
            if self._number is not None:
                write_atomically(self._number, str(node.node_id).encode())
            self._node = node
        return self._node

    def _activate(self) -> Node:
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_INTERVAL)
        return Node(node_id=answered(self._client.ActivateNode, request).node_id)

    def _leave_as_it_was(self, refusal: FedethosError) -> None:
        """A node that was killed counts as active for 20 more seconds and is not let in again: say goodbye under its number.

        It then connects anew, so that the coordinator asks again for what was on its way to the killed one, which it gives only once.
        """
        known = self._number.read_text("ascii", "replace") if self._number is not None and self._number.exists() else ""
        if refusal.code != "NET-543" or not known.isdecimal():
            raise refusal
        try:
            answered(self._client.DeactivateNode, DeactivateNodeRequest(node_id=int(known)))
        except FedethosError:  # not this key's number
            raise refusal from None

    def _beat(self, node: Node) -> bool:
        request = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_INTERVAL)
        return bool(answered(self._client.SendNodeHeartbeat, request).success)

    def _whole(self, node: Node, announced: Message, tree: ObjectTree, most_bytes: Callable[[], int]) -> Message:
        """The announced message with its content. A coordinator that goes away now is waited for: it gives a message only once."""
        received: list[Message] = []
        self._until_it_works(lambda: received.append(self._pulled(node, announced, tree, most_bytes)))
        return received[0]

    def _pulled(self, node: Node, announced: Message, tree: ObjectTree, most_bytes: Callable[[], int]) -> Message:
        pull = make_pull_object_fn_protobuf(self._client.PullObject, node, announced.metadata.run_id)
        allowance = _Allowance(most_bytes)

        def pull_checked(name: str) -> bytes:
            content = pull(name)
            allowance.take(len(content))
            if get_object_id(content) != name:
                raise UnusableError
            validate_object_content(content)
            return content

        try:
            root, names = _content_of(tree)
            contents = translated(lambda wanted: pull_objects(wanted, pull_checked, initial_backoff=_QUICK_POLL), [*names, tree.object_id])
            return with_content(announced, unpacked(rebuild_from_wire(contents, root)))
        except (UnusableError, UnexpectedObjectContentError, ObjectPullError, KeyError, TypeError, ValueError, RecursionError):
            return unreadable(announced)

    def _send_heartbeats(self) -> None:
        while not self._left.wait(_BEAT_EVERY):
            node = self._node
            if node is not None:
                with suppress(FedethosError, RunEndedError):  # the next poll says what is wrong
                    if not self._beat(node):
                        self._node = None


class _Allowance:
    """Bytes that may come: those of a small message, and of a larger one what ``most_bytes`` says when it is asked, once."""

    def __init__(self, most_bytes: Callable[[], int]) -> None:
        self._left = SMALL_MESSAGE
        self._most_bytes: Callable[[], int] | None = most_bytes
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        with self._lock:
            self._left -= count
            if self._left < 0 and self._most_bytes is not None:
                self._left += max(0, self._most_bytes() - SMALL_MESSAGE)
                self._most_bytes = None
            if self._left < 0:
                raise UnusableError


def _content_of(tree: ObjectTree) -> tuple[str, list[str]]:
    """Id of a message's content, and of all objects that it consists of, each once."""
    if len(tree.children) != 1:
        raise UnusableError
    names: dict[str, None] = {}
    for node in iterate_object_tree(tree.children[0]):
        names[node.object_id] = None
        if len(names) > _MOST_OBJECTS:
            raise UnusableError
    return tree.children[0].object_id, list(names)
