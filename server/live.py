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
from fedethos.storage import JsonValue, write_atomically


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
    """``round_ends``: wall clock (seconds since 1970) of the deadline of the exchange that goes on. ``ended``: the last word."""

    model_config = ConfigDict(extra="forbid")

    pid: int
    stage: str = "Starting"
    round: int = 0
    rounds: int = 0
    sites: dict[str, str] = {}
    round_ends: float | None = None
    refusals: list[Refused] = []
    ended: bool = False
    problem: Problem | None = None


_KEPT_REFUSALS = 50


class LiveFile:
    """An ``Observer`` that keeps ``path`` up to date. ``deadline`` of a round in seconds."""

    def __init__(self, path: Path, *, rounds: int, deadline: float) -> None:
        self._path = path
        self._deadline = deadline
        self.state = LiveState(pid=os.getpid(), rounds=rounds)
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
        number, refusals = record["round"], record["refusals"]
        if isinstance(refusals, Sequence) and isinstance(number, int):
            found = [Refused.model_validate({"round": number, **one}) for one in refusals if isinstance(one, Mapping)]
            self.state.refusals = (self.state.refusals + found)[-_KEPT_REFUSALS:]
        self._write()

    def end(self, problem: Problem | None = None) -> None:
        """The run is complete, or stops with ``problem``."""
        self.state.ended, self.state.problem, self.state.round_ends = True, problem, None
        self._write()

    def _write(self) -> None:
        with suppress(FedethosError):  # a full disk: the checkpoint will say so, and showing progress must not fail a run
            write_atomically(self._path, self.state.model_dump_json().encode())


def read_live(path: Path) -> LiveState | None:
    """None where no ServerApp has written yet."""
    try:
        return LiveState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
