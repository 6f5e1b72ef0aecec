"""The record of what left this site: one line for each message, on the disk before the message goes out.

JSON lines, chained by hash: line n carries the SHA-256 of line n - 1, and ``NAME.head`` keeps number and hash of the last one, so that a
line that was changed, removed, moved or cut off shows (``verify``). A line that a crash left half written is dropped on opening, for its
message was never sent. Like the privacy ledger, it shows changes by whoever does not recompute the chain; keep the head somewhere else
against the rest. ``fedethos client ledger`` prints it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fedethos.errors import FedethosError
from fedethos.storage import JsonValue, canonical_line, sync_folder, write_atomically, write_errors

FILE = "egress.jsonl"

_GENESIS = "0" * 64
_CONFIG = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One message to the coordinator.

    Attributes
    ----------
    round : int
        As the request said; 0 for setup and for counts before training.
    shapes : mapping
        Name and shape of every tensor or table in it.
    bytes : int
        Payload as Flower's transport sends it.
    sha256 : str
        Of that payload.
    epsilon_after : float, optional
        What the run has spent after it, as the message says; None where nothing was spent.
    refused : str, optional
        The error code, where the message was a refusal instead of a reply.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    run: str
    round: int
    message_type: str
    shapes: Mapping[str, tuple[int, ...]]
    bytes: int
    sha256: str
    epsilon_after: float | None
    refused: str | None


_SENT = TypeAdapter(Sent)


class Line(BaseModel):
    """A line of the file. ``time``: UTC, ISO 8601."""

    model_config = _CONFIG

    number: int
    previous: str
    time: str
    sent: Sent


@dataclass(frozen=True)
class Head:
    """Number and hash of the last line; 0 and 64 zeros before the first."""

    count: int = 0
    hash: str = _GENESIS


class Egress:
    """The open file of a running node. One process writes it; others may read."""

    def __init__(self, path: Path) -> None:
        """Open or create (mode 0600). SEC-664 when it is damaged, RUN-904 or RUN-905 when it cannot be written."""
        self._path = path
        self._lock = threading.Lock()
        self._head = Head()
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self._take_over()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Egress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)

    @property
    def head(self) -> Head:
        return self._head

    def append(self, sent: Sent) -> Head:
        """Put one message on the disk, before it is sent. RUN-904 or RUN-905: then it must not be sent."""
        with self._lock, write_errors(self._path):
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = canonical_line({"number": self._head.count + 1, "previous": self._head.hash, "time": time, "sent": _as_json(sent)})
            before = os.fstat(self._file).st_size
            try:
                _write_all(self._file, line)
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, before)  # a full disk leaves the record as it was
                raise
            self._head = Head(self._head.count + 1, hashlib.sha256(line).hexdigest())
            _write_head(self._path, self._head)
        return self._head

    def _take_over(self) -> None:
        with write_errors(self._path):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _damaged(self._path, "another process writes it") from None
            content = _content(self._path)
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.ftruncate(self._file, len(whole))
                os.fsync(self._file)
            _, self._head = _checked(self._path, whole, _read_head(self._path))
            _write_head(self._path, self._head)
            sync_folder(self._path.parent)


def read(path: Path) -> list[Line]:
    """All lines, checked against the chain; none where nothing was sent yet. SEC-664 when it is damaged."""
    return _read(path)[0]


def verify(path: Path) -> Head:
    """The head of a record that nobody changed. SEC-664 otherwise."""
    return _read(path)[1]


def _read(path: Path) -> tuple[list[Line], Head]:
    known = _read_head(path)  # before the lines: those may then only be more
    content = _content(path)
    return _checked(path, content[: content.rfind(b"\n") + 1], known)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _damaged(path, f"it cannot be read ({type(error).__name__})") from None


def _checked(path: Path, content: bytes, known: Head | None) -> tuple[list[Line], Head]:
    lines, head = [], Head()
    met = known == head
    for raw in content.splitlines(keepends=True):
        line = _parsed(raw)
        if line is None or (line.number, line.previous) != (head.count + 1, head.hash):
            raise _damaged(path, f"line {head.count + 1} was changed, removed or moved")
        lines.append(line)
        head = Head(line.number, hashlib.sha256(raw).hexdigest())
        met = met or head == known
    if known is None and lines:
        raise _damaged(path, "its head file is missing or not readable")
    if known is not None and not met:
        raise _damaged(path, "lines at its end are missing or were replaced")
    return lines, head


def _parsed(raw: bytes) -> Line | None:
    try:
        return Line.model_validate_json(raw)
    except ValidationError:
        return None


def _as_json(sent: Sent) -> JsonValue:
    value: JsonValue = _SENT.dump_python(sent, mode="json")
    return value


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _read_head(path: Path) -> Head | None:
    try:
        count, digest = _head_path(path).read_text("ascii").split()
        return Head(int(count), digest)
    except (OSError, ValueError):
        return None


def _write_head(path: Path, head: Head) -> None:
    write_atomically(_head_path(path), f"{head.count} {head.hash}\n".encode())


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _damaged(path: Path, how: str) -> FedethosError:
    return FedethosError(
        "SEC-664",
        f"The record of what left this site is damaged: {how}.",
        where=str(path),
        why="A node that cannot tell what it sent sends nothing more.",
        fix="Restore it with its .head file from the newest back-up, or move both aside and tell your privacy officer why.",
    )
