"""Checkpoints: after every round, all that a resume needs, written so that a kill at any moment costs one round at most.

``checkpoints/round-0003/`` holds ``state.json`` (JSON state and the SHA-256 of everything), ``arrays.safetensors`` (the
global adapter, fp32) and ``strategy.safetensors`` (the strategy's arrays). A checkpoint is written into a hidden folder,
synced, and renamed: it is there as a whole or not at all. The newest three stay, so that a damaged one has a predecessor.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import JsonValue as PydanticJson
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedethos.errors import FedethosError
from fedethos.runfolder import CHECKPOINT_FILES
from fedethos.storage import PARTIAL, JsonValue, canonical_json, sync_folder, write_errors, write_synced

KEPT = 3
STATE_FILE, ARRAYS_FILE, STRATEGY_FILE = CHECKPOINT_FILES
_NAME = re.compile(r"round-(\d{4,})")


@dataclass(frozen=True)
class Checkpoint:
    """``arrays``: fp32, by parameter name. ``strategy``: arrays of any float dtype. ``state``: JSON. Loaded arrays are read-only."""

    round: int
    arrays: Mapping[str, npt.NDArray[np.float32]]
    strategy: Mapping[str, npt.NDArray[np.floating]]
    state: Mapping[str, JsonValue]


class _State(BaseModel):
    """``state.json``."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    files: dict[str, str]
    round: int
    state: dict[str, PydanticJson]
    state_sha256: str


class _DamagedError(Exception):
    """A checkpoint is not what was written; its text says which file."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/round-NNNN`` and drop what is no longer needed. RUN-904 on a full disk, with the older ones untouched.

    Checkpoints of later rounds belong to a future that a resume has abandoned, and go.
    """
    target = folder / f"round-{checkpoint.round:04d}"
    partial = folder / f".{target.name}{PARTIAL}"
    with write_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        _delete_partials(folder)
        try:
            partial.mkdir()
            for name, data in _encode(checkpoint).items():
                write_synced(partial / name, data)
            sync_folder(partial)
            if target.exists():
                _delete(target)
            partial.rename(target)
            sync_folder(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        older = [path for number, path in _numbered(folder) if number <= checkpoint.round]
        later = [path for number, path in _numbered(folder) if number > checkpoint.round]
        for path in older[:-KEPT] + later:
            _delete(path)
    return target


def latest_checkpoint(folder: Path, *, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact checkpoint, None if there never was one. A damaged one is passed over, and ``say`` tells it.

    RUN-908 if all are damaged: starting from scratch would spend the sites' privacy budget a second time.
    """
    numbered = _numbered(folder)
    for number, path in reversed(numbered):
        try:
            return _read(number, path)
        except _DamagedError as damage:
            say(f"Checkpoint {path.name} is damaged ({damage}); trying the one before it.")
    if numbered:
        raise FedethosError(
            "RUN-908",
            f"All {len(numbered)} checkpoints of the run are damaged.",
            where=str(folder),
            why="Starting again from nothing would spend the sites' privacy budget a second time.",
            fix="Restore the checkpoints folder from a copy, or start a new run.",
        )
    return None


def _encode(checkpoint: Checkpoint) -> dict[str, bytes]:
    tensors = {ARRAYS_FILE: _save(checkpoint.arrays), STRATEGY_FILE: _save(checkpoint.strategy)}
    state: dict[str, JsonValue] = {
        "files": {name: _sha256(data) for name, data in tensors.items()},
        "round": checkpoint.round,
        "state": checkpoint.state,
        "state_sha256": _sha256(canonical_json(checkpoint.state)),
    }
    return tensors | {STATE_FILE: canonical_json(state)}


def _read(number: int, path: Path) -> Checkpoint:
    """Hash and parse the same bytes, so that nothing can change in between."""
    state = _read_state(number, path)
    arrays = _read_arrays(path / ARRAYS_FILE, state.files.get(ARRAYS_FILE))
    if any(array.dtype != np.float32 for array in arrays.values()):
        raise _DamagedError(f"{ARRAYS_FILE} is not float32")
    strategy = _read_arrays(path / STRATEGY_FILE, state.files.get(STRATEGY_FILE))
    return Checkpoint(round=number, arrays=arrays, strategy=strategy, state=state.state)


def _read_state(number: int, path: Path) -> _State:
    try:
        state = _State.model_validate_json(_read_bytes(path / STATE_FILE))
    except ValidationError as error:
        raise _DamagedError(f"{STATE_FILE} is not a checkpoint's state") from error
    if state.round != number or state.state_sha256 != _sha256(canonical_json(state.state)):
        raise _DamagedError(f"{STATE_FILE} has another SHA-256 or round")
    return state


def _read_arrays(path: Path, sha256: str | None) -> dict[str, npt.NDArray[np.float32]]:
    data = _read_bytes(path)
    if _sha256(data) != sha256:
        raise _DamagedError(f"{path.name} has another SHA-256")
    try:
        arrays: dict[str, npt.NDArray[np.float32]] = load(data)
    except SafetensorError as error:
        raise _DamagedError(f"{path.name} is not safetensors") from error
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _DamagedError(f"{path.name} cannot be read") from error


def _save(arrays: Mapping[str, npt.NDArray[np.floating]]) -> bytes:
    data: bytes = save({name: np.asarray(array, order="C") for name, array in sorted(arrays.items())})
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    """Complete checkpoints, oldest first. Hidden folders are half-written and do not count."""
    names = ((_NAME.fullmatch(path.name), path) for path in folder.glob("round-*") if path.is_dir())
    return sorted((int(match[1]), path) for match, path in names if match)


def _delete(path: Path) -> None:
    """Rename first: a kill in the middle of the deletion must not leave half a checkpoint under its name."""
    gone = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    path.rename(gone)
    shutil.rmtree(gone)


def _delete_partials(folder: Path) -> None:
    for path in folder.glob(f".round-*{PARTIAL}"):
        shutil.rmtree(path)
