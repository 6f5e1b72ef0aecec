"""Reading an adapter that somebody else wrote: every way known to us in which a file can be more, or other, than an adapter is refused.

safetensors runs no code, and that is not enough: it takes NaN, JSON keys that stand twice, 200,000 empty tensors and megabytes of
metadata. PEFT's ``adapter_config.json`` can name other models, modules and initialisations to load. So the file is read once, without
following links, its header is parsed here, and the configuration has only the fields that a plain LoRA adapter needs.
Next: ``fedethos.models.tensors`` puts the arrays into a model.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from fedethos.errors import FedethosError

TENSOR_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"

LARGEST_VALUE = 1e6
"""Of an adapter's number. Trained ones are a few units; far beyond it float32 arithmetic overflows."""

_MOST_HEADER_BYTES = 1024 * 1024
_MOST_METADATA_BYTES = 4096
_MOST_CONFIG_BYTES = 256 * 1024
_MOST_TENSORS = 10_000
_MOST_BYTES = 16 * 1024**3  # where nobody says how large the adapter should be
_CODE_FILES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib", ".py", ".pyc", ".so"}

Shapes = Mapping[str, tuple[int, ...]]
Arrays = dict[str, npt.NDArray[np.float32]]

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,256}$")]
_Rank = Annotated[int, Field(ge=1, le=65_536)]
_Alpha = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]


class AdapterConfig(BaseModel):
    """The fields of PEFT's ``LoraConfig`` that a plain LoRA adapter has. ``base_model_name_or_path`` is read and never opened."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    peft_type: Literal["LORA"]
    task_type: Literal["SEQ_CLS", "CAUSAL_LM"] | None = None
    r: _Rank
    lora_alpha: _Alpha
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: list[_Name] = Field(min_length=1, max_length=_MOST_TENSORS)
    modules_to_save: list[_Name] | None = None
    rank_pattern: dict[_Name, _Rank] = {}
    alpha_pattern: dict[_Name, _Alpha] = {}
    bias: Literal["none"] = "none"
    fan_in_fan_out: bool = False
    inference_mode: bool = True
    init_lora_weights: Literal[True] = True
    base_model_name_or_path: Annotated[str, Field(max_length=1024)] | None = None
    revision: None = None
    peft_version: Annotated[str, Field(pattern=r"^[0-9A-Za-z.+@-]{1,64}$")] | None = None


_UNUSED: Mapping[str, tuple[object, ...]] = {  # PEFT writes these too; anything else than its default would change what is loaded
    **dict.fromkeys(
        (
            "alora_invocation_tokens", "arrow_config", "auto_mapping", "corda_config", "eva_config", "exclude_modules", "kasa_config",
            "layer_replication", "layers_pattern", "layers_to_transform", "lora_ga_config", "megatron_config", "monteclora_config",
            "target_parameters", "trainable_token_indices", "use_bdlora", "velora_config",
        ),
        (None,),
    ),
    **dict.fromkeys(("ensure_weight_tying", "lora_bias", "use_dora", "use_qalora", "use_rslora"), (False,)),
    "loftq_config": ({}, None),
    "megatron_core": ("megatron.core", None),
    "qalora_group_size": (16, None),
}  # fmt: skip


@dataclass(frozen=True)
class AdapterFiles:
    """``arrays``: float32 by PEFT's parameter name."""

    config: AdapterConfig
    arrays: Arrays


def read_adapter(folder: Path, expected: Shapes) -> AdapterFiles:
    """An adapter in PEFT's format, with exactly the ``expected`` tensors.

    Raises
    ------
    FedethosError
        SEC-603 when a file beside it could hold code; SEC-674 when the configuration says more than LoRA; else as ``read_tensors``.
    """
    if any(path.suffix in _CODE_FILES for path in folder.iterdir()):
        raise FedethosError("SEC-603", "The adapter's folder holds pickles or code; only safetensors are read.", where=str(folder))
    return AdapterFiles(_read_config(folder / CONFIG_FILE), read_tensors(folder / TENSOR_FILE, expected))


def read_tensors(path: Path, expected: Shapes | None = None) -> Arrays:
    """The float32 tensors of a safetensors file; with ``expected`` exactly those names and shapes.

    Raises
    ------
    FedethosError
        SEC-670 no regular file, or larger than it can be; SEC-671 a header that is not what safetensors writes; SEC-672 other tensors or
        another dtype; SEC-673 values that are not finite or beyond ``LARGEST_VALUE``.
    """
    most = _MOST_BYTES if expected is None else _MOST_HEADER_BYTES + 8 + sum(4 * math.prod(shape) for shape in expected.values())
    data = _read_regular(path, most)
    found = _shapes_of(data, path)
    if expected is not None and found != {name: tuple(shape) for name, shape in expected.items()}:
        raise FedethosError("SEC-672", "The adapter holds other tensors than this job's.", where=path.name, why=_OTHERS, fix=_NOT_USED)
    try:
        arrays: Arrays = load(data)
    except SafetensorError:
        raise _malformed(path, "its tensors do not lie where the header says") from None
    for array in arrays.values():
        if not float(np.abs(array).max()) <= LARGEST_VALUE:  # NaN compares false
            raise FedethosError(
                "SEC-673",
                f"The adapter holds a value that is not finite, or beyond {LARGEST_VALUE:g}.",
                where=path.name,
                why="It would spoil the whole model.",
                fix=_NOT_USED,
            )
    return arrays


_OTHERS = "It belongs to another base model, rank or choice of layers, or brings something along."
_NOT_USED = "Do not use it; ask where it comes from."


def _read_regular(path: Path, most: int) -> bytes:
    """Opened without following a link or waiting for a pipe; what is checked is what is read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise _no_file(path, "is missing, a link, or cannot be opened") from None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
        os.close(descriptor)
        raise _no_file(path, "is larger than this adapter can be" if stat.S_ISREG(facts.st_mode) else "is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise _no_file(path, "grew while it was read")
    return data


def _shapes_of(data: bytes, path: Path) -> dict[str, tuple[int, ...]]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(_MOST_HEADER_BYTES, len(data) - 8):
        raise _malformed(path, "its header is missing, cut or too large")
    header = _parse(data[8 : 8 + length], path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or len(json.dumps(metadata)) > _MOST_METADATA_BYTES:
        raise _malformed(path, "its metadata are too large")
    if not 1 <= len(header) <= _MOST_TENSORS:
        raise _malformed(path, "it holds no tensors, or too many")
    return {name: _shape_of(entry, path) for name, entry in header.items()}


def _shape_of(entry: object, path: Path) -> tuple[int, ...]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"} or not isinstance(entry["shape"], list):
        raise _malformed(path, "an entry of its header has another form")
    shape = entry["shape"]
    if not all(type(size) is int and 1 <= size <= 2**40 for size in shape) or len(shape) > 8:
        raise _malformed(path, "a tensor is empty or has an impossible shape")
    if entry["dtype"] != "F32":
        raise FedethosError("SEC-672", "The adapter holds a tensor that is not float32.", where=path.name, why=_OTHERS, fix=_NOT_USED)
    return tuple(shape)


def _read_config(path: Path) -> AdapterConfig:
    fields = _parse(_read_regular(path, _MOST_CONFIG_BYTES), path)
    for name in sorted(set(fields) & set(_UNUSED)):
        value = fields.pop(name)
        if not any(type(value) is type(default) and value == default for default in _UNUSED[name]):
            raise _foreign_config(path, name)
    try:
        return AdapterConfig.model_validate(fields)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False, include_input=False)[0]["loc"][:1])
        raise _foreign_config(path, where if where in AdapterConfig.model_fields else "an unknown field") from None


def _parse(data: bytes, path: Path) -> dict[str, object]:
    """One JSON object whose keys stand once, at every depth."""
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _malformed(path, "it is not JSON with each key once") from None
    if not isinstance(parsed, dict):
        raise _malformed(path, "it is no JSON object")
    return parsed


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)


def _no_constant(text: str) -> float:
    raise ValueError("not a number of JSON")


def _no_file(path: Path, what: str) -> FedethosError:
    return FedethosError("SEC-670", f"A file of the adapter {what}.", where=path.name, why="Nothing of it was used.", fix=_NOT_USED)


def _malformed(path: Path, what: str) -> FedethosError:
    return FedethosError("SEC-671", f"A file of the adapter is malformed: {what}.", where=path.name, why="Nothing was used.", fix=_NOT_USED)


def _foreign_config(path: Path, field: str) -> FedethosError:
    return FedethosError(
        "SEC-674",
        "The adapter's configuration says more, or other, than a plain LoRA adapter needs.",
        where=f"{path.name}: {field}",
        why="Other fields can name files, modules or initialisations that are loaded with it.",
        fix=_NOT_USED,
    )
