"""A record as few objects, for the way between a node and the coordinator.

Flower sends a record, each part of it and every tensor twice as objects, each in a request of its own, which the SuperLink answers from its
database in some ten milliseconds. A small record becomes one part that holds the bytes of all its objects: three requests a message. Of a
large one, whose tensors Flower cuts into chunks, all tensors become one.
"""

from __future__ import annotations

import struct

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_id
from pydantic import BaseModel, ConfigDict, TypeAdapter

from fedethos.flower import rebuild_from_wire, wire_bytes

_SMALL = 2**20  # bytes of a record that travels as one object
_WHOLE, _OBJECTS = "fedethos.record", "objects"  # in place of a record's parts
_PACKED = "fedethos.packed"  # in place of how a tensor is serialised
_LENGTH = struct.Struct("<Q")


class _Entry(BaseModel):
    """What Flower says about a tensor beside its ``size`` bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    dtype: str
    shape: list[int]
    stype: str
    size: int


_Entries = TypeAdapter(list[_Entry])


def packed(record: RecordDict) -> RecordDict:
    """The same record as one part, or, of more than a MiB, with one array in each of its array records."""
    if sum(len(array.data) for part in record.array_records.values() for array in part.values()) <= _SMALL:
        data = b"".join(_LENGTH.pack(len(content)) + content for content in wire_bytes(record).values())
        if len(data) <= _SMALL:
            return RecordDict({_WHOLE: ConfigRecord({_OBJECTS: data})})
    return RecordDict({name: _pack(part) if isinstance(part, ArrayRecord) else part for name, part in record.items()})


def unpacked(record: RecordDict) -> RecordDict:
    """The inverse of ``packed``. A record that is not packed stays as it is.

    Raises
    ------
    ValueError
        When something packed is not what ``packed`` makes.
    """
    if list(record) == [_WHOLE]:
        return _rebuilt(record.config_records[_WHOLE].get(_OBJECTS) if _WHOLE in record.config_records else None)
    return RecordDict({name: _unpack(part) if isinstance(part, ArrayRecord) else part for name, part in record.items()})


def _rebuilt(data: object) -> RecordDict:
    """The record of its objects: the length of each, then its bytes; the record itself last."""
    if not isinstance(data, bytes) or len(data) > _SMALL:
        raise ValueError("no bytes, or more than travel as one object")
    contents: dict[str, bytes] = {}
    place = 0
    while place < len(data):
        if len(data) < (start := place + _LENGTH.size):
            raise ValueError("no length")
        place = start + _LENGTH.unpack_from(data, place)[0]
        contents[get_object_id(data[start:place])] = data[start:place]
    if place != len(data) or not contents:
        raise ValueError("too short")
    try:
        record = rebuild_from_wire(contents)
    except Exception:  # whatever the bytes make Flower raise
        raise ValueError("not a record") from None
    if contents:
        raise ValueError("objects that the record does not have")
    return record


def _pack(arrays: ArrayRecord) -> ArrayRecord:
    """The length of a list of the arrays, the list, the bytes of all arrays in turn."""
    entries = [
        _Entry(name=name, dtype=one.dtype, shape=list(one.shape), stype=one.stype, size=len(one.data)) for name, one in arrays.items()
    ]
    head = _Entries.dump_json(entries)
    data = b"".join([_LENGTH.pack(len(head)), head, *(one.data for one in arrays.values())])
    return ArrayRecord({"all": Array("uint8", (len(data),), _PACKED, data)})


def _unpack(arrays: ArrayRecord) -> ArrayRecord:
    whole = next(iter(arrays.values()), None)
    if whole is None or len(arrays) != 1 or whole.stype != _PACKED:
        return arrays
    data = memoryview(whole.data)
    if len(data) < _LENGTH.size:
        raise ValueError("no length")
    place = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    found: dict[str, Array] = {}
    for entry in _Entries.validate_json(bytes(data[_LENGTH.size : place])):
        if entry.size < 0 or entry.name in found:
            raise ValueError("a size or a name that no array has")
        found[entry.name] = Array(entry.dtype, tuple(entry.shape), entry.stype, bytes(data[place : place + entry.size]))
        place += entry.size
    if place != len(data):
        raise ValueError("too short or too long")
    return ArrayRecord(found)
