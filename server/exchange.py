"""One exchange with a set of sites: push, pull until everybody answered or the deadline passed, refuse what is not valid.

A site that is lost on the way is asked again once it is connected, one that was never set up is set up first, one that may not train at
this hour is asked later; all of that within the one deadline. Next on the path: ``server/roster.py``, which calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedethos.errors import FedethosError
from fedethos.flower import connections, wire_bytes
from fedethos.messages import ARRAYS, CONFIG, SETUP, ErrorReply, Reply, decode_reply, repeated
from fedethos.server.site import Site

LOST = "NET-540"
NOT_SET_UP = "NODE-540"
NOT_APPROVED = "SEC-611"
OTHER_HOURS = "NODE-530"

_FIRST_POLL_SECONDS, _LAST_POLL_SECONDS = 0.02, 0.5
_LOOK_SECONDS = 2.0  # how often connections are looked at
_LATER_SECONDS = 60.0  # until a site that refused the hour, or is lost for the tenth time, is asked again
_MOST_SETUPS = 3  # in one exchange
_NAMED = 10  # sites in one sentence
_BYTES_AT_ONCE = 256 * 1024 * 1024  # of replies that are pulled together

SiteState = Literal["training", "sent", "late", "refused"]


@dataclass(frozen=True)
class Refusal:
    """A reply that was not used. ``code`` is the site's own for an error reply, ``LOST`` for no reply at all, else the coordinator's."""

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
        late = set(self.late)
        return {site.name: "sent" if site.name in self.replies else "late" if site.name in late else "refused" for site in sites}


@dataclass(frozen=True)
class Talk:
    """What an exchange needs to know about the sites beside the messages.

    Attributes
    ----------
    accept : callable (site, decoded reply) -> what to keep of it
        Raises FedethosError to refuse the reply.
    on_state, on_refusal : callable
        Told the state of each site as it changes, and every refusal with its reason.
    needs_setup, setup_of : callable
        Whether a site is to be set up before it is asked for anything, and the message that does it.
    told : callable site -> code or None
        What a repeated request says about the site's last reply.
    """

    accept: Callable[[Site, Reply], Reply]
    on_state: Callable[[str, SiteState], None]
    on_refusal: Callable[[Site, FedethosError], None]
    needs_setup: Callable[[Site], bool]
    setup_of: Callable[[Site], Message]
    told: Callable[[Site], str | None]


@dataclass(frozen=True)
class _Asked:
    """A message to a site: how often it and its setup were sent before, on which connection it went, and what follows its answer."""

    site: Site
    message: Message
    times: int = 0
    setups: int = 0
    connection: str | None = None
    then: _Asked | None = None

    @property
    def message_type(self) -> str:
        return self.message.metadata.message_type


def exchange(grid: Grid, messages: Iterable[Message], sites: Mapping[int, Site], talk: Talk, *, deadline: float) -> Exchange:
    """Send ``messages``, one to a site at most, and collect one reply per site within ``deadline`` seconds."""
    return _Conversation(grid, talk, deadline).held([_Asked(sites[message.metadata.dst_node_id], message) for message in messages])


class _Conversation:
    """The state of one exchange: which messages are under way, and who is to be asked again."""

    def __init__(self, grid: Grid, talk: Talk, deadline: float) -> None:
        self._grid, self._talk = grid, talk
        self._end = time.monotonic() + deadline
        self._outcome = Exchange()
        self._waiting: dict[str, _Asked] = {}  # by message id; two of one site when it was asked again
        self._again: dict[str, tuple[_Asked, float]] = {}  # by site, with the time before which it is left alone
        self._sizes = _Sizes()
        self._bytes_each = 1

    def held(self, asked: list[_Asked]) -> Exchange:
        self._bytes_each = max((self._sizes.of(one.message) for one in asked), default=1)
        self._push([self._first(one) for one in asked])
        for one in asked:
            self._talk.on_state(one.site.name, "training")
        for reply in self._replies():
            self._take(reply)
        self._close()
        return self._outcome

    def _first(self, one: _Asked) -> _Asked:
        if one.message_type == SETUP or not self._talk.needs_setup(one.site):
            return one
        return _Asked(one.site, self._talk.setup_of(one.site), then=one)

    def _push(self, asked: list[_Asked]) -> None:
        """What the grid does not take is tried again later, as for a site that is not there."""
        connected = connections(self._grid)
        ids = list(self._grid.push_messages([one.message for one in asked]))
        for one, message_id in zip(asked, ids or [""] * len(asked), strict=True):
            if message_id:
                self._waiting[message_id] = replace(one, connection=connected.get(one.site.node_id))
                self._outcome.bytes_down += self._sizes.of(one.message)
            else:
                self._ask_later(one)

    def _replies(self) -> Iterator[Message]:
        """Replies to what is waiting as they come. Matched by what they reply to, never by their sender."""
        pause, next_look = _FIRST_POLL_SECONDS, time.monotonic() + _LOOK_SECONDS
        while (self._waiting or self._again) and time.monotonic() < self._end:
            came = False
            for ids in self._batches():
                for reply in self._grid.pull_messages(ids):
                    if reply.metadata.reply_to_message_id in self._waiting:
                        came = True
                        yield reply
            if time.monotonic() >= next_look:
                self._ask_again()
                next_look = time.monotonic() + _LOOK_SECONDS
            if came:
                pause = _FIRST_POLL_SECONDS
            elif self._waiting or self._again:
                time.sleep(max(0.0, min(pause, self._end - time.monotonic())))
                pause = min(2 * pause, _LAST_POLL_SECONDS)

    def _batches(self) -> Iterator[list[str]]:
        """Message ids so many at a time that their replies fit into memory together."""
        ids, many = list(self._waiting), max(1, _BYTES_AT_ONCE // self._bytes_each)
        for start in range(0, len(ids), many):
            yield ids[start : start + many]

    def _take(self, reply: Message) -> None:
        one = self._waiting.pop(reply.metadata.reply_to_message_id)
        if not reply.has_content():  # Flower's own error: the node is gone
            self._ask_later(one, after=min(2.0**one.times - 1.0, _LATER_SECONDS))
            return
        self._outcome.bytes_up += _size(reply.content)
        try:
            decoded = decode_reply(one.message_type, reply.content)
            if isinstance(decoded, ErrorReply):
                self._take_error(one, decoded)
                return
            kept = self._talk.accept(one.site, decoded)
        except FedethosError as refusal:
            self._talk.on_refusal(one.site, refusal)
            self._refuse(one.site, refusal.code)
            return
        if one.then is not None:
            self._push([self._repeated(one.then)])
            return
        self._forget(one.site)
        self._outcome.replies[one.site.name] = kept
        self._talk.on_state(one.site.name, "sent")

    def _take_error(self, one: _Asked, error: ErrorReply) -> None:
        if error.code == NOT_SET_UP and one.message_type != SETUP and one.setups < _MOST_SETUPS:
            self._push([_Asked(one.site, self._talk.setup_of(one.site), then=replace(one, setups=one.setups + 1))])
        elif error.code == OTHER_HOURS:
            self._ask_later(one, after=_LATER_SECONDS)
        else:
            self._refuse(one.site, error.code, error.incident)

    def _refuse(self, site: Site, code: str, incident: str = "") -> None:
        self._forget(site)
        self._outcome.refusals.append(Refusal(site.name, code, incident))
        self._talk.on_state(site.name, "refused")

    def _ask_later(self, one: _Asked, *, after: float = 0.0) -> None:
        if all(other.site.name != one.site.name for other in self._waiting.values()):
            self._again[one.site.name] = one, time.monotonic() + after

    def _ask_again(self) -> None:
        """Sites that were lost and are connected now, and sites that connected anew since they were asked: their message may be lost."""
        connected, now = connections(self._grid), time.monotonic()
        ready = [one for one, earliest in self._again.values() if one.site.node_id in connected and now >= earliest]
        for one in self._waiting.values():
            current = connected.get(one.site.node_id)
            newest = all(other.times <= one.times for other in self._waiting.values() if other.site.name == one.site.name)
            if newest and one.connection is not None and current is not None and current != one.connection:
                ready.append(one)
        for one in ready:
            self._again.pop(one.site.name, None)
        if ready:
            self._push([self._repeated(one) for one in ready])

    def _repeated(self, one: _Asked) -> _Asked:
        """The same request with the next attempt, as a new message."""
        metadata = one.message.metadata
        content = repeated(one.message.content, 1, self._talk.told(one.site))
        message = Message(content, metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id)
        return replace(one, message=message, times=one.times + 1, connection=None)

    def _forget(self, site: Site) -> None:
        """The site has answered: nothing else of it is waited for."""
        self._waiting = {message_id: one for message_id, one in self._waiting.items() if one.site.name != site.name}
        self._again.pop(site.name, None)

    def _close(self) -> None:
        left = {one.site.name for one in self._waiting.values()}
        self._outcome.refusals += [Refusal(name, LOST) for name in sorted(set(self._again) - left)]
        for name in sorted(left | set(self._again)):
            self._outcome.late.append(name)
            self._talk.on_state(name, "late")
        self._outcome.replies = dict(sorted(self._outcome.replies.items()))


class _Sizes:
    """Bytes of requests on the wire. All of a round share their tensors, which are measured once."""

    def __init__(self) -> None:
        self._tensors: ArrayRecord | None = None
        self._beside_config = 0

    def of(self, message: Message) -> int:
        tensors = message.content.array_records[ARRAYS]
        config = len(message.content.config_records[CONFIG].deflate())
        if tensors is not self._tensors:
            self._tensors, self._beside_config = tensors, _size(message.content) - config
        return self._beside_config + config


def _size(content: RecordDict) -> int:
    return sum(map(len, wire_bytes(content).values()))


def require_quorum(outcome: Exchange, min_sites: int, *, doing: str) -> None:
    """Raise AGG-710 when fewer than ``min_sites`` valid replies came."""
    if len(outcome.replies) >= min_sites:
        return
    answered = [one for one in outcome.refusals if one.code != LOST]
    refused = [
        f"{one.site} with {one.code}{f' (incident {one.incident})' if one.incident else ''}"
        for one in sorted(answered, key=lambda one: one.site)
    ]
    parts = [f"Late: {_some(outcome.late)}."] if outcome.late else []
    parts += [f"Refused: {_some(refused)}."] if refused else []
    unasked = {one.code for one in outcome.refusals} == {NOT_APPROVED}
    raise FedethosError(
        "AGG-710",
        f"Only {len(outcome.replies)} valid replies came, and federation.min_sites is {min_sites}.",
        where=doing,
        why=" ".join(parts),
        fix="These sites have not approved the job yet: fedethos client approve JOB at each. The round is repeated by itself."
        if unasked
        else "Look up the codes in docs/errors.md and incidents in the site's own log, or wait for the late sites and resume the run.",
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
