"""The public face of the SuperLink: an ASGI filter that lets registered nodes reach the fleet routes, and nobody anything else.

TLS with node keys does not protect Flower's port by itself: whoever has the CA certificate could start runs or register a key.
So the SuperLink has two listeners in one process (``server/superlink_process.py``): the whole API without the fleet routes on
loopback, and this filter behind TLS. Everything that is not exactly a fleet route is 404 and never reaches Flower.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedethos.flower_superlink import FLEET_PATHS, KEY_HEADER, PUSH_MESSAGES, ASGIApp, Receive, Scope, Send, key_of_header
from fedethos.flower_superlink import replies_only_for_itself as honest

MOST_BYTES = 8 << 20  # Flower cuts arrays into objects of 5 MiB, each pushed in a request of its own
BODY_SECONDS = 60.0
_JSON = [(b"content-type", b"application/json")]


@dataclass(frozen=True)
class Limits:
    """Of one request: bytes and seconds of its body. ``in_flight``: requests of one key at the same time."""

    body_bytes: int = MOST_BYTES
    body_seconds: float = BODY_SECONDS
    in_flight: int = 8


@dataclass
class Gateway:
    """``keys``: the public keys (PEM) that are answered now, to the site's name. ``refused`` is told (site or "", code)."""

    app: ASGIApp
    keys: Callable[[], Mapping[bytes, str]]
    refused: Callable[[str, str], None]
    limits: Limits = Limits()
    _busy: dict[bytes, int] = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"]
        if path == "/health" and method in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        if method != "POST" or path not in FLEET_PATHS or scope["query_string"]:
            await self._refuse(send, 404, "", "NET-530")
            return
        headers = dict(scope["headers"])
        key = key_of_header(headers.get(KEY_HEADER, b""))
        site = self.keys().get(key or b"")
        if key is None or site is None:
            await self._refuse(send, 401, "", "NET-531")
            return
        if self._busy.get(key, 0) >= self.limits.in_flight:
            await self._refuse(send, 503, site, "NET-532")
            return
        self._busy[key] = self._busy.get(key, 0) + 1
        try:
            await self._pass(scope, receive, send, site)
        finally:
            self._busy[key] -= 1
            if not self._busy[key]:
                del self._busy[key]

    async def _pass(self, scope: Scope, receive: Receive, send: Send, site: str) -> None:
        """Read the body within its limits, look at what it says, and hand it on. Flower reads whole bodies too."""
        try:
            body = await asyncio.wait_for(_body(receive, self.limits.body_bytes), self.limits.body_seconds)
        except TimeoutError:
            await self._refuse(send, 408, site, "NET-533")
            return
        except _TooLargeError:
            await self._refuse(send, 413, site, "NET-534")
            return
        except _GoneError:
            return
        if scope["path"] == PUSH_MESSAGES and not honest(body):
            await self._refuse(send, 403, site, "NET-535")
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def once() -> dict[str, object]:
            return waiting.pop() if waiting else dict(await receive())

        await self.app(scope, once, send)

    async def _refuse(self, send: Send, status: int, site: str, code: str) -> None:
        self.refused(site, code)
        await send({"type": "http.response.start", "status": status, "headers": [*_JSON, (b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b'{"detail":"' + code.encode() + b'"}'})


class _TooLargeError(Exception):
    """The body is longer than the limit."""


class _GoneError(Exception):
    """The client went away."""


async def _body(receive: Receive, limit: int) -> bytes:
    parts, size, more = [], 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise _GoneError
        part = event.get("body", b"")
        size += len(part)
        if size > limit:
            raise _TooLargeError
        parts.append(part)
        more = event.get("more_body", False)
    return b"".join(parts)


def without_fleet(app: ASGIApp) -> ASGIApp:
    """The loopback face: Control and Runtime API, which both ask for a secret or a token. Nodes have to come by the gateway."""

    async def filtered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(("/v1/control/", "/v1/runtime/", "/health")):
            await send({"type": "http.response.start", "status": 404, "headers": _JSON})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        await app(scope, receive, send)

    return filtered
