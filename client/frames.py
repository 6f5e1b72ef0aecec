"""What supervisor and worker say to each other: a JSON header and the objects of Flower's wire format, as frames of bytes.

``multiprocessing.connection.Connection`` carries them over a Unix socket pair. Only its ``send_bytes`` and ``recv_bytes`` are used, never
pickle: neither side runs what the other sends.
"""

from __future__ import annotations

from multiprocessing.connection import Connection

from flwr.app import RecordDict
from pydantic import BaseModel, ConfigDict, ValidationError

from fedethos.flower import all_objects, rebuild_from_wire

_LARGEST_FRAME = 256 * 2**20  # bytes; Flower cuts tensors into objects of 5 MiB
_CONFIG = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class Order(BaseModel):
    """What the worker is to do. ``job``: the approved job as JSON; ``run`` names it in the ledger."""

    model_config = _CONFIG

    job: str
    run: str
    message_type: str


class Header(BaseModel):
    """``objects``: ids of the frames that follow, the record itself last. ``order``: None in the worker's answer."""

    model_config = _CONFIG

    order: Order | None
    objects: list[str]


class BrokenConnectionError(Exception):
    """The other process is gone, or sends something else than agreed."""


def send_record(connection: Connection, record: RecordDict, order: Order | None = None) -> None:
    """Send one record. BrokenConnectionError when nobody takes it."""
    objects = all_objects(record)
    try:
        connection.send_bytes(Header(order=order, objects=list(objects)).model_dump_json().encode())
        for item in objects.values():
            connection.send_bytes(item.deflate())
    except OSError as error:
        raise BrokenConnectionError(type(error).__name__) from None


def receive_record(connection: Connection) -> tuple[RecordDict, Order | None]:
    """Wait for a record. BrokenConnectionError when none comes any more, or something else."""
    try:
        header = Header.model_validate_json(connection.recv_bytes(_LARGEST_FRAME))
        contents = {name: connection.recv_bytes(_LARGEST_FRAME) for name in header.objects}
        return rebuild_from_wire(contents), header.order
    except (OSError, EOFError, ValidationError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BrokenConnectionError(type(error).__name__) from None
