"""The structured log of a node or coordinator: JSON lines with an allow-list of fields, rotated, readable by their owner alone.

A line says what happened (``event``, a constant text of the source code) and carries fields from ``FIELDS``, each in its declared form:

    {"component":"supervisor","event":"reply sent","level":"info","round":3,"run":"adult-1a2b3c4d","time":"2026-01-31T09:00:00.000Z"}

Code logs with the standard library, ``logging.getLogger(__name__).info("reply sent", extra={"round": 3})``. What the formatter does not
know it leaves out: arguments of the text, unknown fields, values in another form, the text of exceptions and of other libraries. So a
record's value that slips into a message ends here. The detail of a failure goes to the incident log (``incident_log``), under the same
random id.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from fedethos.errors import FedethosError
from fedethos.storage import JsonValue

INCIDENTS = "fedethos.incidents"  # the logger of details; they stay out of the structured log

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/+-]{0,127}")
_COUNT = "count"  # a whole number, not negative
_NUMBER = "number"

FIELDS: dict[str, re.Pattern[str] | str] = {
    "run": _NAME,
    "job": re.compile(r"[0-9a-f]{64}"),
    "site": _NAME,
    "round": _COUNT,
    "attempt": _COUNT,
    "message_type": re.compile(r"query\.setup|train|evaluate"),
    "code": re.compile(r"[A-Z]{2,5}-\d{3}"),
    "incident": re.compile(r"[0-9a-f]{8,32}"),
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "version": _NAME,
    "bytes": _COUNT,
    "sites": _COUNT,
    "exit_status": _NUMBER,
    "seconds": _NUMBER,
    "epsilon": _NUMBER,
}

_MOST_BYTES = 10 * 1024 * 1024
_KEPT = 5


class JsonLines(logging.Formatter):
    """A log record as one line of JSON with sorted keys. ``component``: which process writes (supervisor, worker, gateway, …)."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        own = record.name == "fedethos" or record.name.startswith("fedethos.")
        line: dict[str, JsonValue] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "component": self._component,
            "event": str(record.msg) if own else f"a message of the library {record.name.partition('.')[0]}",
        }
        given = vars(record)
        line |= {name: given[name] for name, form in FIELDS.items() if name in given and _has_form(given[name], form)}
        if record.exc_info and (error := record.exc_info[1]) is not None:
            line["failure"] = where_it_failed(error)
            if isinstance(error, FedethosError):
                line["code"] = error.code
        return json.dumps(line, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


class PrivateRotatingFile(RotatingFileHandler):
    """``RotatingFileHandler`` whose files have mode 0600 from their first byte."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")


@contextmanager
def structured_log(path: Path | None, *, component: str, most_bytes: int = _MOST_BYTES, kept: int = _KEPT) -> Iterator[None]:
    """Write everything that this process logs from level INFO on to ``path``, or to stderr when it is None.

    Parameters
    ----------
    path : Path or None
        Its folder is made, with mode 0700. One process writes one file.
    most_bytes, kept : int
        The file is rotated before it grows beyond ``most_bytes``; ``kept`` old ones stay beside it (``.1`` is the newest).

    Raises
    ------
    FedethosError
        RUN-980 when the file cannot be opened.
    """
    handler = logging.StreamHandler(sys.stderr) if path is None else _rotating(path, most_bytes, kept)
    handler.setFormatter(JsonLines(component))
    handler.addFilter(lambda record: not f"{record.name}.".startswith(f"{INCIDENTS}."))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


@contextmanager
def incident_log(path: Path, *, most_bytes: int = _MOST_BYTES, kept: int = _KEPT) -> Iterator[None]:
    """Write the details of failures to ``path``, for its owner only. The file exists once something has happened.

    Unlike the structured log it holds tracebacks, which may quote records.
    """
    handler = _rotating(path, most_bytes, kept, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    incidents = logging.getLogger(INCIDENTS)
    propagated, incidents.propagate = incidents.propagate, False
    incidents.addHandler(handler)
    try:
        yield
    finally:
        incidents.removeHandler(handler)
        incidents.propagate = propagated
        handler.close()


def where_it_failed(error: BaseException) -> str:
    """``module.Class at file:line > file:line``: type and places, without the message."""
    places = (f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__))
    return f"{type(error).__module__}.{type(error).__qualname__} at {' > '.join(places)}"


def _rotating(path: Path, most_bytes: int, kept: int, *, delay: bool = False) -> logging.Handler:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return PrivateRotatingFile(path, maxBytes=most_bytes, backupCount=kept, encoding="utf-8", delay=delay)
    except OSError as error:
        raise FedethosError(
            "RUN-980",
            "The log cannot be written.",
            where=str(path),
            why="Without it nobody could say later what this process did.",
            fix="Check that the folder belongs to this user and is not read-only.",
        ) from error


def _has_form(value: object, form: re.Pattern[str] | str) -> bool:
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (isinstance(value, int) and value >= 0) if form == _COUNT else abs(value) < 1e18
