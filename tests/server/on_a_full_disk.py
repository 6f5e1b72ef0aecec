"""``python on_a_full_disk.py DISK JOB``: runs on a small disk that fills up in round 3, wholly or nearly, and then has space again.

``test_full_disk.py`` starts it on a tmpfs of its own. It prints what it saw as one line of JSON for each run.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.server.checkpoint import latest_checkpoint
from fedethos.server.live import LiveFile, Problem, read_live
from fedethos.simulations.engine import resume, simulate


class Filling(Silent):
    """Fills the disk after round 2, but for ``room`` bytes."""

    def __init__(self, ballast: Path, room: int) -> None:
        self.ballast, self.room = ballast, room

    def round_finished(self, record: object) -> None:
        if isinstance(record, dict) and record["round"] == 2:
            with self.ballast.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    pass
            os.truncate(self.ballast, self.ballast.stat().st_size - self.room)


def damaged(text: str) -> None:
    raise AssertionError(text)


def result(folder: Path) -> object:
    return json.loads((folder / "result.json").read_text()) | {"seconds": None}


def run_into_it(disk: Path, room: int, job_file: Path, undisturbed: Path) -> dict[str, object]:
    out, ballast = disk / f"run-{room}", disk / "ballast"
    live = LiveFile(disk / "live.json", rounds=4, deadline=1.0)
    seen: dict[str, object] = {}
    try:
        simulate(load_job(job_file), out, base=job_file.parent, observer=Filling(ballast, room))
    except FedethosError as refusal:
        live.end(Problem.of(refusal))
        seen = {"code": refusal.code, "where": Path(refusal.where).name}
    newest, ended = latest_checkpoint(out / "checkpoints", say=damaged), read_live(disk / "live.json")
    seen |= {"checkpoints": sorted(path.name for path in (out / "checkpoints").iterdir()), "newest": newest and newest.round}
    seen |= {"live": ended and ended.problem and ended.problem.code}
    ballast.unlink()
    resume(out, observer=Silent())
    return seen | {"rounds": [record.round for record in RunFolder(out).read_rounds()], "same": result(out) == result(undisturbed)}


if __name__ == "__main__":
    where, job = Path(sys.argv[1]), Path(sys.argv[2])
    simulate(load_job(job), job.parent / "undisturbed", base=job.parent, observer=Silent())
    for left in (0, 8192):
        print(json.dumps(run_into_it(where, left, job, job.parent / "undisturbed")))
