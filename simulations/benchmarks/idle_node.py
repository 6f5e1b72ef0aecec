"""For benchmarks: a real node before its first job, seen from a gateway that counts what it is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from fedethos.flower_superlink import PULL_MESSAGES, ASGIApp, Receive, Scope, Send, superlink_app
from fedethos.flower_superlink_client import SuperLinkClient
from fedethos.server.gateway import Gateway, loopback_face
from fedethos.server.mailbox import Mailbox
from fedethos.server.superlink import free_port
from fedethos.server_document import load_server
from fedethos.simulations.benchmarks.processes import children, megabytes
from fedethos.trial import make_trial
from fedethos.trust import load_trust

_CONNECT_SECONDS, _SETTLE_SECONDS, _SECONDS = 120.0, 10.0, 30.0


def idle_node() -> tuple[float, float]:
    """Requests a second, and megabytes (10^6 bytes) of the node's process with all its children."""
    with tempfile.TemporaryDirectory(prefix="fd-") as place:
        folder = Path(place) / "trial"
        make_trial(folder, sites=["north"], address=f"127.0.0.1:{free_port()}", hosts=())
        command = [sys.executable, "-c", "from fedethos.cli import main; main()", "client", "start", str(folder / "north" / "site.yaml")]
        with _served(folder) as gateway:
            node = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
            try:
                return _watched(gateway.asked, node.pid)
            finally:
                node.terminate()
                node.wait(30)


def _watched(asked: Counter[str], pid: int) -> tuple[float, float]:
    end = time.monotonic() + _CONNECT_SECONDS
    while not asked[PULL_MESSAGES]:
        if time.monotonic() > end:
            raise TimeoutError("the node did not connect")
        time.sleep(0.2)
    time.sleep(_SETTLE_SECONDS)
    before = asked.total()
    time.sleep(_SECONDS)
    requests = (asked.total() - before) / _SECONDS
    return requests, sum(megabytes(process) for process in (pid, *children(pid)))


class _Counting:
    """The gateway, with a count of requests by path."""

    def __init__(self, gateway: ASGIApp) -> None:
        self._gateway = gateway
        self.asked: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.asked[scope["path"]] += 1
        await self._gateway(scope, receive, send)


@contextmanager
def _served(folder: Path) -> Iterator[_Counting]:
    """Both faces of a SuperLink in threads of this process."""
    server = load_server(folder / "server" / "server.yaml")
    host, port = server.address
    loopback, secret, key = free_port(), "for a benchmark", load_trust(server.trust).sites["north"].pem
    app, mailbox = superlink_app(str(folder / "superlink.sqlite"), secret, loopback), Mailbox()
    counting = _Counting(Gateway(app, mailbox, lambda: {key: "north"}, lambda site, code: None))
    tls = {"ssl_certfile": str(server.certificate), "ssl_keyfile": str(server.key)}
    servers = [
        uvicorn.Server(uvicorn.Config(loopback_face(app, mailbox), host="127.0.0.1", port=loopback, lifespan="off", log_level="error")),
        uvicorn.Server(uvicorn.Config(counting, host=host, port=port, lifespan="off", log_level="error", **tls)),  # type: ignore[arg-type]
    ]
    threads = [threading.Thread(target=one.run, daemon=True) for one in servers]
    for thread in threads:
        thread.start()
    while not all(one.started for one in servers):
        time.sleep(0.05)
    client = SuperLinkClient(loopback, secret)
    client.register(key, "north")
    client.close()
    try:
        yield counting
    finally:
        for one in servers:
            one.should_exit = True
        for thread in threads:
            thread.join()
