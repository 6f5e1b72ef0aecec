"""How sites are asked: lost on the way, reconnected, never set up, at other hours, of another version, refused and told so."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

import fedethos
from fedethos.errors import FedethosError
from fedethos.flower import identify_process, with_message_id
from fedethos.job import Job
from fedethos.messages import (
    SETUP,
    TRAIN,
    Basis,
    ErrorReply,
    Reply,
    Request,
    SetupReply,
    TrainReply,
    decode_request,
    encode_reply,
    encode_request,
)
from fedethos.server import exchange
from fedethos.server.exchange import Exchange
from fedethos.server.roster import Roster
from fedethos.server.site import Site
from fedethos.server.standing import Standings

BASE = "b" * 64
SITES = {node: Site(f"site-{node}", node, 1 / 3, 1000) for node in (1, 2, 3)}
SET_UP = SetupReply(fedethos.__version__, BASE)
UPDATE = TrainReply({"w": np.ones(2, dtype=np.float32)}, Basis.CHARGED, "record", "add-remove", 1.0, 1e-5, 20)

Behaviour = Callable[[str, Request], Reply | None]
"""A site's answer; None: the message is lost with the node."""


class Nodes(Grid):
    """Sites with a connection that can be lost and come back. ``asked``: (node, message type, request) of everything that was sent."""

    def __init__(self, behave: dict[int, Behaviour]) -> None:
        identify_process(run_id=1)
        self.behave, self.asked = behave, list[tuple[int, str, Request]]()
        self.connected = dict.fromkeys(behave, "first")
        self.pushed: dict[str, Message] = {}
        self.silent: set[int] = set()
        self._ids = (f"message-{number}" for number in itertools.count())
        self.on_pull: Callable[[], None] = lambda: None

    def get_node_ids(self) -> Iterable[int]:
        return list(self.connected)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, last_activated_at=since) for node, since in self.connected.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            node = message.metadata.dst_node_id
            ids.append(next(self._ids))
            self.pushed[ids[-1]] = with_message_id(message, ids[-1])
            if node in self.connected:
                self.asked.append((node, message.metadata.message_type, decode_request(message)))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.on_pull()
        replies = []
        for message_id in message_ids:
            message = self.pushed[message_id]
            node = message.metadata.dst_node_id
            if node in self.silent:
                continue
            reply = self.behave[node](message.metadata.message_type, decode_request(message)) if node in self.connected else None
            if reply is None:
                replies.append(Message(Error(code=3, reason="node unavailable"), reply_to=message))
            else:
                replies.append(Message(encode_reply(reply), reply_to=message))
        return replies

    def attempts(self, node: int) -> list[tuple[str, int]]:
        return [(message_type, request.attempt) for asked, message_type, request in self.asked if asked == node]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError


def good(message_type: str, request: Request) -> Reply | None:
    return SET_UP if message_type == SETUP else UPDATE


def in_turn(*replies: Reply | None) -> Behaviour:
    """A site that is set up, and then answers with ``replies`` one after the other."""
    left = list(replies)
    return lambda message_type, request: SET_UP if message_type == SETUP else left.pop(0)


def roster(
    nodes: Nodes, *, deadline: float = 5.0, min_sites: int = 2, quarantine_after: int | None = None, said: list[str] | None = None
) -> Roster:
    job = Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "roster",
            "model": {"path": "asset:minilm"},
            "data": {"path": "builtin:adult", "text": "{age}", "label": {"column": "y", "values": ["a", "b"], "favorable": "b"}},
            "federation": {"rounds": 2, "min_sites": min_sites, "deadline": deadline},
        }
    )
    heard = said if said is not None else []
    frozen = {"a": np.zeros(1, dtype=np.float32)}
    return Roster(nodes, job, "roster-0000abcd", SITES, BASE, frozen, Standings({}, quarantine_after), heard.append)


def refuse(site: Site, reply: Reply) -> Reply:
    raise FedethosError("AGG-703", "An update has values that are not finite.")


def accept(site: Site, reply: Reply) -> Reply:
    return reply


def train(run: Roster, check: Callable[[Site, Reply], Reply] = accept) -> Exchange:
    content = encode_request(TRAIN, run.request(1, {"w": np.zeros(2, dtype=np.float32)}))
    messages = [Message(RecordDict(dict(content.items())), node, TRAIN, group_id="1") for node in run.active()]
    return run.ask(messages, check, doing="round 1")


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(exchange, "_LATER_SECONDS", 0.05)


def test_everybody_is_set_up_once_and_then_asked() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes)
    run.set_up_everybody()
    assert list(train(run).replies) == list(train(run).replies) == ["site-1", "site-2", "site-3"]
    assert nodes.attempts(1) == [(SETUP, 0), (TRAIN, 0), (TRAIN, 0)]
    assert nodes.asked[0][2].fedethos == fedethos.__version__
    assert nodes.asked[0][2].run == "roster-0000abcd"


def test_a_site_that_is_lost_is_asked_again_once_it_is_back() -> None:
    nodes = Nodes({1: good, 2: good, 3: in_turn(None, UPDATE)})
    run = roster(nodes)
    run.set_up_everybody()
    outcome = train(run)
    assert list(outcome.replies) == ["site-1", "site-2", "site-3"]
    assert (outcome.late, outcome.refusals) == ([], [])
    assert nodes.attempts(3) == [(SETUP, 0), (TRAIN, 0), (TRAIN, 1)]


def test_a_site_that_stays_away_is_late_and_named_lost() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes, deadline=0.3)
    run.set_up_everybody()
    del nodes.connected[3]
    outcome = train(run)
    assert outcome.late == ["site-3"]
    assert [(refusal.site, refusal.code) for refusal in outcome.refusals] == [("site-3", "NET-540")]
    assert outcome.states(SITES.values()) == {"site-1": "sent", "site-2": "sent", "site-3": "late"}
    assert nodes.attempts(3) == [(SETUP, 0)]


def test_a_site_that_connects_anew_gets_its_message_again() -> None:
    """A node that is killed with a message in its hands and restarted at once is never reported as gone."""
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes)
    run.set_up_everybody()
    nodes.silent = {3}

    def restart() -> None:
        if nodes.attempts(3)[-1] == (TRAIN, 0):
            nodes.connected[3] = "second"
        else:
            nodes.silent = set()

    nodes.on_pull = restart
    outcome = train(run)
    assert list(outcome.replies) == ["site-1", "site-2", "site-3"]
    assert nodes.attempts(3) == [(SETUP, 0), (TRAIN, 0), (TRAIN, 1)]


def test_a_connection_that_holds_is_left_alone() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes, deadline=0.3)
    run.set_up_everybody()
    nodes.silent = {3}
    assert train(run).late == ["site-3"]
    assert nodes.attempts(3) == [(SETUP, 0), (TRAIN, 0)]


def test_who_was_late_for_the_setup_is_set_up_before_its_first_round() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    del nodes.connected[3]
    run = roster(nodes, deadline=0.2)
    run.set_up_everybody()
    nodes.connected[3] = "first"
    assert list(train(run).replies) == ["site-1", "site-2", "site-3"]
    assert nodes.attempts(3) == [(SETUP, 0), (TRAIN, 1)]


def test_a_site_that_has_lost_its_setup_gets_it_again_within_the_round() -> None:
    nodes = Nodes({1: good, 2: good, 3: in_turn(ErrorReply("NODE-540", "ab"), UPDATE)})
    run = roster(nodes)
    run.set_up_everybody()
    outcome = train(run)
    assert list(outcome.replies) == ["site-1", "site-2", "site-3"]
    assert nodes.attempts(3) == [(SETUP, 0), (TRAIN, 0), (SETUP, 0), (TRAIN, 1)]


def test_a_site_that_never_takes_its_setup_does_not_hold_the_round_up() -> None:
    nodes = Nodes({1: good, 2: good, 3: lambda kind, _: SET_UP if kind == SETUP else ErrorReply("NODE-540", "ab")})
    run = roster(nodes)
    run.set_up_everybody()
    outcome = train(run)
    assert [(refusal.site, refusal.code) for refusal in outcome.refusals] == [("site-3", "NODE-540")]


def test_a_site_with_other_hours_is_asked_later_and_not_blamed() -> None:
    nodes = Nodes({1: good, 2: good, 3: in_turn(ErrorReply("NODE-530", "ab"), ErrorReply("NODE-530", "cd"), UPDATE)})
    run = roster(nodes, quarantine_after=1)
    run.set_up_everybody()
    assert list(train(run).replies) == ["site-1", "site-2", "site-3"]
    assert nodes.attempts(3) == [(SETUP, 0), (TRAIN, 0), (TRAIN, 1), (TRAIN, 2)]
    assert not run.standings.is_quarantined("site-3")


def test_a_refused_site_is_told_with_its_next_request_and_only_then() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes)
    run.set_up_everybody()
    train(run, lambda site, reply: refuse(site, reply) if site.name == "site-3" else reply)
    train(run)
    train(run)
    assert [request.refused for node, _, request in nodes.asked if node == 3] == [None, None, "AGG-703", None]
    assert [request.refused for node, _, request in nodes.asked if node == 1] == [None] * 4


def test_a_site_that_is_refused_again_and_again_is_quarantined() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes, quarantine_after=2)
    run.set_up_everybody()
    for _ in range(3):
        train(run, lambda site, reply: refuse(site, reply) if site.name == "site-3" else reply)
    assert [len([node for node, kind, _ in nodes.asked if node == one and kind == TRAIN]) for one in SITES] == [3, 3, 2]
    assert [site.name for site in run.active().values()] == ["site-1", "site-2"]
    last = [request for node, kind, request in nodes.asked if node == 3 and kind == SETUP][-1]
    assert last.quarantined and last.refused == "AGG-703" and nodes.asked.count((3, SETUP, last)) == 1  # it is told once, with the reason
    assert not any(request.quarantined for _, _, request in nodes.asked if request is not last)
    restarted = Standings(run.standings.known, 2)
    assert restarted.quarantined == {"site-3": "AGG-703"}
    assert restarted.is_quarantined("site-3")
    assert not restarted.is_quarantined("site-1")


def test_refusals_add_up_over_good_replies_in_between() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes, quarantine_after=2)
    run.set_up_everybody()
    for bad in (True, False, True):
        train(run, lambda site, reply, bad=bad: refuse(site, reply) if bad and site.name == "site-3" else reply)  # type: ignore[misc]
    assert run.standings.is_quarantined("site-3")


def test_with_too_few_sites_left_the_run_says_so() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes, quarantine_after=1)
    run.set_up_everybody()
    with pytest.raises(FedethosError, match="AGG-710"):
        train(run, lambda site, reply: reply if site.name == "site-1" else refuse(site, reply))
    with pytest.raises(FedethosError, match="AGG-713") as failure:
        run.active()
    assert "site-2, site-3" in str(failure.value)


def test_a_sites_own_errors_do_not_count() -> None:
    nodes = Nodes({1: good, 2: good, 3: lambda kind, _: SET_UP if kind == SETUP else ErrorReply("NODE-500", "ab")})
    run = roster(nodes, quarantine_after=1)
    run.set_up_everybody()
    assert [refusal.code for refusal in train(run).refusals] == ["NODE-500"]
    assert len(run.active()) == 3


def test_another_version_is_refused_with_both_named_until_it_is_installed() -> None:
    said: list[str] = []
    version = "9.9.9"

    def upgraded(kind: str, _: Request) -> Reply | None:
        return SetupReply(version, BASE) if kind == SETUP else UPDATE

    nodes = Nodes({1: good, 2: good, 3: upgraded})
    run = roster(nodes, quarantine_after=1, said=said)
    run.set_up_everybody()
    assert len(said) == 1
    assert "AGG-714" in said[0] and "9.9.9" in said[0] and fedethos.__version__ in said[0] and "site-3" in said[0]
    assert [refusal.code for refusal in train(run).refusals] == ["AGG-714"]
    assert [kind for node, kind, _ in nodes.asked if node == 3] == [SETUP, SETUP]
    assert nodes.asked[-1][2].refused == "AGG-714"
    version = fedethos.__version__
    assert list(train(run).replies) == ["site-1", "site-2", "site-3"]


def test_a_setup_answered_with_something_else_is_refused() -> None:
    nodes = Nodes({1: good, 2: good, 3: lambda *_: ErrorReply("SEC-610", "ab")})
    run = roster(nodes)
    run.set_up_everybody()
    assert [refusal.code for refusal in train(run).refusals] == ["SEC-610"]


def test_a_message_that_the_grid_does_not_take_is_sent_again() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes)
    run.set_up_everybody()
    refused = [True]
    push = nodes.push_messages

    def once(messages: Iterable[Message]) -> Iterable[str]:
        return [] if refused and refused.pop() else push(messages)

    nodes.push_messages = once  # type: ignore[method-assign]
    assert list(train(run).replies) == ["site-1", "site-2", "site-3"]
    assert nodes.attempts(1) == [(SETUP, 0), (TRAIN, 1)]


def test_a_continued_run_starts_with_its_attempt() -> None:
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes)
    run.attempt = 2
    run.set_up_everybody()
    train(run)
    assert nodes.attempts(1) == [(SETUP, 2), (TRAIN, 2)]


def test_replies_are_pulled_so_many_at_a_time_that_they_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_BYTES_AT_ONCE", 1)
    nodes = Nodes(dict.fromkeys(SITES, good))
    run = roster(nodes)
    pull, sizes = nodes.pull_messages, []

    def noted(ids: Iterable[str]) -> Iterable[Message]:
        sizes.append(len(list(ids)))
        return pull(ids)

    nodes.pull_messages = noted  # type: ignore[method-assign]
    run.set_up_everybody()
    assert set(sizes) == {1}
