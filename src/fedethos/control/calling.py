"""The side of a command: one call to a running coordinator or node, and its health.

Next on the path: ``control/serving.py``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedethos.control.wire import OPTIONS, SERVICE, JsonObject, error_of, from_struct, rpc_name, socket_address, to_struct
from fedethos.errors import FedethosError
from fedethos.storage import JsonValue

_TIMEOUT_SECONDS = 10.0
_INCIDENT = re.compile(r"incident ([0-9a-f]{8})")


def call_control(socket: Path, method: str, argument: JsonObject, *, timeout: float = _TIMEOUT_SECONDS) -> dict[str, JsonValue]:
    """The answer of the process that serves ``socket`` to ``method`` (``status``, ``pause``, ``resume``, ``stop``, ``submit``).

    Raises
    ------
    FedethosError
        NET-520 when nobody serves the socket, NET-522 when the process has no such method, NET-524 when it does not answer within
        ``timeout`` seconds, NET-525 when it failed; else whatever the method refused with.
    """
    with _channel(socket) as channel:
        remote = channel.unary_unary(f"/{SERVICE}/{rpc_name(method)}", request_serializer=to_struct, response_deserializer=from_struct)
        try:
            answer: dict[str, JsonValue] = remote(argument, timeout=timeout)
        except grpc.RpcError as failure:
            raise error_of(failure) or _as_error(failure, socket) from None
    return answer


def is_healthy(socket: Path, service: str = "", *, timeout: float = _TIMEOUT_SECONDS) -> bool:
    """Whether the standard health check of ``service`` says SERVING; ``""`` asks only whether the process lives."""
    with _channel(socket) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(socket: Path) -> grpc.Channel:
    return grpc.insecure_channel(socket_address(os.fsencode(socket.resolve())), options=OPTIONS)


def _as_error(failure: grpc.RpcError, socket: Path) -> FedethosError:
    status = failure.code()
    if status is grpc.StatusCode.UNAVAILABLE:
        return FedethosError(
            "NET-520",
            "No process answers on the control socket: it is not running, or runs as another user.",
            where=str(socket),
            fix="Start it, or name the document of the one that runs.",
        )
    if status is grpc.StatusCode.UNIMPLEMENTED:
        return FedethosError("NET-522", "The running process does not know this command.", fix="Compare the fedethos versions.")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return FedethosError("NET-524", "The running process did not answer in time.", where=str(socket), fix="Look at its log.")
    incident = _INCIDENT.fullmatch(failure.details() or "")
    about = f" (incident {incident[1]})" if incident else ""
    return FedethosError("NET-525", f"The running process failed to carry out the command{about}.", fix="Look at its log.")
