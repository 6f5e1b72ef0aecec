"""A real node (supervisor and worker as processes of their own) against a real SuperLink with TLS and keys."""

import os
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
from fedethos.job import Job
from fedethos.messages import SETUP, TRAIN, Request, SetupReply, TrainReply, decode_reply, encode_request
from fedethos.models.tabular import Architecture, make_tabular
from fedethos.privacy.ledger import read_ledger
from fedethos.site import SiteDocument, load_site

RUN = "small-0123abcd"


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
        self.process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.until(lambda status: status["connected"])

    def until(self, holds: Callable[[dict], bool], seconds: float = 60.0) -> dict:
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


@pytest.fixture
def node(tmp_path: Path, superlink: SuperLink, adult_rows: Path) -> Iterator[Node]:
    """Installed, its job approved, not started."""
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    (tmp_path / "ca.pem").write_bytes(superlink.authority)
    site = {
        "schema": "fedethos/site/v1",
        "name": "north",
        "account": "people",
        "coordinator": {"address": superlink.address, "ca": "ca.pem"},
        "data": {"path": str(adult_rows)},
        "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0},
        "split_salt": "0123456789abcdef",
        "device": "cpu",
    }
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    job = load_job(tmp_path / "job.yaml")
    key = write_node_key(tmp_path / "node.key")
    node = Node(tmp_path, job, superlink, superlink.register(key))
    architecture = Architecture.of(job)
    tensors = {name: array.shape for name, array in node.arrays().items()}
    write_approval(tmp_path / "state", job, node.site, key, base_sha256=architecture.sha256, tensors=tensors, frozen={})
    yield node
    if node.process is not None and node.process.poll() is None:
        node.process.kill()
        node.process.wait()


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


def test_a_run_from_setup_to_counts(node: Node) -> None:
    node.start()
    assert is_healthy(node.socket, "node")
    setup = node.answer(SETUP, 0)
    assert isinstance(setup, SetupReply) and setup.model_sha256 == Architecture.of(node.job).sha256
    assert not (node.folder / "ledger.sqlite").exists() or not read_ledger(node.folder / "ledger.sqlite")[0].plans  # nothing is paid yet
    update = node.answer(TRAIN, 1)
    assert isinstance(update, TrainReply) and 0.0 < update.epsilon < 8.0 and update.steps == 3
    [plan] = read_ledger(node.folder / "ledger.sqlite")[0].plans.values()
    assert plan.plan.run == RUN and not plan.plan.seeded
    again = node.answer(TRAIN, 1, attempt=1)  # the stored bytes
    assert all(np.array_equal(again.arrays[name], update.arrays[name]) for name in update.arrays) and again.epsilon == update.epsilon
    second = node.answer(TRAIN, 2)
    assert second.epsilon > update.epsilon
    lines = egress.read(node.folder / "state" / egress.FILE)
    assert [(line.sent.message_type, line.sent.round) for line in lines] == [(SETUP, 0), (TRAIN, 1), (TRAIN, 1), (TRAIN, 2)]
    assert lines[1].sent.sha256 == lines[2].sent.sha256 and lines[3].sent.epsilon_after == second.epsilon
    assert node.stop() == 0
    assert not node.socket.exists() and list((node.folder / "state" / "inbox").iterdir()) == []
