"""Can this site reach its coordinator? Name, port, certificate, answer, clock: the first that fails says where to look."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from fedethos.client.doctor import Check
from fedethos.errors import FedethosError
from fedethos.site import Coordinator

_TIMEOUT = 10.0
_MOST_SKEW = timedelta(seconds=60)
_TUNNEL = re.compile(r"Tunnel connection failed: (\d{3})\b")  # http.client, when a proxy refuses CONNECT


def check_network(folder: Path, coordinator: Coordinator) -> dict[str, Callable[[], Iterator[Check]]]:
    """``folder``: where relative paths in site.yaml start from. Only the coordinator (or the proxy) is contacted."""
    return {"network": lambda: _network(folder, coordinator)}


def _network(folder: Path, coordinator: Coordinator) -> Iterator[Check]:
    proxy = urlsplit(coordinator.proxy) if coordinator.proxy else None
    host, port = (proxy.hostname or "", proxy.port or 80) if proxy else (coordinator.host, coordinator.port)
    via = "the proxy" if proxy else "the coordinator"
    yield from _name(host, via)
    yield from _port(host, port, via)
    response = _health(folder, coordinator, host, port)
    yield Check("tls", "ok", "the coordinator's certificate is signed by your ca file and is for its name" if coordinator.ca else "off")
    yield from _answer(response)
    yield from _clock(response)


def _name(host: str, via: str) -> Iterator[Check]:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        raise FedethosError(
            "NET-550",
            f"The name of {via} cannot be found.",
            where=host,
            fix="Check the spelling in site.yaml; ask your network team about DNS.",
        ) from None
    yield Check("dns", "ok", f"{host} is known")


def _port(host: str, port: int, via: str) -> Iterator[Check]:
    try:
        socket.create_connection((host, port), timeout=_TIMEOUT).close()
    except OSError as error:
        how = (
            "refused"
            if isinstance(error, ConnectionRefusedError)
            else f"no answer in {_TIMEOUT:g} s"
            if isinstance(error, TimeoutError)
            else "failed"
        )
        raise FedethosError(
            "NET-551",
            f"Could not connect to {via} ({how}). The name is known, the port is not open to you: a firewall, or nothing runs there.",
            where=f"{host}:{port}",
            fix=f"This node needs outbound TCP to port {port} and nothing else; none of your ports is opened. Ask your network team.",
        ) from None
    yield Check("tcp", "ok", f"{host}:{port} is open")


def _health(folder: Path, coordinator: Coordinator, host: str, port: int) -> http.client.HTTPResponse:
    connection: http.client.HTTPConnection
    if coordinator.ca is None:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT)
    else:
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=_context(folder / coordinator.ca))
    if coordinator.proxy:
        connection.set_tunnel(coordinator.host, coordinator.port)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read(1024)
    except ssl.SSLCertVerificationError as error:
        raise FedethosError(
            "SEC-625",
            f"The coordinator's certificate is not accepted: {error.verify_message}.",
            where=coordinator.address,
            why="Somebody else could answer in its place.",
            fix="Compare the ca file with the coordinator by telephone. Do not use an insecure switch.",
        ) from None
    except ssl.SSLError as error:
        raise _no_answer(coordinator, f"no TLS there ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        if (answered := _TUNNEL.match(str(error))) is not None:
            raise _no_way_through(coordinator, answered[1]) from None
        raise _no_answer(coordinator, type(error).__name__) from None
    finally:
        connection.close()
    return response


def _context(ca: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError):
        raise FedethosError("SEC-624", "The ca file cannot be read.", where=ca.name, fix="Ask the coordinator for it again.") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _answer(response: http.client.HTTPResponse) -> Iterator[Check]:
    if response.status == http.client.OK:
        yield Check("answer", "ok", "the coordinator answers")
    else:
        fix = "Something else listens there, or the coordinator is not ready. Ask its operator."
        yield Check("answer", "fail", f"NET-553 the coordinator answers {response.status} to a health check", fix, "NET-553")


def _clock(response: http.client.HTTPResponse) -> Iterator[Check]:
    try:
        there = parsedate_to_datetime(response.headers["Date"])
    except (TypeError, ValueError):
        yield Check("clock", "warn", "the coordinator does not tell its time")
        return
    skew = abs(datetime.now(UTC) - there)
    if skew > _MOST_SKEW:
        fix = "Set the clock of this machine (NTP): certificates and signatures depend on it."
        yield Check("clock", "fail", f"NET-554 {skew.total_seconds():.0f} s apart from the coordinator's", fix, "NET-554")
    else:
        yield Check("clock", "ok", "agrees with the coordinator's")


def _no_way_through(coordinator: Coordinator, status: str) -> FedethosError:
    return FedethosError(
        "NET-555",
        f"The proxy does not let this node through to the coordinator (it answered {status}).",
        where=coordinator.proxy or "",
        fix=f"Ask your network team to allow CONNECT to {coordinator.address}, without a password: a node has none to give.",
    )


def _no_answer(coordinator: Coordinator, how: str) -> FedethosError:
    return FedethosError(
        "NET-552",
        f"The port is open, and nothing that is a coordinator answers ({how}).",
        where=coordinator.address,
        fix="The coordinator may be down: ask its operator. Or a proxy breaks TLS open: ask your network team to pass it through.",
    )
