"""The coordinator's side of the SuperLink: registering nodes, starting and stopping runs, taking over their ServerApps. Not public in
Flower; ``fedethos/flower_superlink.py`` is what it talks to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient

_SERVER_APP = "flwr-serverapp"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


@dataclass(frozen=True)
class NodeState:
    """A registered key. ``online``: its last heartbeat is not too old."""

    node_id: int
    public_key: bytes
    online: bool


@dataclass(frozen=True)
class RunState:
    """A run of the SuperLink. ``status`` is Flower's word: pending, starting, running, finished."""

    run_id: int
    status: str
    sub_status: str


class _Bearer:
    """Adds the secret to each call."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        add_headers(context.request, {"authorization": f"Bearer {self._secret}"})
        return call_next(context)


class SuperLinkClient:
    """The coordinator's side of the Control API and of AcquireTask. Every method may raise ``httpx.HTTPError``.

    ``ca``: with TLS, as Flower's own SuperLink is reached; None: the loopback side of ours.
    """

    def __init__(self, port: int, secret: str, *, ca: bytes | None = None) -> None:
        self.port = port
        address, insecure = f"127.0.0.1:{port}", ca is None
        version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        self._control = ControlHttpClient.from_server_address(address, insecure, ca, [_Bearer(secret)])
        signed = SuperExecAuthHttpInterceptor(master_secret=secret.encode(), protected_methods=frozenset({_ACQUIRE}))
        self._runtime = RuntimeHttpClient.from_server_address(address, insecure, ca, [version, signed])

    def nodes(self) -> list[NodeState]:
        found = self._control.ListNodes(ListNodesRequest()).nodes_info
        return [NodeState(node.node_id, node.public_key, node.status == NodeStatus.ONLINE) for node in found]

    def register(self, public_key: bytes, name: str) -> int:
        """Node id of a new key (PEM)."""
        node_id: int = self._control.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id
        return node_id

    def start_run(self, bundle: bytes, config: Mapping[str, str | int]) -> int:
        """Id of the new run, whose ServerApp then waits for ``acquire``."""
        request = StartRunRequest(fab=fab_to_proto(Fab("", bundle, {})), override_config=user_config_to_proto(dict(config)))
        run_id: int = self._control.StartRun(request).run_id
        return run_id

    def stop_run(self, run_id: int) -> None:
        """Stop it, and drop its messages."""
        self._control.StopRun(StopRunRequest(run_id=run_id))

    def runs(self) -> list[RunState]:
        found = self._control.ListRuns(ListRunsRequest()).run_dict
        return [RunState(run_id, run.status.status, run.status.sub_status) for run_id, run in found.items()]

    def acquire(self) -> tuple[int, str] | None:
        """The oldest waiting ServerApp: its run id and the token for its process. None when none waits."""
        answer = self._runtime.AcquireTask(AcquireTaskRequest(supported_task_types=[_SERVER_APP]))
        return (answer.task.run_id, answer.token) if answer.HasField("task") and answer.token else None

    def close(self) -> None:
        self._control.close()
        self._runtime.close()


def bundle_of(pyproject: str) -> bytes:
    """A Flower App Bundle that holds pyproject.toml and nothing else."""
    return build_fab_from_files({"pyproject.toml": pyproject.encode()})[0]
