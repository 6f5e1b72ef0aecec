"""What both sides of the control socket agree on: names, JSON objects as protobuf's ``Struct``, errors as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeAlias

import grpc
from google.protobuf.struct_pb2 import Struct

from fedethos.errors import FedethosError
from fedethos.storage import JsonValue

JsonObject: TypeAlias = Mapping[str, JsonValue]

SERVICE = "fedethos.control.v1.Control"
METHODS = frozenset({"status", "pause", "resume", "stop", "submit"})
ERROR_KEY = "fedethos-error-bin"
OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.so_reuseport", 0))

_MOST_PATH_BYTES = 100  # sun_path holds 104 bytes on macOS and 108 on Linux, a zero at the end included
_MOST_WHOLE = 2**53  # Struct has one kind of number, a double


def rpc_name(method: str) -> str:
    """``Status`` for ``status``, as in control.proto."""
    return method.capitalize()


def socket_address(path: bytes) -> str:
    """gRPC's address of a socket. Raises NET-523 when the operating system cannot bind so long a path."""
    if len(path) > _MOST_PATH_BYTES:
        raise FedethosError(
            "NET-523",
            f"The path of the control socket is {len(path)} bytes long; at most {_MOST_PATH_BYTES} can be used.",
            where="state",
            fix="Choose a state folder with a shorter path.",
        )
    return "unix:" + path.decode()


def to_struct(value: JsonObject) -> bytes:
    """A JSON object as the bytes of a ``Struct``. Whole numbers beyond 2**53 would be rounded, and raise ValueError."""
    _check_numbers(value)
    struct = Struct()
    struct.update(json.loads(json.dumps(value, allow_nan=False)))
    serialised: bytes = struct.SerializeToString()
    return serialised


def from_struct(data: bytes) -> dict[str, JsonValue]:
    """The JSON object in the bytes of a ``Struct``; a number without fraction is an int again."""
    restored = _restored(Struct.FromString(data))
    return restored if isinstance(restored, dict) else {}


def error_bytes(error: FedethosError) -> bytes:
    """An error for the trailing metadata."""
    return json.dumps({"code": error.code, "what": error.what, "where": error.where, "why": error.why, "fix": error.fix}).encode()


def error_of(call: grpc.RpcError) -> FedethosError | None:
    """The error that the other side sent, None when it sent none that can be read."""
    for key, value in call.trailing_metadata() or ():
        if key == ERROR_KEY:
            try:
                parts = json.loads(value)
                return FedethosError(**{name: str(parts[name]) for name in ("code", "what", "where", "why", "fix")})
            except (ValueError, KeyError, TypeError):
                return None
    return None


def _check_numbers(value: object) -> None:
    if isinstance(value, int) and abs(value) > _MOST_WHOLE:
        raise ValueError("a whole number is too large for the control socket; send it as text")
    if isinstance(value, Mapping):
        for one in value.values():
            _check_numbers(one)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_numbers(one)


def _restored(value: object) -> JsonValue:
    if isinstance(value, Struct):
        return {key: _restored(one) for key, one in value.items()}
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return [_restored(one) for one in value]  # type: ignore[attr-defined]
