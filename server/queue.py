"""The coordinator's runs, one JSON file each: what was submitted, how far it is, why it waits. They survive every restart."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fedethos.documents import dump_job
from fedethos.job import Job
from fedethos.records import Local
from fedethos.runfolder import RunFolder
from fedethos.server.live import Problem
from fedethos.server.places import Places, new_run_name
from fedethos.server.site import check_declared
from fedethos.storage import write_atomically


class Status(StrEnum):
    """queued: its turn comes; waiting: for sites; running; paused: by a person; then one of three ends."""

    QUEUED = "queued"
    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def over(self) -> bool:
        return self in (Status.COMPLETED, Status.FAILED, Status.STOPPED)


class Entry(BaseModel):
    """``starts``: how often its ServerApp was started; ``crashes``: how often it died since a round was last finished."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    run: str
    name: str
    job_sha256: str
    min_sites: int
    sites: list[str]
    submitted_at: str
    status: Status = Status.QUEUED
    flower_run: int | None = None
    starts: int = 0
    crashes: int = 0
    round: int = 0
    problem: Problem | None = None


class Queue:
    """In the order of submission."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._entries = {entry.run: entry for entry in _read(places.queue.glob("*.json"))}

    def entries(self) -> list[Entry]:
        return sorted(self._entries.values(), key=lambda entry: (entry.submitted_at, entry.run))

    def get(self, run: str) -> Entry | None:
        return self._entries.get(run)

    def active(self) -> Entry | None:
        """The run that is going on. One at a time, because all runs ask the same sites."""
        return next((entry for entry in self.entries() if entry.status is Status.RUNNING), None)

    def next(self) -> Entry | None:
        return next((entry for entry in self.entries() if entry.status in (Status.QUEUED, Status.WAITING)), None)

    def submit(self, job: Job, base: Path) -> Entry:
        """Make the run folder and the entry.

        Raises
        ------
        FedethosError
            CFG-376 or CFG-378 when the job does not say who takes part.
        """
        check_declared(job)
        run = new_run_name(job.name)
        with RunFolder(self._places.run(run)).create() as folder:
            folder.write_job(dump_job(job))
            folder.write_local(Local(base=str(base.resolve()), wire=True, run=run).model_dump())
        entry = Entry(
            run=run,
            name=job.name,
            job_sha256=job.sha256,
            min_sites=job.federation.min_sites,
            sites=sorted(job.federation.sites),
            submitted_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        self.save(entry)
        return entry

    def save(self, entry: Entry) -> None:
        self._entries[entry.run] = entry
        write_atomically(self._places.queue / f"{entry.run}.json", entry.model_dump_json(indent=1).encode())


def _read(paths: Iterable[Path]) -> Iterable[Entry]:
    return [Entry.model_validate_json(path.read_bytes()) for path in paths if not path.name.startswith(".")]
