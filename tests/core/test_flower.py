"""The contract that ``fedethos.flower`` keeps with the pinned Flower, and what Flower's own tools see of the project."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedethos import flower
from fedethos.client.app import app as client_app
from fedethos.deployed_app import app as server_app
from fedethos.errors import FedethosError
from fedethos.messages import EVALUATE, SETUP, TRAIN, ErrorReply, Request, decode_reply, encode_request

ROOT = Path(__file__).parents[2]


def record() -> RecordDict:
    return RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.arange(6, dtype=np.float32).reshape(2, 3))}),
            "config": ConfigRecord({"text": "x", "number": 3, "names": ["a", "b"]}),
            "metrics": MetricRecord({"num-examples": 0.25}),
        }
    )


@pytest.mark.parametrize("transport", [flower.copied, lambda content: flower.rebuild_from_wire(flower.wire_bytes(content))])
def test_what_arrives_is_what_was_sent_and_shares_no_container(transport) -> None:
    sent = record()
    arrived = transport(sent)
    assert np.array_equal(arrived.array_records["arrays"]["w"].numpy(), sent.array_records["arrays"]["w"].numpy())
    assert dict(arrived.config_records["config"]) == dict(sent.config_records["config"])
    arrived.config_records["config"]["text"] = "changed"
    arrived.array_records["arrays"]["w"] = Array(np.zeros(1, dtype=np.float32))
    assert sent.config_records["config"]["text"] == "x"
    assert sent.array_records["arrays"]["w"].shape == (2, 3)


def test_equal_records_have_equal_bytes() -> None:
    assert flower.wire_bytes(record()) == flower.wire_bytes(record())


def test_a_message_can_be_made_and_numbered_outside_of_flowers_processes() -> None:
    flower.identify_process(run_id=3)
    message = flower.with_message_id(Message(record(), 7, "train"), "m-1")
    reply = Message(record(), reply_to=message)
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id, message.metadata.run_id) == ("m-1", 7, 3)


def test_flowers_table_names_our_apps() -> None:
    components = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["components"]
    assert components == {"serverapp": "fedethos.deployed_app:app", "clientapp": "fedethos.client.app:app"}
    assert isinstance(server_app, ServerApp) and isinstance(client_app, ClientApp)


def test_flower_builds_a_bundle_of_the_project(tmp_path: Path) -> None:
    """`flwr build` checks the table and both components."""
    copy = tmp_path / "app"
    copy.mkdir()
    (copy / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (copy / "README.md").write_text("fedethos")
    (copy / "LICENSE").write_text("Apache-2.0")
    built = subprocess.run(
        [str(Path(sys.executable).parent / "flwr"), "build", "--app", "."], cwd=copy, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    bundle = next(copy.glob("*.fab"))
    assert "pyproject.toml" in zipfile.ZipFile(bundle).namelist()


def test_the_bare_apps_compute_nothing() -> None:
    flower.identify_process(run_id=1)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    request = Request(job_sha256="0" * 64, run="r", round=1, attempt=0, arrays={})
    for message_type in (SETUP, TRAIN, EVALUATE):
        content = encode_request(message_type, Request(**{**vars(request), "split": "test" if message_type == EVALUATE else None}))
        reply = client_app(Message(content, 1, message_type), context)
        decoded = decode_reply(message_type, reply.content)
        assert isinstance(decoded, ErrorReply) and decoded.code == "NODE-501"
    with pytest.raises(FedethosError, match="RUN-940"):
        server_app._main(None, context)
