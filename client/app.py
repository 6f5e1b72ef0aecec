"""The ClientApp: Flower's Message API around a ``Node``, and the guard that lets no exception text out.

Next on the path: ``client/error_guard.py`` (which code leaves), ``client/node.py`` (what is answered), ``client/trainer.py`` (how).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedethos.client.error_guard import error_reply
from fedethos.errors import FedethosError
from fedethos.logs import INCIDENTS
from fedethos.messages import EvaluateReply, Reply, Request, SetupReply, TrainReply, decode_request, encode_reply


class Answers(Protocol):
    """What stands behind the messages: a ``Node``, or in a simulation one that attacks."""

    def setup(self, request: Request) -> SetupReply: ...

    def train(self, request: Request) -> TrainReply: ...

    def evaluate(self, request: Request) -> EvaluateReply: ...


NodeOf = Callable[[Context], Answers]

incidents = logging.getLogger(INCIDENTS)  # local only; a deployment writes it to a file for its owner


def build_client_app(node_of: NodeOf) -> ClientApp:
    """A ClientApp whose node is found by ``node_of`` from Flower's context."""
    return _answering(ClientApp(), node_of)


def _answering(app: ClientApp, node_of: NodeOf) -> ClientApp:
    @app.query("setup")
    def setup(message: Message, context: Context) -> Message:
        return _answer(message, lambda request: node_of(context).setup(request))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answer(message, lambda request: node_of(context).train(request))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer(message, lambda request: node_of(context).evaluate(request))

    return app


def _answer(message: Message, handler: Callable[[Request], Reply]) -> Message:
    """Reply, or an error code with a random incident id. The detail stays in the local log."""
    reply: Reply
    try:
        reply = handler(decode_request(message))
    except Exception as failure:  # the guard: whatever it is, its text must not leave the site
        reply = error_reply(failure)
        incidents.error("incident %s", reply.incident, exc_info=failure)
    return Message(encode_reply(reply), reply_to=message)


def _no_node(context: Context) -> Answers:
    raise FedethosError(
        "NODE-501",
        "This ClientApp was started without a node.",
        why="It has no records and no approval, so it answers nothing.",
        fix="Run a simulation with `fedethos simulate JOB`.",
    )


app = ClientApp()  # what Flower's own tools find (pyproject.toml)
_answering(app, _no_node)
