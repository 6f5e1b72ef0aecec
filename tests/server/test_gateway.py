"""The gateway lets registered keys reach nine fleet routes within limits, and holds a question for work until there may be an answer."""

from __future__ import annotations

import asyncio

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest

from fedethos.flower_superlink import FLEET_PATHS, KEY_HEADER, PULL_MESSAGES, PUSH_MESSAGES, key_header
from fedethos.server.gateway import Gateway, Limits, loopback_face
from fedethos.server.mailbox import Mailbox

KEY, STRANGER = b"the key of north", b"another key"
PULL = PullMessagesRequest(node=Node(node_id=7)).SerializeToString()


class Behind:
    """In Flower's place: remembers what reached it. ``answer`` is its body."""

    def __init__(self, answer: bytes = b"work"):
        self.reached: list[tuple[str, int]] = []
        self.answer = answer

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        self.reached.append((scope["path"], len(body)))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.answer})


class Client:
    """Asks an ASGI application without a network."""

    def __init__(self, app):
        self.app = app
        self.gone = asyncio.Event()

    async def ask(self, path, parts=(b"",), *, method="POST", key=KEY, query=b"", pause=0.0):
        waiting, sent = list(parts), []

        async def receive():
            if not waiting:
                await self.gone.wait()
                return {"type": "http.disconnect"}
            await asyncio.sleep(pause)
            part = waiting.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}

        async def send(event):
            sent.append(event)

        headers = [] if key is None else [(KEY_HEADER, key_header(key))]
        await self.app({"type": "http", "method": method, "path": path, "query_string": query, "headers": headers}, receive, send)
        if not sent:
            return None, b""
        return sent[0]["status"], b"".join(event.get("body", b"") for event in sent[1:])


def gateway(behind, *, limits=None, hold=5.0, refused=None):
    mailbox = Mailbox(hold)
    tell = (lambda site, code: None) if refused is None else lambda site, code: refused.append((site, code))
    return Gateway(behind, mailbox, lambda: {KEY: "north"}, tell, limits or Limits()), mailbox


def ask(behind, path, *parts, limits=None, refused=None, **how):
    app, _ = gateway(behind, limits=limits, refused=refused)
    return asyncio.run(Client(app).ask(path, parts or (b"",), **how))


@pytest.mark.parametrize("path", sorted(FLEET_PATHS - {PUSH_MESSAGES}))
def test_a_registered_key_reaches_each_route_of_a_node(path):
    behind = Behind()
    assert ask(behind, path, b"x")[0] == 200 and behind.reached == [(path, 1)]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/runtime/acquire-task",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/../control/start-run",
        "//v1/fleet/pull-messages",
        "/V1/fleet/pull-messages",
        "/docs",
        "/openapi.json",
        "/",
        "",
    ],
)
def test_everything_else_is_404_and_never_reaches_flower(path):
    behind, refused = Behind(), []
    assert ask(behind, path, refused=refused) == (404, b'{"detail":"NET-530"}')
    assert behind.reached == [] and refused == [("", "NET-530")]


@pytest.mark.parametrize("how", [{"method": "GET"}, {"method": "PUT"}, {"query": b"a=1"}])
def test_other_methods_and_queries_are_404(how):
    behind = Behind()
    assert ask(behind, PULL_MESSAGES, **how)[0] == 404 and behind.reached == []


@pytest.mark.parametrize("key", [None, STRANGER, b""])
def test_who_is_not_in_trust_is_refused_before_the_body_is_read(key):
    behind = Behind()

    async def scenario():
        app, _ = gateway(behind)
        client = Client(app)
        return await asyncio.wait_for(client.ask(PULL_MESSAGES, [], key=key), 1.0)  # its body never comes

    assert asyncio.run(scenario()) == (401, b'{"detail":"NET-531"}') and behind.reached == []


def test_health_is_open():
    assert ask(Behind(), "/health", method="GET", key=None)[0] == 200


def test_a_body_at_the_limit_passes_and_one_byte_more_does_not():
    limits = Limits(body_bytes=10)
    assert ask(Behind(), "/v1/fleet/push-object", b"12345", b"67890", limits=limits)[0] == 200
    behind = Behind()
    assert ask(behind, "/v1/fleet/push-object", b"12345", b"678901", limits=limits)[0] == 413 and behind.reached == []


def test_a_body_that_drips_is_cut_off():
    behind = Behind()
    parts = [b"x"] * 50
    assert ask(behind, "/v1/fleet/push-object", *parts, pause=0.02, limits=Limits(body_seconds=0.1))[0] == 408
    assert behind.reached == []


def test_one_key_has_a_limit_of_requests_at_the_same_time():
    async def scenario():
        app, mailbox = gateway(Behind(), limits=Limits(in_flight=2), hold=1.0)
        mailbox.found_empty(7, mailbox.seen(7))
        client = Client(app)
        held = [asyncio.create_task(client.ask(PULL_MESSAGES, [PULL])) for _ in range(2)]
        await asyncio.sleep(0.05)
        third = await client.ask("/v1/fleet/send-node-heartbeat")
        mailbox.announced([7])
        await asyncio.gather(*held)
        return third, await client.ask("/v1/fleet/send-node-heartbeat")

    third, later = asyncio.run(scenario())
    assert third[0] == 503 and later[0] == 200


def _push(node_id, sender):
    message = Message(metadata=Metadata(src_node_id=sender))
    return PushMessagesRequest(node=Node(node_id=node_id), messages_list=[message]).SerializeToString()


def test_a_node_cannot_reply_in_another_nodes_name():
    behind = Behind()
    assert ask(behind, PUSH_MESSAGES, _push(7, 7))[0] == 200
    for body in (_push(7, 8), b"\xff\xff", PushMessagesRequest(node=Node(node_id=7)).SerializeToString()):
        assert ask(behind, PUSH_MESSAGES, body)[0] == 403
    assert len(behind.reached) == 1


def test_a_question_is_held_until_the_server_app_sends_something_and_then_answered_at_once():
    async def scenario():
        behind = Behind(b"")
        app, mailbox = gateway(behind, hold=30.0)
        loopback = loopback_face(behind, mailbox)
        client = Client(app)
        await client.ask(PULL_MESSAGES, [PULL])  # finds nothing, as Flower answers an empty body
        question = asyncio.create_task(client.ask(PULL_MESSAGES, [PULL]))
        await asyncio.sleep(0.2)
        held = len(behind.reached)
        message = Message(metadata=Metadata(dst_node_id=7))
        sent = PushAppMessagesRequest(messages_list=[message]).SerializeToString()
        await Client(loopback).ask("/v1/runtime/push-messages", [sent])
        behind.answer = b"work"
        return held, await asyncio.wait_for(question, 5.0)

    assert asyncio.run(scenario()) == (1, (200, b"work"))


def test_a_message_for_another_node_does_not_wake_it_and_the_hold_ends_by_itself():
    async def scenario():
        behind = Behind(b"")
        app, mailbox = gateway(behind, hold=0.3)
        client = Client(app)
        await client.ask(PULL_MESSAGES, [PULL])
        question = asyncio.create_task(client.ask(PULL_MESSAGES, [PULL]))
        await asyncio.sleep(0)
        mailbox.announced([8])
        await asyncio.sleep(0.15)
        held = len(behind.reached)
        await question
        return held, len(behind.reached)

    assert asyncio.run(scenario()) == (1, 2)


def test_a_message_is_not_taken_out_for_a_node_that_went_away():
    async def scenario():
        behind = Behind(b"")
        app, mailbox = gateway(behind, hold=30.0)
        client = Client(app)
        await client.ask(PULL_MESSAGES, [PULL])
        question = asyncio.create_task(client.ask(PULL_MESSAGES, [PULL]))
        await asyncio.sleep(0.05)
        client.gone.set()
        answer = await asyncio.wait_for(question, 5.0)
        mailbox.announced([7])
        await asyncio.sleep(0.1)
        return answer, len(behind.reached)

    assert asyncio.run(scenario()) == ((None, b""), 1)


def test_what_was_announced_while_flower_looked_is_not_forgotten():
    mailbox = Mailbox(30.0)

    async def scenario():
        seen = mailbox.seen(7)
        mailbox.announced([7])
        await asyncio.sleep(0.1)  # delivered before the empty answer is known
        mailbox.found_empty(7, seen)
        await asyncio.wait_for(mailbox.may_have_mail(7), 1.0)

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/fleet/register-node", "/docs", "/openapi.json"])
def test_the_loopback_side_has_no_fleet_routes(path):
    behind = Behind()
    assert asyncio.run(Client(loopback_face(behind, Mailbox())).ask(path))[0] == 404 and behind.reached == []
