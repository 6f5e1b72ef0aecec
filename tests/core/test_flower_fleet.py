"""The contract that ``fedethos.flower_fleet`` keeps with the pinned Flower: a real SuperLink with TLS and node keys."""

import datetime
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from tests.connect_proxy import connect_proxy
from tests.real_superlink import SuperLink, certificate_authority, running_superlink

from fedethos.errors import FedethosError
from fedethos.flower import wire_bytes
from fedethos.flower_fleet import Endpoint, FleetConnection, RunEndedError


def plenty() -> int:
    return 2**30


def content(size: int = 6) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(np.arange(size, dtype=np.float32))}), "config": ConfigRecord({"round": 3})})


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[SuperLink]:
    with running_superlink(tmp_path) as running:
        yield running


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def connection(superlink, key, **changes) -> FleetConnection:
    endpoint = Endpoint(**{"address": superlink.address, "certificate_authority": superlink.authority, **changes})
    return FleetConnection(endpoint, key, threading.Event())


def test_a_message_arrives_whole_and_its_reply_goes_back(superlink, key) -> None:
    node_id = superlink.register(key)
    with connection(superlink, key) as fleet:
        assert fleet.receive(plenty) is None and fleet.problem is None and fleet.node_id == node_id
        asked = superlink.ask(node_id, "train", content(3_000_000))  # more than two of Flower's chunks
        message = fleet.receive(plenty)
        assert message is not None and message.metadata.message_id == asked and message.metadata.message_type == "train"
        assert np.array_equal(message.content.array_records["arrays"]["w"].numpy(), np.arange(3_000_000, dtype=np.float32))
        fleet.confirm(message)
        fleet.send(Message(content(4), reply_to=message))
        [reply] = superlink.state.get_message_res({asked}, superlink.run_id)
        assert reply.metadata.reply_to_message_id == asked and reply.has_content() and reply.metadata.src_node_id == node_id
        assert superlink.state.get_object(superlink.run_id, reply.metadata.message_id)


def test_a_message_is_not_confirmed_before_it_is_whole(superlink, key) -> None:
    """Its tensors may be there long before, with another site's message."""
    node_id = superlink.register(key)
    with connection(superlink, key) as fleet:
        fleet.receive(plenty)
        asked, complete = superlink.announce(node_id, "train", content())
        threading.Timer(1.0, complete).start()  # fails where the message was confirmed and so dropped before
        message = fleet.receive(plenty)
        assert message is not None and message.has_content()
        assert superlink.state.get_object(superlink.run_id, asked)


def test_no_code_and_nothing_else_is_ever_asked_for(superlink, key, monkeypatch) -> None:
    paths = []
    real = httpx.HTTPTransport.handle_request

    def recorded(self, request):
        paths.append(request.url.path)
        return real(self, request)

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", recorded)
    node_id = superlink.register(key)
    with connection(superlink, key) as fleet:
        fleet.receive(plenty)
        superlink.ask(node_id, "train", content())
        message = fleet.receive(plenty)
        fleet.confirm(message)
        fleet.send(Message(content(), reply_to=message))
    expected = {
        "activate-node",
        "pull-messages",
        "pull-object",
        "confirm-message-received",
        "push-messages",
        "push-object",
        "deactivate-node",
    }
    assert {path.removeprefix("/v1/fleet/") for path in paths} == expected


def test_a_killed_node_comes_back_under_its_number(superlink, key) -> None:
    superlink.register(key)
    with connection(superlink, key) as fleet:
        fleet.receive(plenty)
        number = fleet.node_id
    with connection(superlink, key) as fleet:  # it said goodbye: at once
        fleet.receive(plenty)
        assert fleet.node_id == number
        with connection(superlink, key) as again:  # the first is still alive for the coordinator: refused, and tried again later
            assert again.receive(plenty) is None
            assert again.problem is not None and again.problem.code == "NET-543" and 0.5 <= again.pause <= 1.0


def activated_at(superlink, node_id) -> str:
    [node] = superlink.state.get_node_info(node_ids=[node_id])
    return node.last_activated_at


def test_a_node_that_was_killed_is_let_in_at_once_by_its_own_number(superlink, key, tmp_path) -> None:
    superlink.register(key)
    endpoint, number = Endpoint(superlink.address, superlink.authority), tmp_path / "node-id"
    with FleetConnection(endpoint, key, threading.Event(), number) as killed:  # as long as this one lives, the coordinator counts it
        killed.receive(plenty)
        before = activated_at(superlink, killed.node_id)
        with FleetConnection(endpoint, key, threading.Event(), number) as again:
            assert again.receive(plenty) is None and again.problem is None and again.node_id == killed.node_id
            assert activated_at(superlink, again.node_id) != before  # the round loop sees it: what was on its way is sent again
        superlink.register(stranger := ec.generate_private_key(ec.SECP384R1()))
    with FleetConnection(endpoint, stranger, threading.Event(), number) as other:  # a number is no key
        other.receive(plenty)
        assert other.problem is None and other.node_id != killed.node_id


def test_an_unregistered_key_is_refused_and_tried_again(superlink, key) -> None:
    with connection(superlink, key) as fleet:
        pauses = []
        for _ in range(8):
            assert fleet.receive(plenty) is None
            assert fleet.problem is not None and fleet.problem.code == "NET-543"
            pauses.append(fleet.pause)
        assert pauses[0] <= 1.0 and 15.0 <= pauses[-1] <= 30.0
        superlink.register(key)
        assert fleet.receive(plenty) is None and fleet.problem is None and fleet.pause <= 1.25


def test_a_certificate_of_somebody_else_is_refused(superlink, key, tmp_path) -> None:
    superlink.register(key)
    (tmp_path / "other").mkdir()
    _, _, stranger = certificate_authority(tmp_path / "other")
    with connection(superlink, key, certificate_authority=stranger) as fleet:
        assert fleet.receive(plenty) is None
        assert fleet.problem is not None and fleet.problem.code == "NET-542" and fleet.node_id is None


def test_a_coordinator_that_is_not_there(superlink, key) -> None:
    with connection(superlink, key, address="127.0.0.1:9") as fleet:
        assert fleet.receive(plenty) is None
        assert fleet.problem is not None and fleet.problem.code == "NET-541"


def test_a_wrong_clock_is_named(superlink, key, monkeypatch) -> None:
    superlink.register(key)
    real = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr("flwr.supernode.node_auth_http_interceptor.now", lambda: real - datetime.timedelta(hours=1))
    monkeypatch.setattr("fedethos.flower_fleet_client.time.time", lambda: real.timestamp() - 3600)
    with connection(superlink, key) as fleet:
        assert fleet.receive(plenty) is None
        assert fleet.problem is not None and fleet.problem.code == "NET-544" and "behind" in str(fleet.problem)


def test_without_tls_only_to_this_machine(key) -> None:
    for address in ("192.0.2.1:80", "coordinator.example:80", "localhost.example:80", "[2001:db8::1]:80"):
        with pytest.raises(FedethosError, match="SEC-680"):
            FleetConnection(Endpoint(address, insecure=True), key, threading.Event())
    for address in ("127.0.0.1:80", "localhost:80", "[::1]:80"):
        FleetConnection(Endpoint(address, insecure=True), key, threading.Event())


def test_the_environment_names_no_proxy(superlink, key, monkeypatch) -> None:
    superlink.register(key)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with connection(superlink, key) as fleet:
        assert fleet.receive(plenty) is None and fleet.problem is None
    with connection(superlink, key, proxy="http://127.0.0.1:9") as fleet:  # the site document does
        fleet.receive(plenty)
        assert fleet.problem is not None and fleet.problem.code == "NET-541"


def test_everything_goes_through_the_proxy_of_the_site_document_and_it_sees_nothing(superlink, key) -> None:
    node_id = superlink.register(key)
    with connect_proxy() as proxy, connection(superlink, key, proxy=proxy.url) as fleet:
        fleet.receive(plenty)
        asked = superlink.ask(node_id, "train", content())
        message = fleet.receive(plenty)
        assert message is not None and fleet.problem is None
        fleet.send(Message(content(4), reply_to=message))
        assert len(superlink.state.get_message_res({asked}, superlink.run_id)) == 1
    assert set(proxy.asked) == {f"CONNECT {superlink.address} HTTP/1.1"}
    passed = b"".join(proxy.seen)
    assert len(passed) > 10_000 and b"/v1/fleet" not in passed and b"NUMPY" not in passed  # TLS from end to end


def test_a_proxy_that_lets_nobody_through_is_named_and_tried_again(superlink, key) -> None:
    with connect_proxy(refuse=True) as proxy, connection(superlink, key, proxy=proxy.url) as fleet:
        assert fleet.receive(plenty) is None and fleet.problem is not None and fleet.problem.code == "NET-541"
        assert "ProxyError" in str(fleet.problem) and fleet.pause <= 1.0


def test_too_large_a_message_comes_without_content_and_can_be_answered(superlink, key) -> None:
    node_id = superlink.register(key)
    with connection(superlink, key) as fleet:
        fleet.receive(plenty)
        asked = superlink.ask(node_id, "train", content(300_000))
        message = fleet.receive(lambda: 1_199_999)
        assert message is not None and not message.has_content()
        fleet.send(Message(content(), reply_to=message))
        assert len(superlink.state.get_message_res({asked}, superlink.run_id)) == 1


def test_what_is_allowed_is_asked_of_large_messages_alone(superlink, key) -> None:
    node_id = superlink.register(key)
    asked = Mock(return_value=2**30)
    with connection(superlink, key) as fleet:
        fleet.receive(plenty)
        for size, times in ((1000, 0), (300_000, 1)):
            superlink.ask(node_id, "train", content(size))
            message = fleet.receive(asked)
            assert message is not None and message.has_content() and asked.call_count == times


def test_an_endless_answer_ends_the_request_and_not_the_node(superlink, key, monkeypatch) -> None:
    superlink.register(key)
    with connection(superlink, key) as fleet:
        fleet.receive(plenty)
        monkeypatch.setattr("fedethos.flower_fleet_client._LARGEST_RESPONSE", 10)
        superlink.ask(fleet.node_id, "train", content())
        assert fleet.receive(plenty) is None and fleet.problem is not None and fleet.problem.code == "NET-545"
        monkeypatch.undo()
        assert fleet.receive(plenty) is None and fleet.problem is None


def test_an_object_that_is_not_the_announced_one_is_not_taken(superlink, key, monkeypatch) -> None:
    node_id = superlink.register(key)
    other = next(iter(wire_bytes(content(7)).values()))
    with connection(superlink, key) as fleet:
        fleet.receive(plenty)
        superlink.ask(node_id, "train", content())
        monkeypatch.setattr(type(superlink.state), "get_object", lambda self, run_id, object_id: other)
        message = fleet.receive(plenty)
        assert message is not None and not message.has_content()


def test_nobody_waits_after_the_run(superlink, key) -> None:
    node_id = superlink.register(key)
    with connection(superlink, key) as fleet:
        fleet.receive(plenty)
        superlink.ask(node_id, "train", content())
        message = fleet.receive(plenty)
        superlink.end_run()
        with pytest.raises(RunEndedError):
            fleet.send(Message(content(), reply_to=message))


def test_a_stopped_node_does_not_wait_for_an_absent_coordinator(superlink, key) -> None:
    node_id = superlink.register(key)
    stop = threading.Event()
    with FleetConnection(Endpoint(superlink.address, superlink.authority), key, stop) as fleet:
        fleet.receive(plenty)
        superlink.ask(node_id, "train", content())
        message = fleet.receive(plenty)
    stop.set()
    with (
        FleetConnection(Endpoint("127.0.0.1:9", superlink.authority), key, stop) as elsewhere,
        pytest.raises(FedethosError, match="NET-546"),
    ):
        elsewhere.send(Message(content(), reply_to=message))
