"""Hostile adapter files: each is refused, and what PEFT itself writes is read."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.numpy import load, save
from torch import nn

from fedethos.errors import FedethosError
from fedethos.models.adapter_files import CONFIG_FILE, TENSOR_FILE, read_adapter, read_tensors

B, A = "base_model.model.dense.lora_B.weight", "base_model.model.dense.lora_A.weight"
ARRAYS = {B: np.ones((6, 2), dtype=np.float32), A: np.full((2, 4), 0.5, dtype=np.float32)}
SHAPES = {name: array.shape for name, array in ARRAYS.items()}
CONFIG: dict[str, Any] = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4, "target_modules": ["dense"]}


def adapter(folder: Path, data: bytes | None = None, **config: object) -> Path:
    (folder / TENSOR_FILE).write_bytes(save(ARRAYS) if data is None else data)
    (folder / CONFIG_FILE).write_text(json.dumps(CONFIG | config))
    return folder


def with_header(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def changed(**arrays: np.ndarray) -> bytes:
    data: bytes = save({**ARRAYS, **{{"b": B, "a": A}.get(name, name): array for name, array in arrays.items()}})
    return data


def spoiled(array: np.ndarray, value: float) -> np.ndarray:
    other = array.copy()
    other.flat[-1] = value
    return other


def many_empty() -> bytes:
    header = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(200_000)}
    return with_header(json.dumps(header).encode())


def twice() -> bytes:
    header, body = header_of(save(ARRAYS))
    text = json.dumps(header)
    return with_header((text[:-1] + f', "{B}": ' + json.dumps(header[B]) + "}").encode(), body)


def nested_twice() -> bytes:
    header, body = header_of(save(ARRAYS))
    return with_header(json.dumps(header).replace('"dtype": "F32"', '"dtype": "F64", "dtype": "F32"').encode(), body)


def overlapping() -> bytes:
    header, body = header_of(save(ARRAYS))
    header[B]["data_offsets"] = [0, 48]  # A's bytes are at its beginning
    return with_header(json.dumps(header).encode(), body)


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "NaN": ("SEC-673", lambda: changed(b=spoiled(ARRAYS[B], np.nan))),
    "infinity": ("SEC-673", lambda: changed(a=spoiled(ARRAYS[A], -np.inf))),
    "huge": ("SEC-673", lambda: changed(a=spoiled(ARRAYS[A], 2e6))),
    "wrong shape": ("SEC-672", lambda: changed(b=np.ones((2, 6), dtype=np.float32))),
    "wrong dtype": ("SEC-672", lambda: changed(b=np.ones((6, 2), dtype=np.int32))),
    "half precision": ("SEC-672", lambda: changed(b=np.ones((6, 2), dtype=np.float16))),
    "another name": ("SEC-672", lambda: changed(extra=np.ones(1, dtype=np.float32))),
    "a missing name": ("SEC-672", lambda: save({B: ARRAYS[B]})),
    "a key twice": ("SEC-671", twice),
    "a nested key twice": ("SEC-671", nested_twice),
    "200,000 empty tensors": ("SEC-670", many_empty),
    "an empty tensor": ("SEC-671", lambda: changed(b=np.ones((0, 2), dtype=np.float32))),
    "a huge header": ("SEC-670", lambda: save(ARRAYS, {"note": "x" * 5_000_000})),
    "much metadata": ("SEC-671", lambda: save(ARRAYS, {"note": "x" * 5_000})),
    "a header that is cut": ("SEC-671", lambda: save(ARRAYS)[:20]),
    "a header length beyond the file": ("SEC-671", lambda: struct.pack("<Q", 2**63) + b"{}"),
    "no header": ("SEC-671", lambda: b""),
    "a header without tensors": ("SEC-671", lambda: with_header(b"{}")),
    "a list": ("SEC-671", lambda: with_header(b"[1, 2]")),
    "deep nesting": ("SEC-671", lambda: with_header(b"[" * 100_000)),
    "NaN in the header": ("SEC-671", lambda: with_header(b'{"a": NaN}')),
    "another entry": ("SEC-671", lambda: with_header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "x": 1}}')),
    "overlapping tensors": ("SEC-671", overlapping),
    "trailing bytes": ("SEC-671", lambda: save(ARRAYS) + b"more"),
    "a pickle": ("SEC-671", lambda: pickle.dumps(ARRAYS)),
}


def test_what_we_write_is_read(tmp_path: Path) -> None:
    read = read_adapter(adapter(tmp_path), SHAPES)
    assert read.arrays.keys() == ARRAYS.keys()
    assert all(np.array_equal(read.arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert (read.config.r, read.config.lora_alpha, read.config.target_modules) == (2, 4, ["dense"])


def test_what_peft_writes_is_read(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 6)

        def forward(self, x: Any) -> Any:
            return self.dense(x)

    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["dense"]))
    model.peft_config["default"].task_type = "SEQ_CLS"
    model.save_pretrained(tmp_path)
    assert {name: array.shape for name, array in read_adapter(tmp_path, SHAPES).arrays.items()} == SHAPES


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tensor_file_is_refused(tmp_path: Path, case: str) -> None:
    code, make = HOSTILE[case]
    with pytest.raises(FedethosError) as refusal:
        read_adapter(adapter(tmp_path, make()), SHAPES)
    assert refusal.value.code == code
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize(
    "field",
    [
        {"auto_mapping": {"base_model_class": "X", "parent_library": "os"}},
        {"megatron_config": {"x": 1}},
        {"megatron_core": "evil.module"},
        {"loftq_config": {"loftq_bits": 4}},
        {"eva_config": {"rho": 2}},
        {"corda_config": {"cache_file": "/etc/passwd"}},
        {"layer_replication": [[0, 10_000]]},
        {"trainable_token_indices": [1]},
        {"use_dora": True},
        {"use_dora": 0},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"peft_type": "PROMPT_TUNING"},
        {"r": 0},
        {"r": 10**9},
        {"lora_alpha": -1},
        {"target_modules": ".*"},
        {"target_modules": ["../x"]},
        {"modules_to_save": ["x/y"]},
        {"revision": "main"},
        {"a_field_that_nobody_knows": None},
    ],
    ids=lambda field: str(field)[:40],
)
def test_a_config_that_says_more_than_lora_is_refused(tmp_path: Path, field: dict[str, object]) -> None:
    with pytest.raises(FedethosError) as refusal:
        read_adapter(adapter(tmp_path, **field), SHAPES)
    assert refusal.value.code == "SEC-674"
    assert "nobody" not in str(refusal.value)


def test_a_config_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(CONFIG)[:-1] + ', "r": 64}')
    with pytest.raises(FedethosError, match="SEC-671"):
        read_adapter(tmp_path, SHAPES)


@pytest.mark.parametrize("name", [TENSOR_FILE, CONFIG_FILE])
def test_a_link_is_not_followed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapter(folder)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FedethosError, match="SEC-670"):
        read_adapter(folder, SHAPES)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, make: Callable[[Path], None]) -> None:
    adapter(tmp_path)
    (tmp_path / TENSOR_FILE).unlink()
    make(tmp_path / TENSOR_FILE)
    with pytest.raises(FedethosError, match="SEC-670"):
        read_adapter(tmp_path, SHAPES)


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "modeling.py", "x.pkl"])
def test_pickles_and_code_beside_it_are_refused(tmp_path: Path, name: str) -> None:
    adapter(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(1))
    with pytest.raises(FedethosError, match="SEC-603"):
        read_adapter(tmp_path, SHAPES)


def test_without_expectations_the_file_must_still_be_sane(tmp_path: Path) -> None:
    path = adapter(tmp_path) / TENSOR_FILE
    assert read_tensors(path).keys() == ARRAYS.keys()
    path.write_bytes(many_empty())
    with pytest.raises(FedethosError, match="SEC-671"):
        read_tensors(path)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_file_is_read_as_it_is_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes: either our error, or finite arrays of the expected names and shapes that safetensors reads too."""
    good = bytearray(save(ARRAYS))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / TENSOR_FILE
    path.write_bytes(bytes(good[: data.draw(st.integers(0, len(good)))]) if data.draw(st.booleans()) else bytes(good))
    try:
        arrays = read_tensors(path, SHAPES)
    except FedethosError as refusal:
        assert refusal.code in ("SEC-670", "SEC-671", "SEC-672", "SEC-673")
        return
    assert {name: array.shape for name, array in arrays.items()} == SHAPES
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert load(path.read_bytes()).keys() == arrays.keys()


@given(
    st.dictionaries(
        st.text(max_size=12), st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
    )
)
def test_no_unknown_field_passes(tmp_path_factory: pytest.TempPathFactory, fields: dict[str, object]) -> None:
    folder = adapter(tmp_path_factory.mktemp("config"), **fields)
    try:
        config = read_adapter(folder, SHAPES).config
    except FedethosError as refusal:
        assert refusal.code in ("SEC-671", "SEC-674")
        return
    assert set(fields) <= set(type(config).model_fields)
