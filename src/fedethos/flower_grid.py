"""Flower's grid of a real run, with replies that are checked while they come in.

Flower 1.41's own ``HttpGrid.pull_messages`` trusts a site three times: it waits up to two hours for the bytes of a reply that was only
announced, it raises in the ServerApp when those bytes are no message, and it believes the reply's own word on whose question it answers.
Each lets one site stop everybody's run. Here a reply is taken apart object by object, without waiting, within a size, and is handed over
only when it says what its announcement said. ``push_messages`` has a fourth: a site that confirms a message whose bytes are still on
their way to the SuperLink makes the push of all messages fail. Here each message is pushed by itself.
Non-public flwr imports; ``tests/core/test_flower_grid.py`` is their contract.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import httpx
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message.message import make_message
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from fedethos.flower import with_content
from fedethos.flower_packing import packed, unpacked

LOST_SUPERLINK = httpx.HTTPError  # what Flower's grid raises while its SuperLink goes or comes back

_MOST_OBJECTS = 100_000
_LEAST_BYTES = 64 * 1024 * 1024  # counts of a small model are larger than its adapter
_KEPT_BYTES = 256 * 1024 * 1024  # of replies that are still on their way, all together


@dataclass
class _Announced:
    """A reply that is on its way. ``missing``: the object that was not there when it was last looked for."""

    message: ProtoMessage
    tree: ObjectTree
    contents: dict[str, bytes] = field(default_factory=dict)
    missing: str | None = None

    @property
    def size(self) -> int:
        return sum(map(len, self.contents.values()))


class _LostError(Exception):
    """The bytes of a reply will never come."""


class _UnusableError(Exception):
    """A reply is larger than any, or not what it was announced as."""


def checked(grid: Grid) -> Grid:
    """The same run's grid with checked replies. TypeError for a grid that is not Flower's over HTTP."""
    if not isinstance(grid, HttpGrid):
        raise TypeError("only the grid of a real run is checked")
    return CheckedGrid(grid)


class CheckedGrid(Grid):
    """A grid whose ``pull_messages`` never waits, and returns a reply without usable content as one with empty content."""

    def __init__(self, grid: HttpGrid) -> None:
        self._grid = grid
        self._announced: dict[str, _Announced] = {}  # by the message that it replies to
        self._most_bytes = _LEAST_BYTES

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Ids in the order of ``messages``, "" for one that was not taken. A reply may have three times its tensors, or 64 MiB."""
        return [self._pushed(message) for message in messages]

    def _pushed(self, message: Message) -> str:
        content = packed(message.content)
        self._most_bytes = max(
            self._most_bytes, 3 * sum(len(array.data) for part in content.array_records.values() for array in part.values())
        )
        try:
            return next(iter(self._grid.push_messages([with_content(message, content)])), None) or ""
        except ObjectPushError:  # its site dropped it too early, or the SuperLink came back in between
            return ""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Replies that are complete, one in memory at a time."""
        wanted = set(message_ids)
        if unknown := wanted - set(self._announced):
            response = self._grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=sorted(unknown)))
            for message, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                self._announced[message.metadata.reply_to_message_id] = _Announced(message, tree)
        for asked in wanted & set(self._announced):
            reply = self._taken(self._announced[asked])
            if reply is not None:
                del self._announced[asked]
                yield reply

    def _taken(self, announced: _Announced) -> Message | None:
        """The whole reply; None while something of it is on its way."""
        claimed = metadata_from_proto(announced.message.metadata)
        try:
            if not self._collect(announced):
                return None
            self._confirm(announced)
            return _read(announced, claimed)
        except _UnusableError:
            return make_message(metadata=claimed, content=RecordDict())
        except _LostError:
            return make_message(metadata=claimed, error=Error(0, "the reply was lost on its way"))

    def _collect(self, announced: _Announced) -> bool:
        names = _names(announced.tree)
        order = names if announced.missing is None else [announced.missing, *names]
        for name in order:
            if name in announced.contents:
                continue
            request = PullObjectRequest(node=self._grid.node, run_id=self._grid.run.run_id, object_id=name)
            response = self._grid._runtime_client.PullObject(request)
            if not response.object_found:
                raise _LostError
            if not response.object_available:
                announced.missing = name
                if sum(one.size for one in self._announced.values()) > _KEPT_BYTES:
                    announced.contents.clear()
                return False
            if hashlib.sha256(response.object_content).hexdigest() != name:
                raise _UnusableError
            announced.contents[name] = response.object_content
            if announced.size > self._most_bytes:
                raise _UnusableError
        return True

    def _confirm(self, announced: _Announced) -> None:
        request = ConfirmMessageReceivedRequest(
            node=self._grid.node, run_id=self._grid.run.run_id, message_object_id=announced.message.metadata.message_id
        )
        self._grid._runtime_client.ConfirmMessageReceived(request)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise RuntimeError("the round loop sends and receives itself")

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run


def _names(tree: ObjectTree) -> list[str]:
    """All objects of a reply, each once."""
    names = dict.fromkeys(node.object_id for node in islice(iterate_object_tree(tree), _MOST_OBJECTS + 1))
    if len(names) > _MOST_OBJECTS:
        raise _UnusableError
    return list(names)


def _read(announced: _Announced, claimed: Metadata) -> Message:
    """The message in the objects, if it is the announced one."""
    root = announced.message.metadata.message_id
    try:
        message = inflate_object_from_contents(root, dict(announced.contents))
    except Exception:  # whatever a site's bytes make Flower raise
        raise _UnusableError from None
    if not isinstance(message, Message):
        raise _UnusableError
    said = message.metadata
    if (said.reply_to_message_id, said.src_node_id, said.run_id) != (claimed.reply_to_message_id, claimed.src_node_id, claimed.run_id):
        raise _UnusableError
    message.metadata.__dict__["_message_id"] = root
    try:
        return with_content(message, unpacked(message.content)) if message.has_content() else message
    except ValueError:
        raise _UnusableError from None
