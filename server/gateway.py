"""The public face of the SuperLink: an ASGI filter that lets registered nodes reach the fleet routes, and nobody anything else.

TLS with node keys does not protect Flower's port by itself: whoever has the CA certificate could start runs or register a key.
So the SuperLink has two listeners in one process (``server/superlink_process.py``): the whole API without the fleet routes on
loopback, and this filter behind TLS. Everything that is not exactly a fleet route is 404 and never reaches Flower.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from fedethos.flower_superlink import (
    APP_PUSH_MESSAGES,
    APP_PUSH_OBJECT,
    FLEET_PATHS,
    KEY_HEADER,
    PULL_MESSAGES,
    PUSH_MESSAGES,
    ASGIApp,
    Receive,
    Scope,
    Send,
    addressed_nodes,
    asking_node,
    key_of_header,
    replies_only_for_itself,
)
from fedethos.server.mailbox import Mailbox

MOST_BYTES = 8 << 20  # Flower cuts arrays into objects of 5 MiB, each pushed in a request of its own
BODY_SECONDS = 60.0
_MOST_APP_BYTES = 1 << 30  # of the coordinator's own ServerApp
_JSON = [(b"content-type", b"application/json")]


@dataclass(frozen=True)
class Limits:
    """Of one request: bytes and seconds of its body. ``in_flight``: requests of one key at the same time."""

    body_bytes: int = MOST_BYTES
    body_seconds: float = BODY_SECONDS
    in_flight: int = 6


@dataclass
class Gateway:
    """``keys``: the public keys (PEM) that are answered now, to the site's name. ``refused`` is told (site or "", code)."""

    app: ASGIApp
    mailbox: Mailbox
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
        if scope["path"] == PUSH_MESSAGES and not replies_only_for_itself(body):
            await self._refuse(send, 403, site, "NET-535")
            return
        if scope["path"] == PULL_MESSAGES and (node_id := asking_node(body)) is not None:
            await self._pull(scope, body, receive, send, node_id)
        else:
            await self.app(scope, _again(body, receive), send)

    async def _pull(self, scope: Scope, body: bytes, receive: Receive, send: Send, node_id: int) -> None:
        """Ask Flower when there may be something, and not at all for a node that went away: its message would be lost."""
        mail, gone = (asyncio.ensure_future(one) for one in (self.mailbox.may_have_mail(node_id), receive()))
        try:
            await asyncio.wait({mail, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                return
        finally:
            mail.cancel()
            gone.cancel()
        size, status, seen = 0, 0, self.mailbox.seen(node_id)

        async def counted(event: MutableMapping[str, Any]) -> None:
            nonlocal size, status
            status = event.get("status", status)
            size += len(event.get("body", b""))
            await send(event)

        await self.app(scope, _again(body, receive), counted)
        if status == 200 and size == 0:
            self.mailbox.found_empty(node_id, seen)

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


def _again(body: bytes, receive: Receive) -> Receive:
    """A request whose body was read already."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def once() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return once


def loopback_face(app: ASGIApp, mailbox: Mailbox) -> ASGIApp:
    """Control and Runtime API, which ask for a secret or a token, and tell ``mailbox`` what comes. Nodes have to use the gateway."""

    async def face(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(("/v1/control/", "/v1/runtime/", "/health")):
            await send({"type": "http.response.start", "status": 404, "headers": _JSON})
            await send({"type": "http.response.body", "body": b"{}"})
        elif scope["type"] == "http" and scope["path"] == APP_PUSH_MESSAGES:
            body = await _body(receive, _MOST_APP_BYTES)
            await app(scope, _again(body, receive), send)
            mailbox.announced(addressed_nodes(body))
        else:
            await app(scope, receive, send)
            if scope["type"] == "http" and scope["path"] == APP_PUSH_OBJECT:
                mailbox.stirred()

    return face
