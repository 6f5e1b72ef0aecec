"""Every use of Flower's SuperLink that is not public: making it, and talking to its Control and Runtime API.

Sibling of ``fedethos.flower``. ``tests/server/test_superlink.py`` is the contract that this file keeps with the pinned version.
"""

from __future__ import annotations

import hmac
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Queue
from typing import Any, TypeVar

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
from flwr.common.serde import fab_to_proto, run_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushAppMessagesRequest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.serverapp import Grid
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, NodeStatus
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.grid import HttpGrid
from flwr.superlink.main import create_app
from flwr.superlink.runtime import run_serverapp
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage
from starlette.middleware import Middleware

PULL_MESSAGES, PUSH_MESSAGES = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"
FLEET_PATHS = frozenset(
    {
        PULL_MESSAGES,
        PUSH_MESSAGES,
        "/v1/fleet/activate-node",
        "/v1/fleet/deactivate-node",
        "/v1/fleet/send-node-heartbeat",
        "/v1/fleet/push-object",
        "/v1/fleet/get-run",
        "/v1/fleet/pull-object",
        "/v1/fleet/confirm-message-received",
    }
)
"""What a node of ours calls. Not among them: register and unregister a node, and fetch code (get-fab)."""

APP_PUSH_MESSAGES, APP_PUSH_OBJECT = "/v1/runtime/push-messages", "/v1/runtime/push-object"
"""What a ServerApp calls when it sends."""

KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
SHORTEST_HEARTBEAT = HEARTBEAT_MIN_INTERVAL

_SERVER_APP = "flwr-serverapp"
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"

_Request = TypeVar("_Request", bound=ProtobufMessage)

Scope = MutableMapping[str, Any]  # ASGI's own types are Any
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class _OneSecret(NoOpControlAuthnPlugin):
    """The Control API answers who knows the secret, and nobody else."""

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._secret = secret.encode()

    def validate_tokens_in_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> tuple[bool, AccountInfo | None]:
        tokens = [value if isinstance(value, bytes) else value.encode() for _, value in metadata]
        if len(tokens) != 1 or not hmac.compare_digest(tokens[0], self._secret):
            return False, None
        return super().validate_tokens_in_metadata(())


def superlink_app(database: str, secret: str, port: int) -> ASGIApp:
    """Flower's SuperLink as one ASGI application: Control, Runtime and Fleet API, node keys required.

    Parameters
    ----------
    database : str
        Path of the SQLite file.
    secret : str
        What Control API calls carry, and what AcquireTask is signed with.
    port : int
        Where it will listen on loopback.
    """
    app = create_app(
        SuperLinkLifespanConfig(
            control_address=f"127.0.0.1:{port}",
            health_server_address=None,
            host="127.0.0.1",
            port=port,
            insecure=True,
            certificates=None,
            superexec_auth_secret=secret.encode(),
            authn_plugin=_OneSecret(secret),
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_event_log=False,
            artifact_provider=None,
            enable_supernode_auth=True,
            fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
            fleet_api_address=None,
            simulation=False,
            ssl_ca_certfile=None,
            ssl_certfile=None,
            ssl_keyfile=None,
            database=database,
            isolation=ISOLATION_MODE_PROCESS,
            runtime_dependency_install=False,
        ),
        SuperLinkLifespan,
    )
    app.user_middleware = [_where_it_acts(one) for one in app.user_middleware]
    _clean_once_a_second(app.state.linkstate_factory.state())
    return app


def _where_it_acts(middleware: Middleware) -> Middleware:
    """``middleware`` on the paths that it does something for: each costs every request about half a millisecond."""
    for start, path in _ACTS_ON.items():
        if getattr(middleware.cls, "__name__", "").startswith(start):
            return Middleware(_OnPath, inner=middleware, path=path)
    return middleware


_ACTS_ON = {"Control": "/v1/control/", "RuntimeTracing": "/v1/runtime/", "NodeAuth": "/v1/fleet/", "FleetEventLog": "/v1/fleet/"}


class _OnPath:
    """ASGI middleware: ``inner`` for paths that begin with ``path``, and the application itself for all others."""

    def __init__(self, app: ASGIApp, inner: Middleware, path: str) -> None:
        self._plain, self._path = app, path
        self._inner: ASGIApp = inner.cls(app, *inner.args, **inner.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        elsewhere = scope["type"] == "http" and not scope["path"].startswith(self._path)
        await (self._plain if elsewhere else self._inner)(scope, receive, send)


def _clean_once_a_second(state: SqlLinkState) -> None:
    """Flower looks for expired ServerApps (two updates of its database) in every request of every node."""
    clean, last = state._cleanup_expired_task_tokens, float("-inf")

    def sometimes() -> None:
        nonlocal last
        if time.monotonic() - last >= 1.0:
            last = time.monotonic()
            clean()

    state._cleanup_expired_task_tokens = sometimes  # type: ignore[method-assign]


def key_of_header(value: bytes) -> bytes | None:
    """The public key (PEM) that a fleet request claims, None when the header holds none."""
    try:
        return b64decode(value, validate=True)
    except ValueError:
        return None


def key_header(public_key: bytes) -> bytes:
    """The inverse of ``key_of_header``."""
    return b64encode(public_key)


def replies_only_for_itself(body: bytes) -> bool:
    """Whether a push-messages request names as sender of its replies the node that it is authenticated as.

    Flower 1.41 checks that node against the key, but takes the sender of each reply from the reply.
    """
    request = _parsed(PushMessagesRequest, body)
    return (
        request is not None
        and len(request.messages_list) == 1
        and all(message.metadata.src_node_id == request.node.node_id for message in request.messages_list)
    )


def asking_node(body: bytes) -> int | None:
    """The node that a pull-messages request says it is of; its signature is checked later. None when it is no such request."""
    request = _parsed(PullMessagesRequest, body)
    return None if request is None else int(request.node.node_id)


def addressed_nodes(body: bytes) -> set[int]:
    """The nodes that a ServerApp's push-messages request has messages for."""
    request = _parsed(PushAppMessagesRequest, body)
    return set() if request is None else {message.metadata.dst_node_id for message in request.messages_list}


def _parsed(kind: type[_Request], body: bytes) -> _Request | None:
    request: _Request = kind()
    try:
        request.ParseFromString(body)
    except DecodeError:
        return None
    return request


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


@contextmanager
def server_app_grid(port: int, token: str, *, ca: bytes | None = None) -> Iterator[Grid]:
    """What a ServerApp's main gets, in this process: for measuring messages without an app."""
    grid = HttpGrid(f"127.0.0.1:{port}", insecure=ca is None, root_certificates=ca, token=token)
    task = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, task.run.run_id, task.context.node_id
    grid.set_run(run_from_proto(task.run))
    heartbeats = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    heartbeats.start()
    try:
        yield grid
    finally:
        heartbeats.stop()
        grid.close()


def run_server_app(port: int, token: str) -> None:
    """Run the ServerApp that ``token`` stands for in this process, to its end. Leaves through ``sys.exit``."""
    run_serverapp(
        runtime_api_address=f"127.0.0.1:{port}",
        log_queue=Queue(),
        token=token,
        insecure=True,
        certificates=None,
        parent_pid=None,  # Flower would only ask the process to end; ``fedethos.orphans`` ends it
        runtime_dependency_install=False,
    )
