"""A real node (supervisor and worker as processes of their own) against a real SuperLink with TLS and keys."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.app import RecordDict
from tests.real_superlink import SuperLink, running_superlink

from fedethos.client import egress
from fedethos.client.approvals import write_approval
from fedethos.client.node_key import write_node_key
from fedethos.control.calling import call_control, is_healthy
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.fairness.layout import DEFAULT_CUTS
from fedethos.job import Job
from fedethos.messages import (
    EVALUATE,
    SETUP,
    TRAIN,
    ErrorReply,
    EvaluateReply,
    Request,
    SetupReply,
    TrainReply,
    decode_reply,
    encode_request,
)
from fedethos.models.tabular import Architecture, make_tabular
from fedethos.privacy.ledger import read_ledger
from fedethos.privacy.ledger_state import PlanState
from fedethos.site import SiteDocument, load_site

pytestmark = pytest.mark.xdist_group("node")

RUN = "small-0123abcd"
CUTS = DEFAULT_CUTS


@dataclass
class Node:
    """A node that is installed in a folder, and the coordinator's view of it."""

    folder: Path
    job: Job
    superlink: SuperLink
    node_id: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def site(self) -> SiteDocument:
        return load_site(self.folder / "site.yaml")

    @property
    def socket(self) -> Path:
        return self.folder / "state" / "control.sock"

    def start(self) -> None:
        command = [sys.executable, "-c", "from fedethos.cli import main; main()", "client", "start", str(self.folder / "site.yaml")]
        self.process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
        self.until(lambda status: status["connected"] and is_healthy(self.socket, "node"))

    def until(self, holds: Callable[[dict], bool], seconds: float = 240.0) -> dict:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                status = call_control(self.socket, "status", {})
                if holds(status):
                    return status
            except FedethosError:
                assert self.process is None or self.process.poll() is None, "the node ended"
            time.sleep(0.05)
        raise AssertionError("it did not come so far")

    def arrays(self) -> dict[str, np.ndarray]:
        model = make_tabular(Architecture.of(self.job), seed=0)
        return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}

    def ask(self, kind: str, round: int, **changes) -> str:
        arrays = {} if kind == SETUP else self.arrays()
        request = Request(**{"job_sha256": self.job.sha256, "run": RUN, "round": round, "attempt": 0, "arrays": arrays, **changes})
        return self.superlink.ask(self.node_id, kind, encode_request(kind, request))

    def answer(self, kind: str, round: int, **changes):
        return self.reply(kind, self.ask(kind, round, **changes))

    def reply(self, kind: str, asked: str):
        content = self.superlink.reply(asked)
        assert isinstance(content, RecordDict)
        return decode_reply(kind, content)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with running_superlink(tmp_path_factory.mktemp("superlink")) as running:
        yield running


JOB = {
    "schema": "fedethos/job/v1",
    "name": "small",
    "task": "tabular-classification",
    "model": {"path": "builtin:linear"},
    "data": {
        "path": "elsewhere.csv",
        "na_values": ["?"],
        "features": {"age": {"low": 17, "high": 90}, "education_num": {"mean": 10.0, "scale": 2.5}},
        "label": {"column": "income", "values": ["<=50K", ">50K"], "favorable": ">50K"},
        "sensitive": {"sex": ["Female", "Male"]},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    },
    "training": {"local_steps": 3, "batch_size": 64, "learning_rate": 0.05},
    "privacy": {"epsilon": 8.0},
    "federation": {"rounds": 3, "min_sites": 1, "sites": {"north": {"weight": 1.0, "declared_size": 500}}},
}
LONG = {**JOB, "training": {**JOB["training"], "local_steps": 1_000}}  # seconds a round


@pytest.fixture
def install(tmp_path: Path, superlink: SuperLink, adult_rows: Path) -> Iterator[Callable[..., Node]]:
    """``install(job)``: a node with ``job`` approved, not started; keywords are keys of site.yaml."""
    nodes = []

    def make(job: dict[str, object], **site: object) -> Node:
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        (tmp_path / "ca.pem").write_bytes(superlink.authority)
        document = {
            "schema": "fedethos/site/v1",
            "name": "north",
            "account": "people",
            "coordinator": {"address": superlink.address, "ca": "ca.pem"},
            "data": {"path": str(adult_rows)},
            "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0},
            "split_salt": "0123456789abcdef",
            "device": "cpu",
            **site,
        }
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(document))
        key = write_node_key(tmp_path / "node.key")
        node = Node(tmp_path, load_job(tmp_path / "job.yaml"), superlink, superlink.register(key))
        nodes.append(node)
        tensors = {name: array.shape for name, array in node.arrays().items()}
        base = Architecture.of(node.job).sha256
        write_approval(tmp_path / "state", node.job, node.site, key, base_sha256=base, tensors=tensors, frozen={})
        return node

    yield make
    for node in nodes:
        if node.process is not None and node.process.poll() is None:
            node.process.kill()
            node.process.wait()


def plan_of(node: Node) -> PlanState:
    [plan] = read_ledger(node.folder / "ledger.sqlite")[0].plans.values()
    return plan


def test_a_run_from_setup_to_counts(install) -> None:
    node = install(JOB)
    node.start()
    setup = node.answer(SETUP, 0, fedethos="9.9.9")
    assert "the coordinator runs another version" in (node.folder / "log" / "node.jsonl").read_text()
    assert isinstance(setup, SetupReply) and setup.model_sha256 == Architecture.of(node.job).sha256
    assert not read_ledger(node.folder / "ledger.sqlite")[0].plans  # nothing is paid yet
    update = node.answer(TRAIN, 1)
    assert isinstance(update, TrainReply) and 0.0 < update.epsilon < 8.0 and update.steps == 3
    assert plan_of(node).plan.run == RUN and not plan_of(node).plan.seeded
    assert call_control(node.socket, "status", {})["told"] is None
    again = node.answer(TRAIN, 1, attempt=1, refused="AGG-703")  # the stored bytes
    assert call_control(node.socket, "status", {})["told"] == "AGG-703"
    assert all(np.array_equal(again.arrays[name], update.arrays[name]) for name in update.arrays) and again.epsilon == update.epsilon
    second = node.answer(TRAIN, 2)
    assert call_control(node.socket, "status", {})["told"] is None
    assert second.epsilon > update.epsilon
    counts = node.answer(EVALUATE, 3, split="test", cuts=CUTS, edge=32)
    assert isinstance(counts, EvaluateReply) and counts.sigma > 0.0 and counts.epsilon <= 8.0

    status = node.until(lambda status: status["state"] == "waiting")
    assert (status["answered"], status["refused"], status["site"]) == (5, 0, "north")
    call_control(node.socket, "pause", {})
    node.until(lambda status: status["state"] == "paused")
    asked = node.ask(TRAIN, 3)
    assert not is_healthy(node.socket, "node") and is_healthy(node.socket)
    assert node.superlink.reply(asked, seconds=2.0) is None
    call_control(node.socket, "resume", {})
    assert isinstance(node.reply(TRAIN, asked), TrainReply)

    assert node.superlink.ask_again(asked) == asked  # replayed: the same message under the same id
    replayed = node.reply(TRAIN, asked)
    assert isinstance(replayed, ErrorReply) and replayed.code == "SEC-634"

    refused = node.answer(TRAIN, 2, job_sha256="0" * 64)
    assert isinstance(refused, ErrorReply) and refused.code == "SEC-611"
    lines = egress.read(node.folder / "state" / egress.FILE)
    kinds = [(line.sent.message_type, line.sent.round, line.sent.refused) for line in lines]
    assert kinds[:5] == [(SETUP, 0, None), (TRAIN, 1, None), (TRAIN, 1, None), (TRAIN, 2, None), (EVALUATE, 3, None)]
    assert kinds[5:] == [(TRAIN, 3, None), ("", 0, "SEC-634"), ("", 0, "SEC-611")]
    assert lines[1].sent.sha256 == lines[2].sent.sha256 and lines[3].sent.epsilon_after == second.epsilon
    assert refused.incident in (node.folder / "state" / "incidents.log").read_text()
    assert node.stop() == 0
    assert not node.socket.exists() and list((node.folder / "state" / "inbox").iterdir()) == []


def test_a_worker_that_is_killed_is_started_again_and_what_it_began_stays_paid(install) -> None:
    node = install(LONG)
    node.start()
    node.answer(SETUP, 0)
    asked = node.ask(TRAIN, 1)
    node.until(lambda _: _reserved(node) == 1)
    worker = call_control(node.socket, "status", {})["worker"]
    os.kill(worker, signal.SIGKILL)
    update = node.reply(TRAIN, asked)
    assert isinstance(update, TrainReply) and call_control(node.socket, "status", {})["worker"] != worker
    first, second = plan_of(node).reservations.values()
    assert (first.round, second.round, first.sha256) == (1, 1, None) and second.sha256 is not None
    assert second.event.noise_multiplier > first.event.noise_multiplier  # the rest is planned anew, inside the cap
    assert update.epsilon <= 8.0 and update.steps == 2_000  # both count
    assert node.stop() == 0


def test_a_node_that_is_killed_or_told_to_stop_now_keeps_what_it_was_working_on(install) -> None:
    node = install(LONG)
    node.start()
    asked = node.ask(TRAIN, 1)
    node.until(lambda _: _reserved(node) == 1)
    worker = call_control(node.socket, "status", {})["worker"]
    node.process.kill()
    node.process.wait()
    _gone(worker)
    node.start()
    update = node.reply(TRAIN, asked)
    assert isinstance(update, TrainReply) and update.epsilon <= 8.0
    assert [one.round for one in plan_of(node).reservations.values()] == [1, 1]

    node.process.kill()  # after the ledger's record: nothing is computed or paid again, and no worker is needed
    node.process.wait()
    node.start()
    again = node.answer(TRAIN, 1, attempt=1)
    assert all(np.array_equal(again.arrays[name], update.arrays[name]) for name in update.arrays)
    assert len(plan_of(node).reservations) == 2 and call_control(node.socket, "status", {})["worker"] is None

    asked = node.ask(TRAIN, 2)
    node.until(lambda _: _reserved(node) == 3)
    call_control(node.socket, "stop", {"now": True})
    assert node.process.wait(60) == 0
    assert sorted(path.name for path in (node.folder / "state" / "inbox").iterdir()) == ["checked", "request"]


def _reserved(node: Node) -> int:
    try:
        return len(plan_of(node).reservations)
    except (FedethosError, ValueError):
        return 0


def _gone(pid: int) -> None:
    """A worker ends with its supervisor."""
    end = time.monotonic() + 10.0
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
