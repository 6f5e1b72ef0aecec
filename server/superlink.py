"""The SuperLink as a process of the coordinator: start, health, stop. Its state is the database in the state folder.

Both ports stay the same over a restart, so that a ServerApp and the nodes find it again. Next: ``server/superlink_process.py``.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping

import httpx

from fedethos.errors import FedethosError
from fedethos.flower_superlink_client import SuperLinkClient
from fedethos.server.child import Child
from fedethos.server_document import ServerFolder
from fedethos.storage import write_atomically

_START_SECONDS = 60.0  # for one that ends again and again
_SLOW_START_SECONDS = 300.0  # for one that lives, on a machine that is busy
_STOP_SECONDS = 10.0
_MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1048576"}  # glibc: give the memory of large messages back at once


class SuperLink:
    """``start`` it, look whether it is ``alive``, ``stop`` it. ``client`` talks to its loopback side."""

    def __init__(self, server: ServerFolder) -> None:
        self._server = server
        self._folder = server.state / "superlink"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._secret = secrets.token_hex(32)
        self._child = Child("fedethos.server.superlink_process", self._folder / "superlink.log", patience=_STOP_SECONDS)
        self.port = free_port()
        self.client = SuperLinkClient(self.port, self._secret)

    @property
    def environment(self) -> dict[str, str]:
        """For this process and the ServerApp's: Flower keeps its own files in the state folder."""
        return {**os.environ, "FLWR_HOME": str(self._folder / "flwr")}

    @property
    def alive(self) -> bool:
        return self._child.alive

    @property
    def pid(self) -> int | None:
        return self._child.pid

    def admit(self, sites: Mapping[bytes, str]) -> None:
        """Let the gateway answer exactly these keys (PEM, to the site's name). Takes effect at once."""
        keys = {key.decode(): name for key, name in sites.items()}
        write_atomically(self._folder / "keys.json", json.dumps(keys, sort_keys=True, indent=1).encode())

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises
        ------
        FedethosError
            NET-516 when it does not come up.
        """
        host, public_port = self._server.address
        if not (self._folder / "keys.json").exists():
            self.admit({})
        settings: dict[str, str | int] = {
            "database": str(self._folder / "superlink.sqlite"),
            "secret": self._secret,
            "port": self.port,
            "host": host,
            "public_port": public_port,
            "certificate": str(self._server.certificate),
            "key": str(self._server.key),
            "keys": str(self._folder / "keys.json"),
        }
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            self._child.start(settings, {**self.environment, **_MALLOC})
            if self._is_up(time.monotonic() + _SLOW_START_SECONDS):
                return
            self.stop()
            time.sleep(1.0)  # the port may still be held by a process of a coordinator that was killed
        raise FedethosError(
            "NET-516",
            "The SuperLink did not start.",
            where=str(self._folder / "superlink.log"),
            why="Its address is taken, its certificate or key does not load, or its database is damaged.",
            fix="Run: fedethos server doctor",
        )

    def stop(self) -> None:
        """Ask it to leave, and make it leave after ten seconds."""
        self._child.stop()

    def close(self) -> None:
        self.stop()
        self.client.close()

    def _is_up(self, end: float) -> bool:
        while self.alive and time.monotonic() < end:
            if healthy(self.port) and accepts(*self._server.address):
                return self.alive
            time.sleep(0.1)
        return False


def healthy(port: int) -> bool:
    """Whether a SuperLink answers on this loopback port."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def accepts(host: str, port: int) -> bool:
    """Whether something listens there; every address of this machine is tried as loopback."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (compared, not bound)
    try:
        socket.create_connection((reached, port), timeout=2.0).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A loopback port that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
