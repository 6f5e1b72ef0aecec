"""What is packed comes out as it was, and nothing else comes out."""

import contextlib
import struct

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedethos.flower import wire_bytes
from fedethos.flower_packing import packed, unpacked


def record(arrays: dict[str, np.ndarray]) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}), "config": ConfigRecord({"round": 3})})


TENSORS = {"b": np.ones((2, 3), np.float32), "a": np.arange(4), "none": np.zeros((0, 5), np.float32), "one": np.array(2.0, np.float32)}


def test_a_record_comes_back_byte_for_byte_in_its_order() -> None:
    before = record(TENSORS)
    assert wire_bytes(unpacked(packed(before))) == wire_bytes(before)
    assert list(unpacked(packed(before)).array_records["arrays"]) == list(TENSORS)
    assert wire_bytes(unpacked(packed(record({})))) == wire_bytes(record({}))


def test_it_travels_in_six_objects_less_the_message() -> None:
    assert len(wire_bytes(packed(record(TENSORS)))) == 5  # the record, two parts of it, the array and its only chunk
    assert len(wire_bytes(record(TENSORS))) > 10


def test_what_is_not_packed_stays() -> None:
    plain = record({"a": np.ones(3, np.float32)})
    assert wire_bytes(unpacked(plain)) == wire_bytes(plain)


def spoilt(data: bytes) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"all": Array("uint8", (len(data),), "fedethos.packed", data)})})


WHOLE = packed(record(TENSORS)).array_records["arrays"]["all"].data
HEAD = struct.unpack_from("<Q", WHOLE)[0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        WHOLE[:-1],
        WHOLE + b"\x00",
        struct.pack("<Q", 2**63) + WHOLE[8:],
        struct.pack("<Q", HEAD - 1) + WHOLE[8:],
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        WHOLE.replace(b'"name":"a"', b'"name":"b"'),
        WHOLE.replace(b'"size":', b'"size":-'),
    ],
)
def test_what_was_not_packed_here_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpacked(spoilt(data))


@given(st.binary(max_size=200))
def test_any_bytes_are_arrays_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        unpacked(spoilt(data))
