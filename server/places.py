"""Where things lie in a coordinator's state folder, and what names a run."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from fedethos.errors import FedethosError

STATE_VARIABLE = "FEDETHOS_STATE"
SERVER_APP = "fedethos.deployed_app:app"  # stands above this room
RUN_KEY, JOB_KEY, ATTEMPT_KEY, QUARANTINE_KEY = "run", "job-sha256", "attempt", "quarantine-after"  # of Flower's run config

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}-[0-9a-f]{8}")


@dataclass(frozen=True)
class Places:
    """``state``: the folder of server.yaml's ``state``."""

    state: Path

    @property
    def socket(self) -> Path:
        return self.state / "control.sock"

    @property
    def sites(self) -> Path:
        """Site name to node id, JSON."""
        return self.state / "sites.json"

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def queue(self) -> Path:
        return self.state / "queue"

    def run(self, name: str) -> Path:
        """The run folder. RUN-971 when ``name`` is no name of a run, so that no path comes from the network or a person."""
        return self.state / "runs" / _checked(name)

    def live(self, name: str) -> Path:
        return self.state / "live" / f"{_checked(name)}.json"

    def make(self) -> None:
        """Make the folders, for the owner alone."""
        for folder in (self.state, self.state / "runs", self.state / "live", self.queue, self.log):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)


def new_run_name(job_name: str) -> str:
    """``<job.name>-<8 hex>``: how sites and coordinator call a run for ever."""
    return f"{job_name}-{secrets.token_hex(4)}"


def _checked(name: str) -> str:
    if not _RUN.fullmatch(name):
        raise FedethosError("RUN-971", "This is not the name of a run.", fix="See the names with: fedethos server status")
    return name
