"""The supervisor's hold on its worker: start it, give it an order, notice that it died, end it.

Next on the path: ``client/worker.py``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from flwr.app import RecordDict

from fedethos.client.devices import visible_to_worker
from fedethos.client.frames import BrokenConnectionError, Order, receive_record, send_record

_GRACE_SECONDS = 5.0


class WorkerDiedError(Exception):
    """The worker ended before it answered. ``status``: its exit status, negative for a signal."""

    def __init__(self, status: int | None) -> None:
        super().__init__("the worker ended before it answered")
        self.status = status


class WorkerHandle:
    """``document``: the site.yaml that the worker reads. ``errors``: a file for what libraries print, of its owner alone."""

    def __init__(self, document: Path, device: str, errors: Path) -> None:
        self._document, self._device, self._errors = document, device, errors
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._given_up = False

    def __enter__(self) -> WorkerHandle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """None while no worker runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def ask(self, order: Order, record: RecordDict) -> RecordDict:
        """The worker's answer; a worker is started if none runs. WorkerDiedError when it ends before it answers, or was given up."""
        if self._given_up:
            raise WorkerDiedError(None)
        connection = self._running()
        try:
            send_record(connection, record, order)
            answer, _ = receive_record(connection)
        except BrokenConnectionError:
            raise WorkerDiedError(self.stop()) from None
        return answer

    def give_up(self) -> None:
        """End the worker from any thread or signal handler; no other is started."""
        self._given_up = True
        if (process := self._process) is not None:
            process.kill()

    def stop(self) -> int | None:
        """End the worker, whatever it is doing; returns its exit status. It has nothing to lose: what it paid for is in the ledger."""
        if self._connection is not None:
            self._connection.close()
        process, self._process, self._connection = self._process, None, None
        if process is None:
            return None
        try:
            return process.wait(_GRACE_SECONDS if process.poll() is None else None)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _running(self) -> Connection:
        if self._connection is None or self.pid is None:
            self.stop()
            ours, theirs = socket.socketpair()
            with theirs, os.fdopen(os.open(self._errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "fedethos.client.worker", str(self._document), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    env=visible_to_worker(self._device, os.environ),
                    start_new_session=True,  # Ctrl-C is the supervisor's: it lets a round end
                )
            self._connection = Connection(ours.detach())
        return self._connection
