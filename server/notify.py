"""The notification hook: ``notify`` of server.yaml is started on each event, with the event as JSON on its standard input.

It can send mail or call a pager. It runs in a thread of its own, without a shell, and nothing waits for it or fails because of it.
"""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from collections.abc import Mapping, Sequence
from queue import Full, Queue

from fedethos.storage import JsonValue

SECONDS = 30.0  # for one event
_WAITING = 100

_log = logging.getLogger(__name__)


class Notifier:
    """``command`` None: nothing is started."""

    def __init__(self, command: Sequence[str] | None) -> None:
        self._command = list(command) if command else None
        self._events: Queue[bytes | None] = Queue(_WAITING)
        self._thread = threading.Thread(target=self._work, name="notify", daemon=True)
        if self._command:
            self._thread.start()

    def tell(self, event: str, facts: Mapping[str, JsonValue]) -> None:
        """``event`` is a fixed word such as ``run-completed``; ``facts`` hold names and codes, never a record's value."""
        if self._command is None:
            return
        try:
            self._events.put_nowait(json.dumps({"event": event, **facts}).encode() + b"\n")
        except Full:
            _log.warning("an event was not notified: too many wait")

    def close(self) -> None:
        """Let what was told be delivered, for at most ``SECONDS``."""
        if self._command:
            self._events.put(None)
            self._thread.join(SECONDS)

    def _work(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                done = subprocess.run(
                    self._command or [], input=event, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=SECONDS, check=False
                )
                if done.returncode:
                    _log.warning("the notification command failed", extra={"exit_status": done.returncode})
            except (OSError, subprocess.TimeoutExpired) as failure:
                _log.warning("the notification command did not run", exc_info=failure)
