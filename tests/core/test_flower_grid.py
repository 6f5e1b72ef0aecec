"""Replies of hostile sites at a real SuperLink: whatever one site stores there, the others' replies come through, at once."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.superlink.grid.http_grid import HttpGrid
from tests.real_superlink import SuperLink, running_superlink

from fedethos.errors import FedethosError
from fedethos.flower import identify_process, with_message_id
from fedethos.flower_grid import CheckedGrid
from fedethos.messages import TRAIN, ErrorReply, decode_reply, encode_reply

REPLY = encode_reply(ErrorReply("NODE-500", "abcd"))


@dataclass
class Scene:
    superlink: SuperLink
    grid: CheckedGrid
    nodes: tuple[int, int]

    def ask(self) -> dict[int, Message]:
        """One message to each node, as it lies at the SuperLink."""
        content = RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(4, dtype=np.float32))}), "config": ConfigRecord({"round": 1})})
        messages = [Message(content, node, TRAIN) for node in self.nodes]
        for message, message_id in zip(messages, self.grid.push_messages(messages), strict=True):
            with_message_id(message, message_id)
        return dict(zip(self.nodes, messages, strict=True))

    def store(self, reply: Message, *, spoil: Callable[[dict[str, bytes]], dict[str, bytes]] = lambda objects: objects) -> None:
        """What a node's push does, without what an honest node's software checks."""
        with_message_id(reply, reply.object_id)
        objects = {name: item.deflate() for name, item in get_all_nested_objects(reply).items()}
        state = self.superlink.state
        session = state.start_session(self.superlink.run_id)
        stored, missing = state.store_message_and_object_tree(reply, get_object_tree(reply), session)
        assert stored
        for name, data in spoil(objects).items():
            if name in missing:
                state.store_object(self.superlink.run_id, session, name, data)

    def pull(self, asked: dict[int, Message]) -> dict[int, Message]:
        """Replies by node, from one pull."""
        by_id = {message.metadata.message_id: node for node, message in asked.items()}
        return {by_id[reply.metadata.reply_to_message_id]: reply for reply in self.grid.pull_messages(list(by_id))}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with running_superlink(tmp_path) as superlink:
        nodes = tuple(superlink.register(ec.generate_private_key(ec.SECP384R1())) for _ in range(2))
        for node in nodes:
            superlink.state.activate_node(node, 1000.0)
        grid = HttpGrid(superlink.address, root_certificates=superlink.authority, token=superlink.token)
        grid.set_run(superlink.state.get_run_info(run_ids=[superlink.run_id])[0])
        identify_process(superlink.run_id)
        yield Scene(superlink, CheckedGrid(grid), nodes)  # type: ignore[arg-type]
        grid.close()


def answer(asked: Message, content: RecordDict = REPLY) -> Message:
    reply = Message(content, reply_to=asked)
    reply.metadata.__dict__["_src_node_id"] = asked.metadata.dst_node_id
    return reply


def test_good_replies_come_as_they_were_sent(scene: Scene) -> None:
    asked = scene.ask()
    assert scene.pull(asked) == {}
    for message in asked.values():
        scene.store(answer(message))
    replies = scene.pull(asked)
    assert sorted(replies) == sorted(scene.nodes)
    assert all(decode_reply(TRAIN, reply.content) == ErrorReply("NODE-500", "abcd") for reply in replies.values())


def test_a_reply_that_never_arrives_holds_nobody_up(scene: Scene) -> None:
    asked = scene.ask()
    bad, good = scene.nodes
    scene.store(answer(asked[bad]), spoil=lambda objects: dict(list(objects.items())[:1]))
    scene.store(answer(asked[good]))
    began = time.monotonic()
    assert list(scene.pull(asked)) == [good]
    assert scene.pull({bad: asked[bad]}) == {}
    assert time.monotonic() - began < 60  # Flower's own grid waits for two hours


def test_what_is_no_message_is_an_empty_reply(scene: Scene) -> None:
    """The SuperLink checks the hash of an object and its head, and nothing behind it."""
    asked = scene.ask()
    bad, good = scene.nodes
    scene.store(answer(asked[good]))
    head = answer(asked[bad])
    kind, children, _ = head.deflate().split(b"\x00", 1)[0].split(b" ")
    data = b" ".join([kind, children, b"9"]) + b"\x00" + b"\xff" * 9
    name = hashlib.sha256(data).hexdigest()
    with_message_id(head, name)
    tree = get_object_tree(head)
    tree.object_id = name
    session = scene.superlink.state.start_session(scene.superlink.run_id)
    stored, missing = scene.superlink.state.store_message_and_object_tree(head, tree, session)
    assert stored and name in missing
    objects = {key: item.deflate() for key, item in get_all_nested_objects(head).items()} | {name: data}
    for key in missing:
        scene.superlink.state.store_object(scene.superlink.run_id, session, key, objects[key])
    replies = scene.pull(asked)
    with pytest.raises(FedethosError, match="AGG-701"):
        decode_reply(TRAIN, replies[bad].content)
    assert decode_reply(TRAIN, replies[good].content) == ErrorReply("NODE-500", "abcd")


def test_a_reply_that_answers_for_somebody_else_is_an_empty_reply(scene: Scene) -> None:
    asked = scene.ask()
    bad, good = scene.nodes
    forged = answer(asked[bad])
    forged.metadata.__dict__["_reply_to_message_id"] = asked[good].metadata.message_id
    honest_face = answer(asked[bad])
    with_message_id(honest_face, forged.object_id)
    objects = {name: item.deflate() for name, item in get_all_nested_objects(forged).items()}
    state = scene.superlink.state
    session = state.start_session(scene.superlink.run_id)
    stored, missing = state.store_message_and_object_tree(honest_face, get_object_tree(forged), session)
    assert stored
    for name in missing:
        state.store_object(scene.superlink.run_id, session, name, objects[name])
    replies = scene.pull(asked)
    assert list(replies) == [bad]
    assert dict(replies[bad].content.items()) == {}


def test_a_reply_larger_than_any_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = scene.ask()
    monkeypatch.setattr(scene.grid, "_most_bytes", 200_000)
    large = ArrayRecord({"w": Array(np.ones(100_000, dtype=np.float32))})
    scene.store(answer(asked[scene.nodes[0]], RecordDict({"arrays": large})))
    replies = scene.pull(asked)
    assert dict(replies[scene.nodes[0]].content.items()) == {}


def test_a_message_that_its_site_confirms_too_early_spoils_no_other(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Confirming drops it at the SuperLink; Flower's own grid then raises for all messages of the round."""
    state = scene.superlink.state
    bad = scene.nodes[0]
    announce = state.store_message_and_object_tree

    def and_confirm(message: Message, tree: ObjectTree, session: str) -> tuple[bool, list[str]]:
        announced = announce(message, tree, session)
        if message.metadata.dst_node_id == bad:
            state.object_store.delete(message.metadata.message_id)
        return announced

    monkeypatch.setattr(state, "store_message_and_object_tree", and_confirm)
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(4, dtype=np.float32))}), "config": ConfigRecord({"round": 1})})
    ids = list(scene.grid.push_messages([Message(content, node, TRAIN) for node in scene.nodes]))
    assert ids[0] == "" and state.get_object(scene.superlink.run_id, ids[1])


def test_a_node_that_is_gone_is_an_error(scene: Scene) -> None:
    asked = scene.ask()
    scene.superlink.state.deactivate_node(scene.nodes[0])
    replies = {}
    end = time.monotonic() + 30
    while not replies and time.monotonic() < end:
        replies = scene.pull(asked)
    assert not replies[scene.nodes[0]].has_content()
    assert {node.node_id for node in scene.grid.get_nodes()} == {scene.nodes[1]}
