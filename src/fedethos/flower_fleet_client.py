"""Flower's Fleet client as a node needs it: bounded, without redirects, and with every failure as a coded error.

Used by ``fedethos/flower_fleet.py`` alone.
"""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedethos.errors import FedethosError

_LARGEST_RESPONSE = 64 * 2**20  # bytes; Flower cuts tensors into objects of 5 MiB
_LARGEST_SKEW = 5.0  # seconds
_KEPT_SECONDS = 60.0  # an idle connection; httpx's 5 would mean a TLS handshake for every heartbeat, and the gateway closes after 75
_UNAVAILABLE = (502, 503, 504)

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class RunEndedError(Exception):
    """The run of a message is over: nobody waits for a reply any more."""


class UnusableError(Exception):
    """What came is too large, or not what was announced."""


@dataclass(frozen=True)
class Endpoint:
    """Where the coordinator is, and how this site knows that it is the right one.

    ``certificate_authority`` is PEM; None: the system's own list. ``insecure``: no TLS, on the loopback interface only.
    """

    address: str
    certificate_authority: bytes | None = None
    insecure: bool = False
    proxy: str | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self.insecure else 'https'}://{self.address}"


class FleetClient(FleetHttpClient):
    """Flower's client with a bound on what it reads, without redirects, and without what the environment says about proxies."""

    def __init__(self, endpoint: Endpoint, key: ec.EllipticCurvePrivateKey) -> None:
        if endpoint.insecure and not _on_loopback(endpoint.address):
            raise FedethosError(
                "SEC-680",
                "A connection without TLS leads away from this machine.",
                where="coordinator.insecure",
                why="Anybody on the way could read and change what is sent.",
                fix="Give the coordinator a certificate, and take coordinator.insecure away.",
            )
        interceptors: list[ProtobufClientInterceptor] = [_VersionHeaders(), NodeAuthHttpInterceptor(key, key.public_key())]
        verify = _trusting(endpoint)
        super().__init__(endpoint.url, interceptors=interceptors, verify=verify)
        self._client.close()
        limits = httpx.Limits(keepalive_expiry=_KEPT_SECONDS)
        transport = _Bounded(httpx.HTTPTransport(verify=verify, proxy=endpoint.proxy, retries=0, limits=limits))
        self._client = httpx.Client(transport=transport, timeout=30.0, follow_redirects=False, trust_env=False)


class _VersionHeaders:
    """Say which Flower this is. Flower's own interceptor would end the process when the coordinator's is another."""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        add_headers(context.request, dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata()))
        return call_next(context)


class _Bounded(httpx.BaseTransport):
    """A transport that gives up on a response of more than 64 MiB."""

    def __init__(self, transport: httpx.HTTPTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._transport.handle_request(request)
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _BoundedStream(response.stream)
        return response

    def close(self) -> None:
        self._transport.close()


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if size > _LARGEST_RESPONSE:
                raise UnusableError
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _trusting(endpoint: Endpoint) -> ssl.SSLContext:
    authority = endpoint.certificate_authority
    try:
        context = ssl.create_default_context(cadata=None if authority is None else authority.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise FedethosError(
            "NET-542",
            "The certificate authority's file holds no PEM certificate.",
            where="coordinator.ca",
            fix="Ask the coordinator for it.",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _on_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def translated(call: Callable[[Asked], Answer], request: Asked) -> Answer:
    """``call(request)``; what goes wrong on the way as a coded error (NET-541 to NET-545), the end of the run as ``RunEndedError``."""
    try:
        return call(request)
    except httpx.HTTPStatusError as error:
        raise _refusal(error.response) from None
    except httpx.TransportError as error:
        raise _unreachable(error) from None
    except ObjectPushError:
        raise FedethosError("NET-541", "The coordinator did not keep what was sent.", fix="The node sends it again.") from None
    except ValueError:  # also a damaged protobuf
        raise _no_coordinator("its answer is not one of the Fleet API") from None


def answered(call: Callable[[Asked], Answer], request: Asked) -> Answer:
    """As ``translated``; an answer that is too large is NET-545 as well."""
    try:
        return translated(call, request)
    except UnusableError:
        raise _no_coordinator("its answer is too large") from None


def _unreachable(error: httpx.TransportError) -> FedethosError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            reason = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else "no common protocol"
            return FedethosError(
                "NET-542",
                f"The coordinator's certificate was not accepted: {reason}.",
                where="coordinator.ca",
                why="Without it nobody can tell who answers. Nothing was sent.",
                fix="Ask the coordinator for the authority's certificate, or to renew the server's. Check this machine's date.",
            )
        cause = cause.__cause__ or cause.__context__
    return FedethosError(
        "NET-541",
        f"The coordinator cannot be reached ({type(error).__name__}).",
        where="coordinator.address",
        fix="The node keeps trying. Check name, port and firewall with: fedethos client doctor",
    )


def _refusal(response: httpx.Response) -> Exception:
    flower = FlowerError.from_json(response.text)
    if flower is not None and flower.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
        return RunEndedError()
    if flower is not None and flower.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return FedethosError(
            "NET-543",
            "The coordinator does not let this node in.",
            why="Its key is not registered there, or was revoked; or a node with the same key was killed less than 20 seconds ago.",
            fix="The node keeps trying. Send the coordinator the public key: fedethos client init printed where it is.",
        )
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return _unauthorized(response)
    if response.status_code in _UNAVAILABLE:
        return FedethosError("NET-541", f"The coordinator is not available (HTTP {response.status_code}).", fix="The node keeps trying.")
    return _no_coordinator(f"HTTP {response.status_code}")


def _unauthorized(response: httpx.Response) -> FedethosError:
    skew = _clock_skew(response)
    if abs(skew) > _LARGEST_SKEW:
        return FedethosError(
            "NET-544",
            f"This machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the coordinator's.",
            why="Signatures carry the time, and are refused when it is far off.",
            fix="Synchronise the clock (NTP). The node keeps trying.",
        )
    return FedethosError(
        "NET-543",
        "The coordinator does not accept this node's signature.",
        fix="Check that the key is the registered one. The node keeps trying.",
    )


def _clock_skew(response: httpx.Response) -> float:
    """Seconds that this machine is ahead of the server, by its Date header; 0 without one."""
    try:
        return time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return 0.0


def _no_coordinator(how: str) -> FedethosError:
    return FedethosError(
        "NET-545", f"What answers at the address is not a coordinator: {how}.", where="coordinator.address", fix="Check address and port."
    )
