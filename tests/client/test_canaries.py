"""Strings that stand in every place of a site where something is stored never leave it, whatever fails.

A real node (supervisor here, worker as a process of its own) against a real SuperLink; every byte that the node hands to its HTTP
connection is kept and searched, over a run with an error forced at every stage, and then an honest one.
"""

import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml
from flwr.app import RecordDict
from tests.real_superlink import SuperLink, running_superlink

from fedethos.client.approvals import approval_path, write_approval
from fedethos.client.egress import FILE, read
from fedethos.client.node_key import load_node_key, write_node_key
from fedethos.client.supervisor import Supervisor
from fedethos.control.calling import call_control
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import EVALUATE, SETUP, TRAIN, ErrorReply, EvaluateReply, Request, TrainReply, decode_reply, encode_request
from fedethos.models.tabular import Architecture
from fedethos.site import load_site

PLACES = ("folder", "data", "person", "salt", "environment", "list")
CANARIES = {place: f"canary{number}jane{number}doe" for number, place in enumerate(PLACES)}
RUN = "ward-0123abcd"
JOB = {
    "schema": "fedethos/job/v1",
    "name": "ward",
    "task": "tabular-classification",
    "model": {"path": "builtin:linear"},
    "data": {
        "path": "elsewhere.csv",
        "features": {"age": {"low": 17, "high": 90}},
        "label": {"column": "outcome", "values": ["well", "ill"], "favorable": "well"},
        "sensitive": {"sex": ["F", "M"]},
        "person_id": "patient",
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    },
    "training": {"local_steps": 2, "batch_size": 64, "learning_rate": 0.05},
    "privacy": {"epsilon": 8.0},
    "federation": {"rounds": 3, "min_sites": 1, "sites": {"north": {"weight": 1.0, "declared_size": 200}}},
}


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Everything that this process sends over HTTP: address, headers, body."""
    sent: list[bytes] = []
    send = httpx.HTTPTransport.handle_request

    def keep(self: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        headers = b"".join(name + b": " + value + b"\n" for name, value in request.headers.raw)
        sent.append(str(request.url).encode() + headers + request.read())
        return send(self, request)

    with monkeypatch.context() as patched:
        patched.setattr(httpx.HTTPTransport, "handle_request", keep)
        yield sent


def table(rows: int = 330) -> pd.DataFrame:
    random = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "patient": [f"{CANARIES['person']}-{number}" for number in range(rows)],
            "age": random.integers(18, 90, rows),
            "outcome": random.choice(["well", "ill"], rows),
            "sex": random.choice(["F", "M"], rows),
            "note": [f"{CANARIES['data']} mrn {number}" for number in range(rows)],
        }
    )


class Ward:
    """The site on disk, with a canary in every place."""

    def __init__(self, folder: Path, superlink: SuperLink) -> None:
        self.folder = folder / CANARIES["folder"]
        self.folder.mkdir()
        self.superlink = superlink
        (self.folder / "ca.pem").write_bytes(superlink.authority)
        (self.folder / "job.yaml").write_text(yaml.safe_dump(JOB))
        (self.folder / "removed.txt").write_text(f"{CANARIES['list']}\n")
        self.site_file.write_text(
            yaml.safe_dump(
                {
                    "schema": "fedethos/site/v1",
                    "name": "north",
                    "account": "people",
                    "coordinator": {"address": superlink.address, "ca": "ca.pem"},
                    "data": {"path": str(self.records), "removed": "removed.txt"},
                    "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0},
                    "split_salt": CANARIES["salt"] + "0123456789",
                    "device": "cpu",
                }
            )
        )
        self.node_id = superlink.register(write_node_key(self.folder / "node.key"))
        self.asked = 0

    @property
    def site_file(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def records(self) -> Path:
        return self.folder / "records.csv"

    @property
    def job(self) -> Job:
        return load_job(self.folder / "job.yaml")

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def approve(self) -> None:
        tensors = {"layers.0.bias": (2,), "layers.0.weight": (2, 2)}
        sha256 = Architecture.of(self.job).sha256
        key = load_node_key(self.folder / "node.key")
        write_approval(self.state, self.job, load_site(self.site_file), key, base_sha256=sha256, tensors=tensors, frozen={})

    def write(self, frame: pd.DataFrame) -> None:
        frame.to_csv(self.records, index=False)

    def answer(self, kind: str, round: int, **changes: object) -> object:
        arrays = {} if kind == SETUP else {"layers.0.bias": np.zeros(2, np.float32), "layers.0.weight": np.zeros((2, 2), np.float32)}
        self.asked += 1
        request = Request(**{"job_sha256": self.job.sha256, "run": RUN, "round": round, "attempt": self.asked, "arrays": arrays, **changes})
        content = self.superlink.reply(self.superlink.ask(self.node_id, kind, encode_request(kind, request)), seconds=180.0)
        assert isinstance(content, RecordDict)
        return decode_reply(kind, content)

    def refused(self, kind: str = TRAIN, round: int = 1, **changes: object) -> str:
        reply = self.answer(kind, round, **changes)
        assert isinstance(reply, ErrorReply)
        return reply.code


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ward]:
    monkeypatch.setenv("PATIENT_DATABASE", CANARIES["environment"])
    with running_superlink(tmp_path) as superlink, tempfile.TemporaryDirectory() as short:  # a socket's path may not be long
        yield Ward(Path(short), superlink)


@contextmanager
def running(ward: Ward) -> Iterator[None]:
    supervisor = Supervisor(ward.site_file, load_site(ward.site_file))
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    try:
        _until(lambda: call_control(ward.state / "control.sock", "status", {})["connected"], thread)
        yield
    finally:
        supervisor.stop()
        thread.join(120)
        assert not thread.is_alive()


def _until(holds: Callable[[], object], thread: threading.Thread) -> None:
    end = time.monotonic() + 30.0
    while time.monotonic() < end and thread.is_alive():
        with suppress(FedethosError):
            if holds():
                return
        time.sleep(0.05)
    raise AssertionError("the node did not connect")


def fail_at_every_stage(ward: Ward) -> list[tuple[str, str]]:
    """(code that left, what was done), in the order of the stages."""
    seen = [(ward.refused(), "no approval")]
    ward.approve()
    approval = approval_path(ward.state, ward.job.sha256)
    whole = approval.read_bytes()
    approval.write_text(f"{CANARIES['data']} is no approval")
    seen.append((ward.refused(), "rubbish for an approval"))
    approval.write_bytes(whole)
    seen.append((ward.refused(round=9), "a round too many"))
    seen.append((ward.refused(arrays={CANARIES["data"]: np.zeros(1, np.float32)}), "a foreign tensor"))
    stages: list[tuple[str, Callable[[], object]]] = [
        ("no records", lambda: None),
        ("bytes that are no text", lambda: ward.records.write_bytes(b"\xff\xfe" + CANARIES["data"].encode() + b"\x00")),
        ("a label that nobody declared", lambda: ward.write(table().assign(outcome=CANARIES["data"]))),
        ("a group that nobody declared", lambda: ward.write(table().assign(sex=CANARIES["data"]))),
        ("a number that is none", lambda: ward.write(table().assign(age=CANARIES["data"]))),
        ("a missing column", lambda: ward.write(table().drop(columns="age"))),
        ("a broken line", lambda: ward.records.write_text(f'patient,age\n"{CANARIES["data"]},1\nx,y,z\n')),
        ("too few people", lambda: ward.write(table(3))),
        ("no list of removals", lambda: (ward.write(table()), (ward.folder / "removed.txt").rename(ward.folder / "away.txt"))),
        ("everybody removed", lambda: (ward.folder / "removed.txt").write_text("\n".join(table()["patient"]))),
    ]
    for what, spoil in stages:
        spoil()
        seen.append((ward.refused(), what))
    (ward.folder / "removed.txt").write_text(f"{CANARIES['list']}\n")
    return seen


def test_no_canary_leaves_whatever_fails(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as sent, running(ward):
        seen = fail_at_every_stage(ward)
        update, counts = ward.answer(TRAIN, 1), ward.answer(EVALUATE, 3, split="test", cuts=(20, 32), edge=30)
        with closing(sqlite3.connect(ward.folder / "ledger.sqlite")) as ledger, ledger:
            ledger.execute("UPDATE entries SET text = ? WHERE number = 1", (CANARIES["data"],))
        damaged = ward.refused(round=2)
    codes = {what: code for code, what in seen}
    assert codes.pop("no approval") == "SEC-611" and codes.pop("rubbish for an approval") == "SEC-612"
    assert codes.pop("a round too many") == "SEC-631" and codes.pop("a foreign tensor") == "SEC-632"
    assert set(codes.values()) == {"NODE-500"} and damaged == "NODE-500"  # which of them it was is a fact about the records
    assert isinstance(update, TrainReply) and isinstance(counts, EvaluateReply)

    everything = b"\n".join(sent)
    assert b"NODE-500" in everything and b"layers.0.weight" in everything  # the recording sees what is in the messages
    private = load_node_key(ward.folder / "node.key").private_numbers().private_value.to_bytes(48, "big")
    secrets = [*(canary.encode() for canary in CANARIES.values()), private, *(ward.folder / "node.key").read_bytes().splitlines()[1:-1]]
    for secret in secrets:
        assert secret not in everything
    for word in (str(ward.folder), "Traceback", "DATA-", "records.csv", "removed"):
        assert word.encode() not in everything
    logs = [ward.state / "incidents.log", ward.state / "incidents-worker.log"]
    incidents = "".join(path.read_text() for path in logs)
    assert CANARIES["folder"] in incidents and "DATA-122" in incidents  # the operator finds out what it was
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in logs)
    lines = read(ward.state / FILE)
    assert sum(line.sent.refused is None for line in lines) == 2 and len(lines) == len(seen) + 3
