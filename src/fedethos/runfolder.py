"""The run folder: one source of truth for everything that is printed or drawn about a run.

``RunFolder(path)`` reads. ``create()`` and ``resume()`` take the folder's lock, and only then it writes::

    with RunFolder(Path("runs/demo")).create() as folder:
        folder.write_job(text)
        folder.append_round(record)

Next on the path: ``server/checkpoint.py`` keeps what a resume needs, ``governance/report.py`` draws the rest.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fedethos.errors import FedethosError
from fedethos.flip_record import FlipReport
from fedethos.job import Job
from fedethos.records import FairnessReport, Local, Manifest, PrivacyReport, Round
from fedethos.result import Result
from fedethos.storage import PARTIAL, JsonValue, canonical_json, canonical_line, write_atomically, write_errors
from fedethos.suite_record import SuitesReport

LEDGER_FILES = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", "ledger.sqlite.head")
FILES = (
    "job.yaml",
    "manifest.json",
    "rounds.jsonl",
    "result.json",
    "privacy.json",
    "fairness.json",
    "flips.json",
    "suites.json",
    "canaries.yaml",
    "report.html",
    "local.json",
    "incidents.log",
    *LEDGER_FILES,
)
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json", "model.safetensors", "config.json")
CHECKPOINT_FILES = ("state.json", "arrays.safetensors", "strategy.safetensors")
LOCK = ".lock"

DocumentT = TypeVar("DocumentT", bound=BaseModel)


class RunFolder:
    """One run on disk. Reading needs no lock; writing without ``create()`` or ``resume()`` is a bug (``RuntimeError``)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    # --- where things are ---

    @property
    def job(self) -> Path:
        return self.path / "job.yaml"

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def privacy(self) -> Path:
        return self.path / "privacy.json"

    @property
    def fairness(self) -> Path:
        return self.path / "fairness.json"

    @property
    def flips(self) -> Path:
        """Counterfactual flips; there only after ``fedethos evaluate --flip``."""
        return self.path / "flips.json"

    @property
    def suites(self) -> Path:
        """Scores on public benchmarks; there only after ``fedethos evaluate --suite``."""
        return self.path / "suites.json"

    @property
    def canaries(self) -> Path:
        """The scenario that measures the exposure of planted canaries; there only where the job plants some."""
        return self.path / "canaries.yaml"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def local(self) -> Path:
        """What only this machine knows; no part of the result."""
        return self.path / "local.json"

    @property
    def incidents(self) -> Path:
        """Details of refusals, for the owner of the machine; there only when something happened."""
        return self.path / "incidents.log"

    @property
    def ledger(self) -> Path:
        """Privacy ledger of a simulation: one account per virtual site. A deployed site keeps its own at home."""
        return self.path / LEDGER_FILES[0]

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def personal(self) -> Path:
        """Personal adapters of virtual sites, a folder for each (``client/personal.py``). A deployed site keeps its own at home."""
        return self.path / "personal"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # --- opening and closing ---

    def create(self, *, force: bool = False) -> RunFolder:
        """Make the folder and lock it. RUN-901 if it holds a run; with ``force`` that run's files, and no others, are deleted."""
        if self.path.exists() and not self.path.is_dir():
            raise FedethosError("RUN-903", "The run folder is a file.", where=str(self.path), fix="Choose another folder.")
        if not force:
            self._refuse_a_run()
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            if not force:
                self._refuse_a_run()  # somebody may have finished one between the first look and the lock
            with write_errors(self.path):
                self._delete_run()
        except BaseException:
            self.close()
            raise
        return self

    def resume(self) -> RunFolder:
        """Lock the folder of an earlier run. RUN-903 if it holds none."""
        if not self.job.is_file():
            raise FedethosError(
                "RUN-903", "There is no run in this folder.", where=str(self.path), fix="Name a folder that has a job.yaml."
            )
        self._take_lock()
        self._delete_partials()
        if self._has_torn_line():
            self._write(self.rounds, b"".join(self._complete_lines()))
        return self

    def discard(self) -> None:
        """Take back what this process wrote, so that a refused start does not look like a run; the folder too, if nothing else is in it."""
        self._need_lock()
        self._delete_run()
        if [file.name for file in self.path.iterdir()] == [LOCK]:
            (self.path / LOCK).unlink()
            self.path.rmdir()

    def close(self) -> None:
        """Give the lock back. A killed process gives it back too: the kernel holds it, not the file."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def holds_run(self) -> bool:
        """Whether any file that fedethos writes is here."""
        return any((self.path / name).exists() for name in FILES) or any(self.checkpoints.glob("round-*/state.json"))

    # --- writing ---

    def write_job(self, text: str) -> None:
        self._write(self.job, text.encode())

    def write_canaries(self, text: str) -> None:
        self._write(self.canaries, text.encode())

    def write_manifest(self, manifest: Mapping[str, JsonValue]) -> None:
        self._write_document(self.manifest, manifest, Manifest)

    def write_local(self, local: Mapping[str, JsonValue]) -> None:
        self._write_document(self.local, local, Local)

    def write_privacy(self, privacy: Mapping[str, JsonValue]) -> None:
        self._write_document(self.privacy, privacy, PrivacyReport)

    def write_fairness(self, fairness: Mapping[str, JsonValue]) -> None:
        self._write_document(self.fairness, fairness, FairnessReport)

    def write_flips(self, flips: Mapping[str, JsonValue]) -> None:
        self._write_document(self.flips, flips, FlipReport)

    def write_suites(self, suites: Mapping[str, JsonValue]) -> None:
        self._write_document(self.suites, suites, SuitesReport)

    def write_result(self, result: Mapping[str, JsonValue]) -> None:
        self._write_document(self.result, result, Result)

    def append_round(self, record: Mapping[str, JsonValue]) -> None:
        """Add one line and wait until the disk has it. A full disk (RUN-904) leaves the lines as they were."""
        self._need_lock()
        line = canonical_line(record)
        _parse(line, Round, self.rounds)
        with write_errors(self.rounds), self.rounds.open("ab") as file:
            before = file.tell()
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), before)
                raise

    def truncate_rounds(self, after_round: int) -> None:
        """Keep the rounds up to and including ``after_round``; what came later is computed again."""
        kept = [line for line in self._complete_lines() if _parse(line, Round, self.rounds).round <= after_round]
        self._write(self.rounds, b"".join(kept))

    # --- reading ---

    def read_job(self) -> str:
        try:
            return self._read(self.job).decode()
        except UnicodeDecodeError:
            raise _does_not_fit(self.job, "it is not UTF-8 text") from None

    def parse_job(self) -> Job:
        """The job of the run. RUN-906 if this version does not understand it."""
        try:
            return Job.model_validate(yaml.safe_load(self.read_job()))
        except (yaml.YAMLError, ValidationError):
            raise _does_not_fit(self.job, "it is not a job of this version") from None

    def read_manifest(self) -> Manifest:
        return _parse(self._read(self.manifest), Manifest, self.manifest)

    def read_local(self) -> Local:
        return _parse(self._read(self.local), Local, self.local)

    def read_privacy(self) -> PrivacyReport:
        return _parse(self._read(self.privacy), PrivacyReport, self.privacy)

    def read_fairness(self) -> FairnessReport:
        return _parse(self._read(self.fairness), FairnessReport, self.fairness)

    def read_flips(self) -> FlipReport:
        return _parse(self._read(self.flips), FlipReport, self.flips)

    def read_suites(self) -> SuitesReport:
        return _parse(self._read(self.suites), SuitesReport, self.suites)

    def read_result(self) -> Result:
        return _parse(self._read(self.result), Result, self.result)

    def read_rounds(self) -> list[Round]:
        """All complete lines, in order. A last line that a crash cut short is not a round."""
        return [_parse(line, Round, self.rounds) for line in self._complete_lines()]

    # --- inside ---

    def _complete_lines(self) -> list[bytes]:
        if not self.rounds.exists():
            return []
        *lines, _torn = self._read(self.rounds).split(b"\n")
        return [line + b"\n" for line in lines]

    def _has_torn_line(self) -> bool:
        return self.rounds.exists() and self._read(self.rounds)[-1:] not in (b"", b"\n")

    def _read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise FedethosError(
                "RUN-903",
                f"The run has no {path.name}.",
                where=str(self.path),
                fix="Let the run finish (`fedethos resume`), or name another folder.",
            ) from None

    def _write_document(self, path: Path, value: Mapping[str, JsonValue], model: type[BaseModel]) -> None:
        data = canonical_json(value)
        _parse(data, model, path)
        self._write(path, data)

    def _write(self, path: Path, data: bytes) -> None:
        self._need_lock()
        write_atomically(path, data)

    def _need_lock(self) -> None:
        if self._lock is None:
            raise RuntimeError("the run folder is not locked: call create() or resume() first")

    def _take_lock(self) -> None:
        with write_errors(self.path / LOCK):
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(descriptor).st_nlink:  # its owner took the folder back meanwhile, and the next one makes a new file
                raise BlockingIOError
        except BlockingIOError:
            os.close(descriptor)
            raise FedethosError(
                "RUN-902", "Another process is running in this folder.", where=str(self.path), fix="Wait for it, or choose another folder."
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise FedethosError(
                "RUN-902",
                "The file system of the run folder has no locks.",
                where=str(self.path),
                why="Two processes could write the same run.",
                fix="Put the run folder on a local disk.",
            ) from error
        self._lock = descriptor

    def _refuse_a_run(self) -> None:
        if self.holds_run():
            raise FedethosError(
                "RUN-901",
                "The folder already holds a run.",
                where=str(self.path),
                why="Two runs in one folder would mix their numbers.",
                fix="Choose another name, continue it with `fedethos resume`, or replace it with --force.",
            )

    def _delete_run(self) -> None:
        """Only names that fedethos writes; links are removed, never followed; folders go only when nothing foreign is left."""
        for name in FILES:
            (self.path / name).unlink(missing_ok=True)
        self._delete_partials()
        _delete_files(self.adapter, ADAPTER_FILES)
        if not self.personal.is_symlink():
            for site in self.personal.glob("[0-9]*"):
                _delete_site(site)
            _delete_files(self.personal, ())
        if not self.checkpoints.is_symlink():
            for pattern in ("round-[0-9]*", f".round-[0-9]*{PARTIAL}"):
                for folder in self.checkpoints.glob(pattern):
                    _delete_files(folder, CHECKPOINT_FILES)
            _delete_files(self.checkpoints, ())

    def _delete_partials(self) -> None:
        for name in FILES:
            for partial in self.path.glob(f".{name}.*{PARTIAL}"):
                partial.unlink(missing_ok=True)


def _parse(data: bytes, model: type[DocumentT], path: Path) -> DocumentT:
    """RUN-906 names the first key that does not fit, never its value."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "whole file"
        raise _does_not_fit(path, f"{key}: {first['msg']}") from None


def _does_not_fit(path: Path, reason: str) -> FedethosError:
    return FedethosError(
        "RUN-906",
        f"{path.name} does not have the form that this version writes ({reason}).",
        where=str(path),
        why="A damaged file, or one from another version, would give wrong numbers.",
        fix="Restore it from a copy, or run the job again.",
    )


def _delete_site(folder: Path) -> None:
    """Delete a virtual site's personal adapter: its versions, whole or partial, and its usable form."""
    if not folder.is_symlink():
        _delete_files(folder / "adapter", ADAPTER_FILES)
        versions = [*folder.glob("round-[0-9]*.safetensors"), *folder.glob(f".round-[0-9]*{PARTIAL}")]
        _delete_files(folder, tuple(path.name for path in versions))


def _delete_files(folder: Path, names: tuple[str, ...]) -> None:
    """Delete these files, then the folder if nothing foreign is left in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for name in names:
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
