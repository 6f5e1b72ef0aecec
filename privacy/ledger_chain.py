"""The ledger on disk: an append-only table in SQLite whose rows are chained by hash, and a head file beside it.

Row n holds ``SHA-256(n, hash of row n-1, text of row n)``, so that an edited, removed, inserted or reordered row breaks the chain.
A chain cannot show that its end is missing; for that, ``NAME.head`` keeps number and hash of the last row.

What this detects: any change by somebody who does not recompute the chain, a cut tail, a lost table, an older copy of the table alone.
What it does not: somebody who may write both files and recomputes both, or puts older copies of both back, or deletes both. Against
that, keep the head (`fedethos privacy spent` prints it) somewhere else.

Order of events in an append: lock on the head file, BEGIN IMMEDIATE, COMMIT (WAL, synchronous=FULL: on the disk), head. A process
killed in between leaves a head that is behind, never one that is ahead; the next one brings it up to date.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedethos.errors import FedethosError
from fedethos.storage import sync_folder

GENESIS = "0" * 64

_CHECKPOINT_PAGES = 64  # a short log is written again in place: one fsync without growing a file takes half the time
_TABLES = (
    "CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, previous TEXT NOT NULL, text TEXT NOT NULL, hash TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS replies"
    " (reservation INTEGER PRIMARY KEY, plan INTEGER NOT NULL, purpose TEXT NOT NULL, round INTEGER NOT NULL, reply BLOB NOT NULL)",
)
_VERSION = 1
"""Of the file, in SQLite's ``user_version``. 0: as written before files had one; the tables are the same."""

_HEAD = re.compile(rb"(\d{20}) ([0-9a-f]{64})\n")


@dataclass(frozen=True)
class Head:
    """Number and hash of the last entry; 0 and ``GENESIS`` before the first."""

    count: int
    hash: str

    def next(self, text: str) -> Head:
        return Head(self.count + 1, hashlib.sha256(f"{self.count + 1}\n{self.hash}\n{text}".encode()).hexdigest())


NOTHING = Head(0, GENESIS)


class Chain:
    """One open ledger file. Several processes may have it open; each opens its own, also after a fork."""

    def __init__(self, path: Path) -> None:
        """Open or create. PRIV-312 when the files do not belong together or the chain is broken, PRIV-307 when the disk refuses."""
        self._path = path
        self._process = os.getpid()
        self._threads = threading.RLock()
        self._seen = self._tail = NOTHING
        with _disk_errors(path):
            self._head_file = os.open(head_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._database = self._open()
            except BaseException:
                os.close(self._head_file)
                raise

    def close(self) -> None:
        with self._threads, _disk_errors(self._path):
            self._database.close()
            os.fsync(self._head_file)
            os.close(self._head_file)

    @property
    def head(self) -> Head:
        """The last entry that ``read`` returned."""
        return self._seen

    def read(self) -> list[tuple[int, str]]:
        """Number and text of the entries since the last call, by any process, each checked against the chain."""
        self._check_process()
        with self._threads, _disk_errors(self._path):
            entries = []
            for row in self._database.execute("SELECT * FROM entries WHERE number > ? ORDER BY number", (self._seen.count,)):
                self._seen = _link(self._seen, row, self._path)
                entries.append((self._seen.count, str(row[2])))
            return entries

    @contextmanager
    def exclusive(self) -> Iterator[list[tuple[int, str]]]:
        """No other process or thread writes meanwhile; gives what ``read`` gives.

        What was appended is on the disk at the end, or nothing of it.
        """
        self._check_process()
        with self._threads, _disk_errors(self._path), _locked(self._head_file):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                news = self.read()
                self._tail = self._seen
                yield news
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._write_head(self._tail)

    def append(self, text: str) -> int:
        """Add an entry inside ``exclusive``; returns its number. ``read`` gives it back once it is on the disk."""
        before, self._tail = self._tail, self._tail.next(text)
        self._database.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (self._tail.count, before.hash, text, self._tail.hash))
        return self._tail.count

    def keep_reply(self, reservation: int, *, plan: int, purpose: str, round: int, reply: bytes) -> None:
        """Store a reply inside ``exclusive`` and drop the replies that no coordinator can ask for any more.

        A coordinator keeps a checkpoint of every round, so it repeats the last one at most; the one before is kept to be sure.
        """
        self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", (reservation, plan, purpose, round, reply))
        self._database.execute("DELETE FROM replies WHERE plan = ? AND purpose = ? AND round < ?", (plan, purpose, round - 1))

    def reply(self, reservation: int) -> bytes | None:
        self._check_process()
        with self._threads, _disk_errors(self._path):
            row = self._database.execute("SELECT reply FROM replies WHERE reservation = ?", (reservation,)).fetchone()
        return None if row is None else bytes(row[0])

    # --- inside ---

    def _open(self) -> sqlite3.Connection:
        with _locked(self._head_file):
            known = _read_head(self._head_file)
            if not self._path.exists() and known not in (None, NOTHING):
                raise damaged(self._path, "its head file is there and the ledger is gone")
            if not self._path.exists():  # closing any descriptor of an open database would drop this process' locks on it
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30.0)
            try:
                for setting in ("journal_mode = WAL", "synchronous = FULL", f"wal_autocheckpoint = {_CHECKPOINT_PAGES}"):
                    database.execute(f"PRAGMA {setting}")
                _upgrade(database, self._path)
                self._write_head(_verified(database, known, self._path))
                os.fsync(self._head_file)
                sync_folder(self._path.parent)
            except BaseException:
                database.close()
                raise
        return database

    def _write_head(self, head: Head) -> None:
        """In place and of fixed length: one sector, so that a power cut leaves the old one or the new one."""
        os.pwrite(self._head_file, f"{head.count:020d} {head.hash}\n".encode(), 0)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise FedethosError("PRIV-307", "A ledger was used after a fork.", fix="Open the ledger again in each process.")


def read_only(path: Path) -> tuple[list[tuple[int, str]], Head]:
    """All entries of a ledger that others may be writing, verified, and its head. Writes nothing."""
    with _disk_errors(path):
        for needed in (path, head_path(path)):
            if not needed.is_file():
                raise damaged(path, f"{needed.name} is missing")
        with head_path(path).open("rb") as file:
            known = _read_head(file.fileno())  # before the table: the table may then only be longer
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)) as database:
            _known_version(database, path)
            head = _verified(database, known, path)
            rows = database.execute("SELECT number, text FROM entries WHERE number <= ? ORDER BY number", (head.count,))
            return [(int(number), str(text)) for number, text in rows], head


def head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def damaged(path: Path, how: str) -> FedethosError:
    return FedethosError(
        "PRIV-312",
        f"The privacy ledger is damaged: {how}.",
        where=str(path),
        why="What was spent is not known, so nothing is released.",
        fix="Restore the ledger and its .head file together from the newest copy, or ask your privacy officer. Do not start a new one.",
    )


def _upgrade(database: sqlite3.Connection, path: Path) -> None:
    """Bring a new or an older file to ``_VERSION``, all of it or nothing. Entries are never rewritten: their chain would break."""
    if _known_version(database, path) == _VERSION:
        return
    database.execute("BEGIN IMMEDIATE")
    for table in _TABLES:
        database.execute(table)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("COMMIT")


def _known_version(database: sqlite3.Connection, path: Path) -> int:
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if not 0 <= version <= _VERSION:
        raise FedethosError(
            "PRIV-365",
            f"The privacy ledger has version {version}, and this fedethos knows up to {_VERSION}.",
            where=str(path),
            why="A newer version may have charged what this one cannot read, so nothing is released.",
            fix="Install the version of fedethos that wrote it, or a newer one.",
        )
    return version


def _verified(database: sqlite3.Connection, known: Head | None, path: Path) -> Head:
    """The end of the chain, after checking every row, and that the chain goes through ``known``."""
    head, met = NOTHING, known == NOTHING
    for row in database.execute("SELECT * FROM entries ORDER BY number"):
        head = _link(head, row, path)
        met = met or head == known
    if known is None and head != NOTHING:
        raise damaged(path, "its head file is missing or not readable")
    if not met and known is not None:
        raise damaged(path, "entries at its end are missing or were replaced")
    return head


def _link(before: Head, row: tuple[object, ...], path: Path) -> Head:
    number, previous, text, digest = row
    if isinstance(text, str):
        head = before.next(text)
        if (number, previous, digest) == (head.count, before.hash, head.hash):
            return head
    raise damaged(path, f"entry {before.count + 1} was changed, removed or moved")


def _read_head(descriptor: int) -> Head | None:
    match = _HEAD.fullmatch(os.pread(descriptor, 200, 0))
    return Head(int(match[1]), match[2].decode()) if match else None


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise FedethosError(
            "PRIV-307",
            f"The privacy ledger cannot be read or written ({type(error).__name__}).",
            where=str(path),
            why="Without it nothing may be released.",
            fix="Check that its folder exists on a local disk, is writable, and has space.",
        ) from error
    except sqlite3.DatabaseError as error:
        raise damaged(path, "it is no ledger file") from error
