"""The message that a node is working on, on its disk, so that a node that is killed takes it up again.

Flower's SuperLink hands a message out once. From then until the reply is delivered it is here: first the request, then, as soon as there
is one, the reply, whose very bytes are sent again. A request holds what the coordinator sent, no record of this site.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message, RecordDict
from pydantic import BaseModel, ConfigDict, ValidationError

from fedethos.flower import Objects, all_objects, message_from_wire, rebuild_from_wire
from fedethos.storage import sync_folder, write_atomically, write_errors

_REQUEST, _CHECKED, _REPLY = "request", "checked", "reply"


class _Header(BaseModel):
    """``objects``: id and length of what follows, the root last."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    message_id: str
    objects: list[tuple[str, int]]


@dataclass(frozen=True)
class Kept:
    """``checked``: the request passed the gatekeeper before. ``reply``: what was about to be sent."""

    message: Message
    checked: bool
    reply: RecordDict | None


class Inbox:
    """``folder`` holds at most one message; it is made with mode 0700."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep(self, message: Message) -> None:
        """Put a message on the disk. RUN-904 or RUN-905 when that fails."""
        self.clear()
        write_atomically(self._folder / _REQUEST, _packed(message.metadata.message_id, all_objects(message)))

    def mark_checked(self) -> None:
        write_atomically(self._folder / _CHECKED, b"")

    def keep_reply(self, reply: RecordDict) -> None:
        """From here on a restart sends these bytes."""
        write_atomically(self._folder / _REPLY, _packed("", all_objects(reply)))

    def kept(self) -> Kept | None:
        """What a killed node left; None when nothing, or nothing whole."""
        request = _unpacked(self._folder / _REQUEST)
        if request is None:
            return None
        header, contents = request
        reply = _unpacked(self._folder / _REPLY)
        try:
            message = message_from_wire(contents, header.objects[-1][0], header.message_id)
            return Kept(message, (self._folder / _CHECKED).exists(), None if reply is None else rebuild_from_wire(reply[1]))
        except (KeyError, TypeError, ValueError, IndexError):
            return None

    def clear(self) -> None:
        """The reply was delivered, or nobody waits for it."""
        for name in (_REQUEST, _REPLY, _CHECKED):
            (self._folder / name).unlink(missing_ok=True)
        sync_folder(self._folder)


def _packed(message_id: str, items: Objects) -> bytes:
    body, objects = bytearray(), []
    for name, item in items.items():
        content = item.deflate()
        objects.append((name, len(content)))
        body += content
    header = _Header(message_id=message_id, objects=objects).model_dump_json().encode()
    return b"".join([len(header).to_bytes(8, "little"), header, body])


def _unpacked(path: Path) -> tuple[_Header, dict[str, bytes]] | None:
    try:
        data = memoryview(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        header = _Header.model_validate_json(bytes(data[8:start]))
    except (OSError, ValidationError):
        return None
    contents = {}
    for name, length in header.objects:
        contents[name] = bytes(data[start : start + length])
        start += length
    return (header, contents) if start == len(data) else None
