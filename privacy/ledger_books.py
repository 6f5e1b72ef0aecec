"""A ledger file and its balances, kept in step. Used by ``privacy/ledger.py`` and ``privacy/ledger_plan.py``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedethos.privacy.ledger_chain import Chain, Head
from fedethos.privacy.ledger_entries import Entry, EntryBody
from fedethos.privacy.ledger_state import LedgerState


class Books:
    """``state`` is what the file said when it was last read; inside ``writing`` it is what the file says."""

    def __init__(self, path: Path) -> None:
        self.state = LedgerState()
        self.path = path
        self._chain = Chain(path)
        try:
            self.refresh()
        except BaseException:
            self._chain.close()
            raise

    @property
    def head(self) -> Head:
        return self._chain.head

    def refresh(self) -> None:
        """Take in what this or another process wrote."""
        self.state.fold(self._chain.read(), self.path)

    @contextmanager
    def writing(self) -> Iterator[LedgerState]:
        """Decide and append while nobody else writes. At the end all of it is on the disk and in ``state``; after an error nothing is."""
        with self._chain.exclusive() as news:
            self.state.fold(news, self.path)
            yield self.state
        self.refresh()

    def append(self, body: EntryBody) -> int:
        """Add an entry inside ``writing``; returns its number."""
        return self._chain.append(Entry(time=datetime.now(UTC).isoformat(timespec="milliseconds"), body=body).to_json())

    def keep_reply(self, reservation: int, *, plan: int, purpose: str, round: int, reply: bytes) -> None:
        self._chain.keep_reply(reservation, plan=plan, purpose=purpose, round=round, reply=reply)

    def reply(self, reservation: int) -> bytes | None:
        return self._chain.reply(reservation)

    def close(self) -> None:
        self._chain.close()
