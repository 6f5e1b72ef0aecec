"""Runs a sweep: one run after the other in this process, each in its own run folder, and ``sweep.json`` at the end.

What is on disk is the only memory. A second start skips finished runs, resumes a begun one and tries a failed one again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fedethos.data.records import Records
from fedethos.errors import FedethosError
from fedethos.incidents import record
from fedethos.job import Job
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import resume, simulate
from fedethos.simulations.sweep import PlannedRun, State, SweepPlan, state_of
from fedethos.simulations.sweep_table import Outcome, sweep_table
from fedethos.simulations.virtual_sites import read_records, same_records
from fedethos.storage import canonical_json, write_atomically, write_errors
from fedethos.sweep_record import SWEEP_FILE, AskedBasis, Sweep
from fedethos.wording import duration

BUG = "bug"  # in place of a code: a failure that is none of ours to name
_ENDS_THE_SWEEP = ("RUN-902", "RUN-904", "RUN-905")  # locked, disk full, not writable: the next run would meet the same


def run_sweep(plan: SweepPlan, out: Path, *, base: Path, basis: AskedBasis, say: Callable[[str], None], reports: bool = True) -> Sweep:
    """Run what is missing in ``out`` and write ``sweep.json``, also when a Ctrl-C cuts the sweep short.

    A run that fails is recorded with its code, and the sweep goes on. ``reports``: whether each run gets its page.

    Raises
    ------
    FedethosError
        RUN-950 before anything runs if a folder holds another job; RUN-902, RUN-904, RUN-905 concern the place and end the sweep.
    """
    runs = list(plan.in_order())
    states = {run.folder: state_of(run, out) for run in runs}
    outcomes = {run.folder: _finished(out / run.folder) for run in runs if states[run.folder] == "finished"}
    if outcomes:
        say(f"{len(outcomes)} of {len(runs)} runs are finished already")
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    missing = [(number, run) for number, run in enumerate(runs, start=1) if run.folder not in outcomes]
    began, table = time.monotonic(), _Table(base)
    try:
        for done, (number, run) in enumerate(missing):
            say(f"run {number} of {len(runs)}: {run.folder}{_left(time.monotonic() - began, done, len(missing))}")
            outcomes[run.folder] = _run(run, out, states[run.folder], table, say, reports=reports)
    finally:
        sweep = sweep_table(plan, outcomes, basis)
        write_atomically(out / SWEEP_FILE, canonical_json(sweep.model_dump(mode="json", by_alias=True)))
    return sweep


class _Table:
    """The records of the last job, kept for the next one: most points of a grid read the same table."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._read: tuple[Job, Records] | None = None

    def records(self, job: Job) -> Records:
        if self._read is None or not same_records(job, self._read[0]):
            self._read = job, read_records(job, self.base)
        return self._read[1]


def _run(run: PlannedRun, out: Path, state: State, table: _Table, say: Callable[[str], None], *, reports: bool) -> Outcome:
    folder = out / run.folder
    try:
        if state == "begun" and any(RunFolder(folder).checkpoints.glob("round-*/state.json")):
            resume(folder, observer=Silent(), report=reports)
        else:
            records, force = table.records(run.job), state == "begun"
            simulate(run.job, folder, base=table.base, observer=Silent(), force=force, records=records, report=reports)
    except FedethosError as error:
        if error.code in _ENDS_THE_SWEEP:
            raise
        say(f"  failed: {error}")
        return Outcome("failed", code=error.code)
    except Exception as error:
        incident = record(error)
        say(f"  failed: a mistake in fedethos ({type(error).__name__}), incident {incident.id}, traceback in {incident.file}")
        return Outcome("failed", code=BUG)
    return _finished(folder)


def _finished(path: Path) -> Outcome:
    folder = RunFolder(path)
    result = folder.read_result()
    return Outcome(result.status, result=result, verdict=folder.read_fairness().verdict.state == "measured")


def _left(seconds: float, done: int, missing: int) -> str:
    return f" (about {duration(seconds / done * (missing - done))} left)" if done else ""
