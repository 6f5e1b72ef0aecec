"""Bytes on disk that survive a crash: canonical JSON, atomic and synced writes.

Everything in a run folder goes through here, so that a reader finds the old file or the new one, never a half one.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from fedethos.errors import FedethosError

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"

PARTIAL = ".partial"  # suffix of a file or folder that is still being written


def canonical_json(value: JsonValue) -> bytes:
    """Sorted keys, shortest round-trip floats, UTF-8, newline at the end. NaN and infinity are refused (RUN-907)."""
    return _encode(value, indent=2, separators=(",", ": "))


def canonical_line(value: JsonValue) -> bytes:
    """The same on one line, for ``*.jsonl``."""
    return _encode(value, indent=None, separators=(",", ":"))


def _encode(value: JsonValue, *, indent: int | None, separators: tuple[str, str]) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise FedethosError(
            "RUN-907",
            "A number of the run is not finite.",
            why="NaN and infinity are not JSON, and no reader would know what they mean.",
            fix="Lower training.learning_rate; if that does not help, report a bug.",
        ) from None
    return (text + "\n").encode()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a crash or a full disk (RUN-904) leaves what was there before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with write_errors(path):
        try:
            write_synced(partial, data)
            partial.replace(path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it. Not atomic by itself."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's entries: a rename is durable only after this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into RUN-904 (no space) or RUN-905 (anything else)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FedethosError(
                "RUN-904",
                "The disk is full.",
                where=str(path),
                why="Nothing was half written: what was complete before is still there.",
                fix="Free some space, then run `fedethos resume` on the run folder.",
            ) from error
        raise FedethosError(
            "RUN-905",
            f"Could not write a file of the run: {os.strerror(error.errno) if error.errno else type(error).__name__}.",
            where=str(path),
            fix="Check that the folder exists, belongs to this user and is not read-only.",
        ) from error
