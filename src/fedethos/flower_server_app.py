"""A ServerApp in this process, on the loopback side of a SuperLink. Not public in Flower.

Flower's own launcher (``flwr.superlink.runtime.run_serverapp``) also unpacks the run's bundle into FLWR_HOME, loads the app from there, and
uploads what was logged, for which it sleeps a second at every end. Here the app is the installed one and the log is a file of the
coordinator's. ``tests/server/test_superlink.py`` is the contract with the pinned version.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pkgutil import resolve_name

import httpx
from flwr.app import Context
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid


@contextmanager
def server_app_grid(port: int, token: str, *, ca: bytes | None = None) -> Iterator[tuple[HttpGrid, Context]]:
    """What the main function of the ServerApp that ``token`` stands for gets. Inside, the SuperLink is told that it lives."""
    grid = HttpGrid(f"127.0.0.1:{port}", insecure=ca is None, root_certificates=ca, token=token)
    task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, task.run.run_id, task.context.node_id
    run, context = run_from_proto(task.run), context_from_proto(task.context)
    grid.set_run(run)
    context.run_config = run.override_config
    heartbeats = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    heartbeats.start()
    try:
        yield grid, context
    finally:
        if heartbeats.is_running:
            heartbeats.stop()
        grid.close()


def run_server_app(port: int, token: str, reference: str) -> None:
    """Run the installed ServerApp ``reference`` ("module:attribute") to its end, and tell the SuperLink how it ended.

    SIGTERM and SIGINT end it where it is, and close what it holds open.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with server_app_grid(port, token) as (grid, context):
        ended = SubStatus.FAILED
        try:
            resolve_name(reference)(grid, context)
            ended = SubStatus.COMPLETED
        finally:
            grid._retry_invoker.max_tries = 1  # a SuperLink that is gone is not waited for
            with suppress(httpx.HTTPError):
                grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=ended))
