"""When is there something for a node? The gateway holds a node's question for work until there may be an answer.

Both listeners of the SuperLink are in one process, so the moment at which a ServerApp hands over a message is known: idle nodes then
ask a few times a minute and still get their message at once. A question is passed on to Flower after ``HOLD_SECONDS`` at the latest,
so nothing depends on what is remembered here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

HOLD_SECONDS = 20.0
_SETTLED_SECONDS = 0.05  # since the last object of a message came; a node that asks before all are there waits much longer


class Mailbox:
    """For one event loop. A node that was never seen empty may have mail."""

    def __init__(self, hold_seconds: float = HOLD_SECONDS) -> None:
        self._hold_seconds = hold_seconds
        self._empty: set[int] = set()
        self._coming: set[int] = set()
        self._announcements: Counter[int] = Counter()
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        self._settled: asyncio.TimerHandle | None = None

    def announced(self, node_ids: Iterable[int]) -> None:
        """A ServerApp has messages for these nodes; their objects follow."""
        for node_id in node_ids:
            self._coming.add(node_id)
            self._announcements[node_id] += 1
        self.stirred()

    def stirred(self) -> None:
        """Another object came."""
        if not self._coming:
            return
        if self._settled is not None:
            self._settled.cancel()
        self._settled = asyncio.get_running_loop().call_later(_SETTLED_SECONDS, self._deliver)

    def seen(self, node_id: int) -> int:
        """How much was announced so far; to be taken before Flower is asked, and given to ``found_empty``."""
        return self._announcements[node_id]

    def found_empty(self, node_id: int, seen: int) -> None:
        """Flower had nothing for this node when it asked, and nothing was announced in between."""
        if node_id not in self._coming and self._announcements[node_id] == seen:
            self._empty.add(node_id)

    async def may_have_mail(self, node_id: int) -> None:
        """Return at once when there may be something for the node, else when something comes, else after the hold."""
        if node_id not in self._empty:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(node_id, [])
        waiting.append(future)
        try:
            await asyncio.wait_for(future, self._hold_seconds)
        except TimeoutError:
            return
        finally:
            waiting.remove(future)
            if not waiting:
                self._waiting.pop(node_id, None)

    def _deliver(self) -> None:
        self._settled = None
        self._empty -= self._coming
        for node_id in self._coming:
            for future in self._waiting.get(node_id, ()):
                if not future.done():
                    future.set_result(None)
        self._coming.clear()
