"""What a node was asked before, so that a replayed message or a rolled-back run is refused.

A SQLite file in the site's state folder, synced before the request is answered. The privacy ledger protects the budget whatever is
replayed; this keeps a coordinator (or whoever speaks in its place) from taking a site back to an earlier state of a run.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from types import TracebackType

from fedethos.errors import FedethosError
from fedethos.storage import write_errors

FILE = "history.sqlite"

REPEATABLE = 1
"""Rounds before the last one that may be asked for again: a coordinator goes back to its last checkpoint (``Chain.keep_reply``)."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS messages (id TEXT PRIMARY KEY) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS rounds (job TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL, PRIMARY KEY (job, run))",
)


class History:
    """An open history; one process uses it."""

    def __init__(self, path: Path) -> None:
        """Open or create (mode 0600). RUN-905 when it cannot be read or written."""
        self._path = path
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._execute("PRAGMA synchronous = FULL")
            for table in _TABLES:
                self._execute(table)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> History:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def check(self, message_id: str, job_sha256: str, run: str, round: int | None) -> None:
        """Refuse (SEC-634) a message that passed before, or a round before those that may be repeated.

        ``round``: None for requests that belong to no round of training, such as setup.
        """
        if self._one("SELECT 1 FROM messages WHERE id = ?", message_id) is not None:
            raise _replayed("came before")
        last = self.last_round(job_sha256, run)
        if round is not None and last is not None and round < last - REPEATABLE:
            raise _replayed("is of a round that this site has long answered")

    def record(self, message_id: str, job_sha256: str, run: str, round: int | None) -> None:
        """Note a request that passed every check."""
        with write_errors(self._path):
            self._execute("BEGIN IMMEDIATE")
            try:
                self._execute("INSERT OR IGNORE INTO messages VALUES (?)", message_id)
                if round is not None:
                    self._execute(
                        "INSERT INTO rounds VALUES (?, ?, ?) ON CONFLICT (job, run) DO UPDATE SET round = max(round, excluded.round)",
                        job_sha256,
                        run,
                        round,
                    )
                self._execute("COMMIT")
            except BaseException:
                self._execute("ROLLBACK")
                raise

    def last_round(self, job_sha256: str, run: str) -> int | None:
        """The highest round of training that was asked for; None before the first."""
        found = self._one("SELECT round FROM rounds WHERE job = ? AND run = ?", job_sha256, run)
        return None if found is None else int(str(found))

    def _one(self, statement: str, *values: str) -> object:
        row = self._execute(statement, *values).fetchone()
        return None if row is None else row[0]

    def _execute(self, statement: str, *values: str | int) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise FedethosError(
                "SEC-639",
                f"The history of requests cannot be read or written ({type(error).__name__}).",
                where=str(self._path),
                why="Without it a replayed request could not be told from a new one, so nothing is answered.",
                fix="Free some disk space, check the permissions, or restore the file from the newest back-up.",
            ) from None


def _replayed(how: str) -> FedethosError:
    return FedethosError(
        "SEC-634",
        f"A request {how}.",
        why="A node does not go back in a run. Nothing was computed.",
        fix="Ask the coordinator whether it was restored from an old copy; if not, somebody replays messages.",
    )
