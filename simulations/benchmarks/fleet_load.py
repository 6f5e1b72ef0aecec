"""For benchmarks: a SuperLink behind the gateway, nodes that send back what they get, and the ServerApp's side of the messages."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedethos.client.node_key import load_node_key
from fedethos.flower_fleet import Endpoint, FleetConnection, RunEndedError
from fedethos.flower_grid import checked
from fedethos.flower_server_app import server_app_grid
from fedethos.flower_superlink_client import SuperLinkClient, bundle_of
from fedethos.server.server_app import BUNDLE
from fedethos.server.superlink import SuperLink, free_port
from fedethos.server_document import ServerFolder, load_server
from fedethos.trial import make_trial
from fedethos.trust import load_trust

_MOST_BYTES = 1 << 30
_ONLINE_SECONDS = 180.0
_PULL_SECONDS = 0.1


class Echo(threading.Thread):
    """A node on the project's own fleet connection that sends every message's content back."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(daemon=True)
        self._endpoint = Endpoint(address, (folder / "ca.pem").read_bytes())
        self._key: ec.EllipticCurvePrivateKey = load_node_key(folder / "node.key")
        self._stopped = threading.Event()
        self.connected = threading.Event()
        self.start()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        with FleetConnection(self._endpoint, self._key, self._stopped) as connection:
            while not self._stopped.is_set():
                message = connection.receive(lambda: _MOST_BYTES)
                if connection.node_id is not None:
                    self.connected.set()
                if message is None:
                    self._stopped.wait(connection.pause)
                    continue
                connection.confirm(message)
                try:
                    connection.send(Message(message.content, reply_to=message))
                except RunEndedError:
                    continue


@dataclass(frozen=True)
class Fleet:
    """``ask`` sends one content to every node and waits for all replies. ``pid``: of the SuperLink."""

    pid: int
    grid: Grid
    node_ids: Sequence[int]

    def ask(self, content: RecordDict, *, timeout: float) -> float:
        """Seconds until the last reply was here. TimeoutError when one is missing after ``timeout`` seconds."""
        begin = time.perf_counter()
        asked = set(self.grid.push_messages([Message(content, node_id, "train") for node_id in self.node_ids]))
        while asked:
            if time.perf_counter() - begin > timeout:
                raise TimeoutError(f"{len(asked)} of {len(self.node_ids)} nodes did not answer")
            replies = list(self.grid.pull_messages(list(asked)))
            asked -= {reply.metadata.reply_to_message_id for reply in replies if reply.has_content()}
            if not replies:
                time.sleep(_PULL_SECONDS)
        return time.perf_counter() - begin


@contextmanager
def fleet_of(count: int) -> Iterator[Fleet]:
    """So many nodes behind the gateway, all connected over TLS with their own keys."""
    with _trial(count) as (folder, server, keys), ExitStack() as resources:
        superlink = SuperLink(server)
        resources.callback(superlink.close)
        superlink.start()
        superlink.admit(keys)
        yield resources.enter_context(_connected(folder, superlink.client, superlink.pid or 0, server, keys))


@contextmanager
def stock_fleet_of(count: int) -> Iterator[Fleet]:
    """The same nodes on Flower's own ``flower-superlink``, as its documentation starts it: TLS, node keys, a database."""
    with _trial(count) as (folder, server, keys), ExitStack() as resources:
        ca = folder / keys[next(iter(keys))] / "ca.pem"
        host, port = server.address
        command = [
            *(sys.executable, "-c", "from flwr.superlink.cli import flower_superlink; flower_superlink()"),
            *("--host", host, "--port", str(port), "--isolation", "process", "--enable-supernode-auth"),
            *("--ssl-certfile", str(server.certificate), "--ssl-keyfile", str(server.key), "--ssl-ca-certfile", str(ca)),
            *("--database", str(folder / "stock.sqlite")),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        resources.callback(process.wait)
        resources.callback(process.terminate)
        client = SuperLinkClient(port, "no secret", ca=ca.read_bytes())
        resources.callback(client.close)
        _until_it_answers(client)
        yield resources.enter_context(_connected(folder, client, process.pid, server, keys, ca=ca.read_bytes()))


@contextmanager
def _trial(count: int) -> Iterator[tuple[Path, ServerFolder, dict[bytes, str]]]:
    with tempfile.TemporaryDirectory(prefix="fd-") as place:
        folder = Path(place) / "trial"
        names = [f"site-{number:03d}" for number in range(count)]
        make_trial(folder, sites=names, address=f"127.0.0.1:{free_port()}", hosts=())
        server = load_server(folder / "server" / "server.yaml")
        yield folder, server, {site.pem: name for name, site in load_trust(server.trust).sites.items()}


@contextmanager
def _connected(
    folder: Path, client: SuperLinkClient, pid: int, server: ServerFolder, keys: Mapping[bytes, str], *, ca: bytes | None = None
) -> Iterator[Fleet]:
    node_ids = [client.register(key, name) for key, name in keys.items()]
    nodes = [Echo(folder / name, server.document.address) for name in keys.values()]
    try:
        end = time.monotonic() + _ONLINE_SECONDS
        if not all(node.connected.wait(max(0.0, end - time.monotonic())) for node in nodes):
            raise TimeoutError("not all nodes connected")
        client.start_run(bundle_of(BUNDLE), {})
        acquired = client.acquire()
        if acquired is None:
            raise RuntimeError("the SuperLink hands out no run")
        with server_app_grid(client.port, acquired[1], ca=ca) as (grid, _):
            yield Fleet(pid, grid if ca else checked(grid), node_ids)
    finally:
        for node in nodes:
            node.stop()
        for node in nodes:
            node.join(20.0)


def _until_it_answers(client: SuperLinkClient) -> None:
    end = time.monotonic() + _ONLINE_SECONDS
    while True:
        try:
            client.nodes()
        except httpx.HTTPError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return
