"""All tensors of a record as one, for the way between a node and the coordinator.

Flower sends every tensor as two objects, each in a request of its own, which the SuperLink answers from its database. An adapter of a
dozen tensors then takes some thirty requests a site and direction; packed it takes six.
"""

from __future__ import annotations

import struct

from flwr.app import Array, ArrayRecord, RecordDict
from pydantic import BaseModel, ConfigDict, TypeAdapter

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
    """The same record with one array in each of its array records: the length of a list, the list, the bytes of all arrays in turn."""
    return RecordDict({name: _pack(part) if isinstance(part, ArrayRecord) else part for name, part in record.items()})


def unpacked(record: RecordDict) -> RecordDict:
    """The inverse of ``packed``. Array records that are not packed stay as they are.

    Raises
    ------
    ValueError
        When a packed array is not what ``packed`` makes.
    """
    return RecordDict({name: _unpack(part) if isinstance(part, ArrayRecord) else part for name, part in record.items()})


def _pack(arrays: ArrayRecord) -> ArrayRecord:
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
