"""The process of the ServerApp: started by the coordinator itself with Flower's token, so that its end is seen at once."""

from __future__ import annotations

import os
import time

import httpx

from fedethos.errors import FedethosError
from fedethos.flower_superlink_client import bundle_of
from fedethos.server.child import Child
from fedethos.server.places import ATTEMPT_KEY, JOB_KEY, QUARANTINE_KEY, RUN_KEY, SERVER_APP, STATE_VARIABLE, Places
from fedethos.server.superlink import SuperLink

_ACQUIRE_SECONDS = 10.0
_STOP_SECONDS = 15.0

BUNDLE = f"""\
[project]
name = "fedethos-run"
version = "1.0.0"
description = "Names the installed ServerApp. It holds no code."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedethos"

[tool.flwr.app.components]
serverapp = "{SERVER_APP}"
clientapp = "fedethos.client.app:app"

[tool.flwr.app.config]
{RUN_KEY} = ""
{JOB_KEY} = ""
{ATTEMPT_KEY} = 0
{QUARANTINE_KEY} = 0
"""


class ServerAppProcess:
    """At most one at a time."""

    def __init__(self, places: Places, superlink: SuperLink) -> None:
        self._places, self._superlink = places, superlink
        self._child = Child("fedethos.server.runner", places.log / "serverapp.log", patience=_STOP_SECONDS)
        self._flower_run: int | None = None

    @property
    def alive(self) -> bool:
        return self._child.alive

    def start(self, run: str, job_sha256: str, *, attempt: int, quarantine_after: int) -> int:
        """Start a Flower run and its ServerApp; the id of the Flower run. ``attempt``: how often the run was started before.

        Raises
        ------
        FedethosError
            NET-517 when the SuperLink does not hand the new run out.
        """
        self.stop()
        client = self._superlink.client
        config: dict[str, str | int] = {RUN_KEY: run, JOB_KEY: job_sha256, ATTEMPT_KEY: attempt, QUARANTINE_KEY: quarantine_after}
        self._flower_run = client.start_run(bundle_of(BUNDLE), config)
        token = self._token(self._flower_run)
        start: dict[str, str | int] = {"port": self._superlink.port, "token": token, "parent": os.getpid()}
        self._child.start(start, {**self._superlink.environment, STATE_VARIABLE: str(self._places.state.resolve())})
        return self._flower_run

    def stop(self) -> None:
        """End the process, if there is one, and drop its Flower run with its messages."""
        self._child.stop()
        if self._flower_run is not None:
            self._drop(self._flower_run)
            self._flower_run = None

    def _drop(self, flower_run: int) -> None:
        try:
            if any(run.run_id == flower_run and run.status != "finished" for run in self._superlink.client.runs()):
                self._superlink.client.stop_run(flower_run)
        except httpx.HTTPError:  # the SuperLink is away: ``Coordinator.start`` drops it
            return

    def _token(self, flower_run: int) -> str:
        end = time.monotonic() + _ACQUIRE_SECONDS
        while time.monotonic() < end:
            acquired = self._superlink.client.acquire()
            if acquired is not None and acquired[0] == flower_run:
                return acquired[1]
            time.sleep(0.05)
        raise FedethosError("NET-517", "The SuperLink did not hand out the new run.", fix="Look into its log in the state folder.")
