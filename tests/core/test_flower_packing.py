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


LARGE = {**TENSORS, "large": np.zeros(2**19, np.float32)}


@pytest.mark.parametrize("tensors", [TENSORS, LARGE, {}])
def test_a_record_comes_back_byte_for_byte_in_its_order(tensors: dict[str, np.ndarray]) -> None:
    before = record(tensors)
    assert wire_bytes(unpacked(packed(before))) == wire_bytes(before)
    assert list(unpacked(packed(before)).array_records["arrays"]) == list(tensors)


def test_a_small_record_travels_as_two_objects_beside_the_message_and_a_large_one_as_five() -> None:
    assert len(wire_bytes(packed(record(TENSORS)))) == 2  # the record and its only part
    assert len(wire_bytes(packed(record(LARGE)))) == 5  # the record, two parts of it, the array and its only chunk
    assert len(wire_bytes(record(TENSORS))) > 10


def test_one_large_text_does_not_travel_as_one_object() -> None:
    long = RecordDict({"config": ConfigRecord({"text": "x" * 2**20})})
    assert list(packed(long)) == ["config"] and wire_bytes(unpacked(packed(long))) == wire_bytes(long)


def test_what_is_not_packed_stays() -> None:
    plain = record({"a": np.ones(3, np.float32)})
    assert wire_bytes(unpacked(plain)) == wire_bytes(plain)


def spoilt(data: bytes) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"all": Array("uint8", (len(data),), "fedethos.packed", data)})})


WHOLE = packed(record(LARGE)).array_records["arrays"]["all"].data
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


SMALL = packed(record({"a": np.ones(2)})).config_records["fedethos.record"]["objects"]
LONGER = struct.pack("<Q", 1) + b"x" + SMALL


def spoilt_whole(data: object) -> RecordDict:
    return RecordDict({"fedethos.record": ConfigRecord({"objects": data})})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        b"\x00" * 8,
        SMALL[:-1],
        SMALL + b"\x00",
        SMALL[8:],
        LONGER,
        struct.pack("<Q", 2**63) + SMALL[8:],
        3,
        [b"x"],
        "x" * 9,
    ],
)
def test_what_is_no_record_of_a_small_one_is_refused(data: object) -> None:
    with pytest.raises(ValueError):
        unpacked(spoilt_whole(data))


def test_a_part_of_the_same_name_that_is_no_list_of_objects_is_refused() -> None:
    for other in (ArrayRecord({"objects": Array(np.ones(2))}), ConfigRecord({}), ConfigRecord({"objects": SMALL * 3000})):
        with pytest.raises(ValueError):
            unpacked(RecordDict({"fedethos.record": other}))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        unpacked(spoilt_whole(data))


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_a_changed_byte_is_another_record_or_a_value_error(place: int, value: int) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(unpacked(spoilt_whole(SMALL[:place] + bytes([value]) + SMALL[place + 1 :])), RecordDict)


@given(st.binary(max_size=200))
def test_any_bytes_are_arrays_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        unpacked(spoilt(data))
