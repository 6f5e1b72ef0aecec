"""One exchange with a set of sites: push, pull until everybody answered or the deadline passed, refuse what is not valid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import Message
from flwr.serverapp import Grid

from fedethos.errors import FedethosError
from fedethos.flower import wire_bytes
from fedethos.messages import ErrorReply, Reply, decode_reply
from fedethos.server.site import Site

_POLL_SECONDS = 0.2

SiteState = Literal["training", "sent", "late", "refused"]


@dataclass(frozen=True)
class Refusal:
    """A reply that was not used. ``code`` is the site's own for an error reply, else ours."""

    site: str
    code: str
    incident: str = ""


@dataclass
class Exchange:
    """Replies by site name, in the order of the names; who was late; who was refused; bytes on the wire."""

    replies: dict[str, Reply] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0

    def states(self, sites: Iterable[Site]) -> dict[str, SiteState]:
        refused = {refusal.site for refusal in self.refusals}
        return {site.name: "sent" if site.name in self.replies else "refused" if site.name in refused else "late" for site in sites}


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    sites: Mapping[int, Site],
    *,
    deadline: float,
    validate: Callable[[Site, Reply], None],
    on_state: Callable[[str, SiteState], None],
) -> Exchange:
    """Send ``messages`` and collect one reply per site within ``deadline`` seconds.

    Parameters
    ----------
    validate : callable
        Raises FedethosError to refuse a decoded reply.
    on_state : callable
        Told the state of each site as it changes.
    """
    messages = list(messages)
    outcome = Exchange(bytes_down=sum(_size(message) for message in messages))
    asked = dict(zip(grid.push_messages(messages), messages, strict=True))
    waiting = {message_id: sites[message.metadata.dst_node_id] for message_id, message in asked.items()}
    for site in waiting.values():
        on_state(site.name, "training")
    for reply in _until(grid, waiting, deadline):
        site = waiting.pop(reply.metadata.reply_to_message_id)
        message_type = asked[reply.metadata.reply_to_message_id].metadata.message_type
        outcome.bytes_up += _size(reply)
        try:
            decoded = _decode(reply, message_type)
            validate(site, decoded)
        except FedethosError as refusal:
            outcome.refusals.append(Refusal(site.name, refusal.code))
        else:
            if isinstance(decoded, ErrorReply):
                outcome.refusals.append(Refusal(site.name, decoded.code, decoded.incident))
            else:
                outcome.replies[site.name] = decoded
        on_state(site.name, "sent" if site.name in outcome.replies else "refused")
    for site in waiting.values():
        outcome.late.append(site.name)
        on_state(site.name, "late")
    outcome.replies = dict(sorted(outcome.replies.items()))
    return outcome


def _until(grid: Grid, waiting: Mapping[str, Site], deadline: float) -> Iterator[Message]:
    """Replies to ``waiting`` (which the caller shrinks) as they come. Matched by what they reply to, never by their sender."""
    end = time.monotonic() + deadline
    while waiting and time.monotonic() < end:
        replies = [reply for reply in grid.pull_messages(list(waiting)) if reply.metadata.reply_to_message_id in waiting]
        yield from replies
        if not replies:
            time.sleep(_POLL_SECONDS)


def _decode(reply: Message, message_type: str) -> Reply:
    if not reply.has_content():
        return ErrorReply(code="NET-540", incident="")  # Flower's own error: the node is gone
    return decode_reply(message_type, reply.content)


def _size(message: Message) -> int:
    return sum(map(len, wire_bytes(message.content).values())) if message.has_content() else 0


def require_quorum(outcome: Exchange, min_sites: int, *, doing: str) -> None:
    """Raise AGG-710 when fewer than ``min_sites`` valid replies came."""
    if len(outcome.replies) >= min_sites:
        return
    codes = sorted({refusal.code for refusal in outcome.refusals})
    incidents = [f"{refusal.site}: {refusal.code} (incident {refusal.incident})" for refusal in outcome.refusals if refusal.incident]
    raise FedethosError(
        "AGG-710",
        f"Only {len(outcome.replies)} valid replies came, and federation.min_sites is {min_sites}.",
        where=doing,
        why=f"Late: {len(outcome.late)} sites. Refused: {len(outcome.refusals)} ({', '.join(codes) or 'none'}). " + " ".join(incidents),
        fix="Look up the incident in the site's own log, or wait for the late sites and resume the run.",
    )
