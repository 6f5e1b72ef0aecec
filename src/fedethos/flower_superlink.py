"""Flower's SuperLink as one application, and what its gateway reads in requests. Not public in Flower.

``flower_superlink_client.py`` talks to its Control and Runtime API, ``flower_server_app.py`` runs a ServerApp on it.
``tests/server/test_superlink.py`` is the contract that the three keep with the pinned version.
"""

from __future__ import annotations

import hmac
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeVar

from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
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
    _spare_the_database(app.state.linkstate_factory.state())
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


def _spare_the_database(state: SqlLinkState) -> None:
    """Flower looks for expired ServerApps (two updates of its database) in every request of every node: here once a second. With every
    object it adds to a count of the run's bytes: here not, the round loop has its own."""
    clean, last = state._cleanup_expired_task_tokens, float("-inf")

    def sometimes() -> None:
        nonlocal last
        if time.monotonic() - last >= 1.0:
            last = time.monotonic()
            clean()

    def uncounted(run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        return

    state._cleanup_expired_task_tokens = sometimes  # type: ignore[method-assign]
    state.store_traffic = uncounted  # type: ignore[method-assign]


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
