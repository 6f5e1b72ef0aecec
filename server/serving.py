"""The coordinator as a process: log, control socket, signals, and a tick a few times a second. Next: ``server/coordinator.py``."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path

from fedethos.control.serving import serve_control
from fedethos.errors import FedethosError
from fedethos.logs import incident_log, structured_log
from fedethos.server.coordinator import Coordinator
from fedethos.server.places import Places
from fedethos.server_document import ServerFolder

_TICK_SECONDS = 0.25
_log = logging.getLogger(__name__)


def serve(server: ServerFolder, *, finished: Callable[[Path], object], ready: Callable[[list[str]], None]) -> None:
    """Run the coordinator until SIGTERM, SIGINT or ``fedethos server stop``.

    Parameters
    ----------
    finished : callable
        Called with the run folder of each completed run, to render its report.
    ready : callable
        Called with the names of the sites once the gateway answers.

    Raises
    ------
    FedethosError
        NET-516 when the SuperLink does not start; NET-521 when a coordinator runs with this state folder already.
    """
    places = Places(server.state)
    places.make()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it would log each call to the SuperLink
    with (
        structured_log(places.log / "coordinator.jsonl", component="coordinator"),
        incident_log(places.log / "incidents.log"),
    ):
        coordinator = Coordinator(server, finished=_safely(finished))
        methods = {
            "status": coordinator.status,
            "submit": coordinator.submit,
            "pause": coordinator.pause,
            "resume": coordinator.resume,
            "stop": coordinator.stop,
        }
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: coordinator.stopping.set())
        with serve_control(places.socket, methods, "coordinator") as control:
            try:
                coordinator.start()
                control.set_serving()
                ready(coordinator.sites)
                while not coordinator.stopping.wait(_TICK_SECONDS):
                    coordinator.tick()
            finally:
                control.set_not_serving()
                coordinator.close()


def _safely(finished: Callable[[Path], object]) -> Callable[[Path], None]:
    """A page that cannot be drawn must not end the coordinator; the numbers are in the run folder."""

    def render(folder: Path) -> None:
        try:
            finished(folder)
        except (FedethosError, OSError, ValueError) as failure:
            _log.error("the report of a run could not be written", exc_info=failure)

    return render
