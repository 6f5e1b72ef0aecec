"""Not one byte of what must stay at a site is in what its node sent through the gateway, over whole runs with an error on the way."""

from __future__ import annotations

import pandas as pd
import pytest
import yaml
from tests.deploy.stack import CANARIES, SITES, job_of, records, write_records

from fedethos.client.node_key import load_node_key

pytestmark = pytest.mark.xdist_group("deploy")


def test_no_canary_and_no_secret_is_in_what_left_the_nodes(stack):
    """Everything since the stack came up is searched, so all tests before this one count too."""
    whole = pd.read_csv(records(stack.folder, "north"))
    write_records(stack.folder, "north", whole.assign(income=CANARIES["note"]))  # a label that nobody declared
    try:
        folder = stack.run_to_end(job_of("leaking", rounds=2))
    finally:
        write_records(stack.folder, "north", whole)
    assert {(one.site, one.code) for record in folder.read_rounds() for one in record.refusals} == {("north", "NODE-500")}
    assert [record.sites["south"] for record in folder.read_rounds()[1:]] == ["sent", "sent"]

    everything = stack.sent()
    for seen in (b"NODE-500", b"layers.0.weight", b"scores", b"POST /v1/fleet/push-object", b"POST /v1/fleet/send-node-heartbeat"):
        assert any(seen in sent for sent in everything), seen  # the recording holds errors, updates, counts and the requests themselves
    for name, secret in secrets(stack):
        assert not any(secret in sent for sent in everything), name
    incidents = (stack.folder / "north" / "state" / "incidents-worker.log").read_text()
    assert "DATA-122" in incidents  # the operator finds out what it was


def secrets(stack):
    """(name, bytes that must not leave)."""
    yield from ((place, canary.encode()) for place, canary in CANARIES.items())
    yield from ((word, word.encode()) for word in ("Traceback", "DATA-", ".csv", str(stack.folder)))
    for site in SITES:
        document = yaml.safe_load((stack.folder / site / "site.yaml").read_text())
        key = stack.folder / site / document["key"]
        yield f"salt of {site}", document["split_salt"].encode()
        yield f"key of {site}", load_node_key(key).private_numbers().private_value.to_bytes(48, "big")
        yield from ((f"key of {site}", line) for line in key.read_bytes().splitlines()[1:-1])
