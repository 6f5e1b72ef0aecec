"""A Flower ``Grid`` inside this process: a message is answered when its reply is pulled, by the same ClientApp as anywhere.

Messages are copied, so that no site sees another's memory. With ``wire`` every record goes through the bytes that Flower's
transport would send.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedethos.flower import Run, copied, identify_process, rebuild_from_wire, wire_bytes, with_message_id


class InProcessGrid(Grid):
    """``contexts``: node id -> Flower context of that virtual site."""

    def __init__(self, app: ClientApp, contexts: Mapping[int, Context], *, wire: bool) -> None:
        self._app = app
        self._contexts = contexts
        self._wire = wire
        self._pending: dict[str, Message] = {}
        self._sent = 0
        identify_process(run_id=1)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            self._sent += 1
            message_id = f"message-{self._sent}"
            delivered = Message(self._delivered(message.content), metadata=copy.deepcopy(message.metadata))  # type: ignore[call-overload]
            self._pending[message_id] = with_message_id(delivered, message_id)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The reply to the first pending message, computed now; so a caller sees one site finish after the other."""
        for message_id in message_ids:
            if message_id in self._pending:
                message = self._pending.pop(message_id)
                reply = self._app(message, self._contexts[message.metadata.dst_node_id])
                if reply.has_content():
                    reply.content = self._delivered(reply.content)
                return [reply]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return [reply for message_id in self.push_messages(messages) for reply in self.pull_messages([message_id])]

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def set_run(self, run: Run) -> None:
        raise RuntimeError("an in-process grid has no other run")

    @property
    def run(self) -> Run:
        raise RuntimeError("an in-process grid has no SuperLink run")

    def _delivered(self, record: RecordDict) -> RecordDict:
        return rebuild_from_wire(wire_bytes(record)) if self._wire else copied(record)
