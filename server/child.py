"""A process of the coordinator: ``python -m MODULE``, which is told what to do in one line of JSON on standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class Child:
    """At most one process at a time. ``log``: a file of its owner alone, to which it prints. ``patience``: seconds that it has to leave."""

    def __init__(self, module: str, log: Path, *, patience: float) -> None:
        self._module, self._log, self._patience = module, log, patience
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self, settings: Mapping[str, str | int], environment: Mapping[str, str]) -> None:
        """Start it anew. Standard input stays open: its end tells the process that the coordinator is gone."""
        self.stop()
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                bufsize=0,
                env=dict(environment),
                umask=0o077,
            )
        finally:
            os.close(log)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # it died at once, as ``alive`` says
                self._process.stdin.write(json.dumps(settings).encode() + b"\n")

    def stop(self) -> None:
        """Ask it to leave, and make it leave when it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None
