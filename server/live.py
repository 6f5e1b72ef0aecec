"""What a running ServerApp tells the coordinator beside the run folder: one small JSON file, replaced as a whole.

It may carry times and process ids, because it is no part of the result. ``server/coordinator.py`` reads it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fedethos.errors import FedethosError
from fedethos.progress import State
from fedethos.records import Round
from fedethos.storage import JsonValue, canonical_line, write_atomically


class Refused(BaseModel):
    """A reply that was not used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    round: int
    site: str
    code: str
    incident: str = ""


class Problem(BaseModel):
    """Why a ServerApp ended: a refusal of ours, or a bug with its incident id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str
    what: str
    where: str = ""
    why: str = ""
    fix: str = ""

    @classmethod
    def of(cls, error: FedethosError) -> Problem:
        return cls(code=error.code, what=error.what, where=error.where, why=error.why, fix=error.fix)


class LiveState(BaseModel):
    """``round_ends``: wall clock (seconds since 1970) of the deadline of the exchange that goes on. ``ended``: the last word.

    ``quarantined``: site to the code of the refusal after which it is not asked any more.
    """

    model_config = ConfigDict(extra="forbid")

    pid: int
    stage: str = "Starting"
    round: int = 0
    rounds: int = 0
    sites: dict[str, str] = {}
    round_ends: float | None = None
    refusals: list[Refused] = []
    quarantined: dict[str, str] = {}
    ended: bool = False
    problem: Problem | None = None


_KEPT_REFUSALS = 50
_BLOCK = 4096


class LiveFile:
    """An ``Observer`` that keeps ``path`` up to date. ``deadline`` of a round in seconds."""

    def __init__(self, path: Path, *, rounds: int, deadline: float) -> None:
        self._path = path
        self._deadline = deadline
        self.state = LiveState(pid=os.getpid(), rounds=rounds)
        self._write()

    def remember(self, rounds: Sequence[Round]) -> None:
        """What was refused before a restart."""
        for record in rounds:
            self._note(record)
        self._write()

    def stage(self, text: str) -> None:
        self.state.stage = text
        self._write()

    def round_started(self, round: int, rounds: int, sites: Sequence[str]) -> None:
        self.state.stage, self.state.round, self.state.rounds = "Training", round, rounds
        self.state.sites = dict.fromkeys(sites, "training")
        self.state.round_ends = time.time() + self._deadline
        self._write()

    def site(self, name: str, state: State) -> None:
        self.state.sites[name] = state
        self._write()

    def round_finished(self, record: Mapping[str, JsonValue]) -> None:
        self.state.round_ends = None
        self._note(Round.model_validate_json(canonical_line(record)))
        self._write()

    def end(self, problem: Problem | None = None) -> None:
        """The run is complete, or stops with ``problem``."""
        self.state.ended, self.state.problem, self.state.round_ends = True, problem, None
        if not self._write() and self._path.exists():
            self._overwrite()

    def _note(self, record: Round) -> None:
        refused = [Refused(round=record.round, site=one.site, code=one.code, incident=one.incident) for one in record.refusals]
        self.state.refusals = (self.state.refusals + refused)[-_KEPT_REFUSALS:]
        self.state.quarantined = {one.site: one.code for one in record.quarantined}

    def _write(self) -> bool:
        """Whether the disk took it. A full disk: the checkpoint will say so, and showing progress must not fail a run."""
        try:
            write_atomically(self._path, self._bytes())
        except FedethosError:
            return False
        return True

    def _overwrite(self) -> None:
        """The last word on a full disk, which has no room for a second file. Without the refusals it fits where the old one lies."""
        self.state.refusals = []
        with suppress(OSError), self._path.open("r+b") as file:
            file.write(self._bytes())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())

    def _bytes(self) -> bytes:
        """Never less than a block of the disk, so that there is room to overwrite it."""
        return self.state.model_dump_json().encode().ljust(_BLOCK)


def read_live(path: Path) -> LiveState | None:
    """None where no ServerApp has written yet."""
    try:
        return LiveState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
