"""The side of the running process: a gRPC server on a Unix socket with mode 0600, and the standard health service.

Next on the path: ``control/wire.py``; ``control/calling.py`` is the other side.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from fedethos import incidents
from fedethos.control.wire import (
    ERROR_KEY,
    METHODS,
    OPTIONS,
    SERVICE,
    JsonObject,
    error_bytes,
    from_struct,
    rpc_name,
    socket_address,
    to_struct,
)
from fedethos.errors import FedethosError

Method = Callable[[JsonObject], JsonObject]

_THREADS = 4  # one for each of a person, two probes, and a view that polls
_GRACE_SECONDS = 2.0


class ControlServer:
    """A served socket. As a context manager it closes itself; ``serve_control`` makes it."""

    def __init__(self, socket: Path, server: grpc.Server, servicer: health.HealthServicer, service: str, lock: int) -> None:
        self._socket, self._server, self._health, self._service, self._lock = socket, server, servicer, service, lock

    def set_serving(self) -> None:
        """The process is ready for work: the health check of its service says SERVING."""
        self._health.set(self._service, health_pb2.HealthCheckResponse.SERVING)

    def set_not_serving(self) -> None:
        """The process lives and takes no work: starting, paused or stopping."""
        self._health.set(self._service, health_pb2.HealthCheckResponse.NOT_SERVING)

    def close(self) -> None:
        """Let running calls end, then remove the socket. To be called once."""
        self._health.enter_graceful_shutdown()
        self._server.stop(_GRACE_SECONDS).wait()
        self._socket.unlink(missing_ok=True)
        os.close(self._lock)

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def serve_control(socket: Path, methods: Mapping[str, Method], service: str) -> ControlServer:
    """Serve ``methods`` on ``socket``, in threads of its own, from now on.

    Health: service ``""`` is SERVING as long as the process answers; ``service`` is NOT_SERVING until ``set_serving``.

    Parameters
    ----------
    socket : Path
        In a folder that is there. A socket that a dead process left is replaced.
    methods : by name (``status``, ``pause``, ``resume``, ``stop``, ``submit``)
        Each takes and returns a JSON object, in a thread of the server: quick, thread-safe, and setting a flag rather than ending
        the process. A FedethosError reaches the caller whole; of any other exception only a random incident id does.
    service : str
        Name of the health check: ``node`` or ``coordinator``.

    Raises
    ------
    FedethosError
        NET-521 when another process serves this socket, NET-523 when it cannot be made.
    """
    if unknown := set(methods) - METHODS:
        raise ValueError(f"control.proto has no {sorted(unknown)}")
    lock = _lock(socket)
    try:
        server = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="control"), options=OPTIONS)
        servicer = health.HealthServicer(experimental_non_blocking=True)
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        servicer.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        handlers = {rpc_name(name): _handler(method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        _bind(server, socket)
    except BaseException:
        os.close(lock)
        raise
    return ControlServer(socket, server, servicer, service, lock)


def _lock(socket: Path) -> int:
    """Held as long as the process lives, however it ends."""
    try:
        descriptor = os.open(socket.with_name(f"{socket.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot_bind(socket) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise FedethosError(
            "NET-521",
            "Another process is running with this state folder.",
            where=str(socket.parent),
            why="Two processes with one ledger, or one set of runs, would disturb each other.",
            fix="Stop the other one first, or give this one a state folder of its own.",
        ) from None
    return descriptor


def _bind(server: grpc.Server, socket: Path) -> None:
    """Bind where nobody else can look, close it to others, and only then give it its name."""
    hidden = Path(tempfile.mkdtemp(prefix=".", dir=socket.parent))  # mode 0700
    try:
        server.add_insecure_port(socket_address(os.fsencode(hidden.resolve() / "s")))
        server.start()
        (hidden / "s").chmod(0o600)
        (hidden / "s").replace(socket)
    except (OSError, RuntimeError) as error:
        server.stop(None)
        raise _cannot_bind(socket) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _cannot_bind(socket: Path) -> FedethosError:
    return FedethosError(
        "NET-523",
        "The control socket cannot be made.",
        where=str(socket),
        fix="Check that the state folder exists, belongs to this user and lies on a local disk.",
    )


def _handler(method: Method) -> grpc.RpcMethodHandler:
    def answer(argument: JsonObject, context: grpc.ServicerContext) -> JsonObject:
        try:
            return method(argument)
        except FedethosError as error:
            context.set_trailing_metadata(((ERROR_KEY, error_bytes(error)),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.code)
        except Exception as error:
            incident = incidents.record(error)
            context.abort(grpc.StatusCode.INTERNAL, f"incident {incident.id}")
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(answer, request_deserializer=from_struct, response_serializer=to_struct)
