"""``python -m fedethos.server.superlink_process``: Flower's SuperLink and the gateway before it, two listeners in one process.

The settings come as one line of JSON on standard input. When standard input ends, the coordinator is gone and so is this process.
Next on the path: ``server/gateway.py``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import ssl
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import uvicorn
from anyio import to_thread
from pydantic import BaseModel, ConfigDict
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedethos.collector import spare_collections
from fedethos.flower_superlink import Receive, Scope, Send, superlink_app
from fedethos.server.gateway import Gateway, loopback_face
from fedethos.server.mailbox import Mailbox

HEADER_SECONDS = 15.0  # for a connection's first or next request line and headers, once its first byte came
_BACKLOG = 1024
_THREADS = 4  # Flower's handlers run in threads, and each has a database connection with a cache of 64 MB


class Settings(BaseModel):
    """What the coordinator says. ``keys``: a JSON file, public key (PEM) to site name, read again whenever it changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    database: str
    secret: str
    port: int
    host: str
    public_port: int
    certificate: str
    key: str
    keys: str


class Keys:
    """The keys that are answered, as the file says now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at: tuple[int, int] | None = None
        self._keys: dict[bytes, str] = {}

    def __call__(self) -> dict[bytes, str]:
        status = self._path.stat()
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp != self._read_at:
            self._keys = {key.encode(): name for key, name in json.loads(self._path.read_bytes()).items()}
            self._read_at = stamp
        return self._keys


class _Server(uvicorn.Server):
    """Signals are handled once for both servers."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _PatientProtocol(HttpToolsProtocol):
    """Closes a connection that does not finish its request line and headers in time. Uvicorn itself waits for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def on_message_begin(self) -> None:
        self._waiting.cancel()
        self._waiting = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._waiting.cancel()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting.cancel()
        super().connection_lost(exc)


def main(stdin: IO[str] = sys.stdin) -> None:
    """Serve until SIGTERM or the end of standard input."""
    spare_collections()
    settings = Settings.model_validate_json(stdin.readline())
    logging.getLogger("flwr").setLevel(logging.WARNING)
    factory = uvicorn.Config(_nothing).get_loop_factory()  # uvloop where it is installed: asyncio's own TLS takes twice as long
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(settings, stdin))


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """An application of no use: uvicorn asks for one before it names its loop."""


async def _serve(settings: Settings, stdin: IO[str]) -> None:
    to_thread.current_default_thread_limiter().total_tokens = _THREADS
    app, mailbox = superlink_app(settings.database, settings.secret, settings.port), Mailbox()
    private = _Server(uvicorn.Config(loopback_face(app, mailbox), host="127.0.0.1", port=settings.port, **_QUIET))  # type: ignore[arg-type]
    gateway = Gateway(app, mailbox, Keys(Path(settings.keys)), _log_refusal)
    public = _Server(
        uvicorn.Config(
            gateway,
            host=settings.host,
            port=settings.public_port,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
            ssl_version=ssl.PROTOCOL_TLS_SERVER,
            http=_PatientProtocol,
            lifespan="off",
            backlog=_BACKLOG,
            timeout_keep_alive=75,
            **_QUIET,  # type: ignore[arg-type]
        )
    )

    def leave() -> None:
        private.should_exit = public.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    threading.Thread(target=lambda: (stdin.read(), loop.call_soon_threadsafe(leave)), daemon=True).start()
    await asyncio.gather(_until_done(private, leave), _until_done(public, leave))


_QUIET = {"log_config": None, "access_log": False, "server_header": False, "timeout_graceful_shutdown": 3}


async def _until_done(server: uvicorn.Server, leave: object) -> None:
    try:
        await server.serve()
    finally:
        if callable(leave):
            leave()


def _log_refusal(site: str, code: str) -> None:
    logging.getLogger("fedethos.gateway").warning("%s %s", code, site)


if __name__ == "__main__":
    main()
