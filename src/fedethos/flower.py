"""Every use of Flower that is not in its public packages (``flwr.app``, ``flwr.serverapp``, ``flwr.clientapp``).

Flower's internals move every few weeks, so nothing else in the project imports them; ``tests/core/test_flower.py`` is
the contract that this file keeps with the pinned version.
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, TypeAlias

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message.message import make_message
from flwr.supercore.inflatable.inflatable_object import InflatableObject, get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from flwr.serverapp import Grid  # a node has no use for it, and no memory to spare

__all__ = [
    "Objects",
    "Run",
    "all_objects",
    "connections",
    "copied",
    "identify_process",
    "message_from_wire",
    "quiet_logs",
    "rebuild_from_wire",
    "unreadable",
    "wire_bytes",
    "with_content",
    "with_message_id",
]


Objects: TypeAlias = "dict[str, InflatableObject]"


def quiet_logs() -> None:
    """Keep the log lines of Flower and of its HTTP client (one for each request) out; refusals are reported by the round loop."""
    for library in ("flwr", "httpx", "httpcore"):
        logging.getLogger(library).setLevel(logging.ERROR)


def identify_process(run_id: int) -> None:
    """Give this process the identity that ``flwr.app.Message`` asks for outside Flower's own task processes."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = 1
    TaskIdentity.task_id = 1


def with_message_id(message: Message, message_id: str) -> Message:
    """Set the id that a SuperLink would give on arrival."""
    message.metadata.__dict__["_message_id"] = message_id
    return message


def with_content(message: Message, content: RecordDict) -> Message:
    """A message with the same metadata and another content."""
    return make_message(metadata=message.metadata, content=content)


def unreadable(message: Message) -> Message:
    """The same message without content: ``has_content`` is False, and it can still be replied to."""
    return make_message(metadata=message.metadata, error=Error(0))


def message_from_wire(contents: dict[str, bytes], root: str, message_id: str) -> Message:
    """The message whose ``all_objects`` these are, with the id that the SuperLink gave it. ``contents`` is emptied."""
    message = inflate_object_from_contents(root, contents)
    if not isinstance(message, Message):
        raise TypeError("the root object is not a Message")
    return with_message_id(message, message_id)


def all_objects(item: Message | RecordDict) -> Objects:
    """What Flower's transport sends for a message or record, by object id, the item itself last."""
    return get_all_nested_objects(item)


def connections(grid: Grid) -> dict[int, str]:
    """Of every node that is connected now: a text that changes when it connects anew. "" where the grid has no connections."""
    return {node.node_id: node.last_activated_at for node in grid.get_nodes()}


def wire_bytes(record: RecordDict) -> dict[str, bytes]:
    """``record`` as the objects that Flower's transport sends: content by object id, the record itself last."""
    return {object_id: item.deflate() for object_id, item in all_objects(record).items()}


def rebuild_from_wire(contents: dict[str, bytes], root: str | None = None) -> RecordDict:
    """The record that the receiver gets from ``wire_bytes``.

    ``root``: id of the record itself; None: the last one. ``contents`` is emptied on the way, so that an adapter is not in memory twice.
    """
    record = inflate_object_from_contents(root or list(contents)[-1], contents)
    if not isinstance(record, RecordDict):
        raise TypeError("the root object is not a RecordDict")
    return record


def copied(record: RecordDict) -> RecordDict:
    """A record that the receiver may change without the sender noticing. Tensor bytes are shared: nobody writes into them."""
    parts: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {}
    for name, part in record.items():
        if isinstance(part, ArrayRecord):
            parts[name] = ArrayRecord({key: Array(item.dtype, item.shape, item.stype, item.data) for key, item in part.items()})
        else:
            parts[name] = copy.deepcopy(part)
    return RecordDict(parts)
