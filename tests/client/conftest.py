"""A site with its paperwork: site.yaml, key, real records, an approved tabular job, and requests that an honest coordinator sends."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from flwr.app import Message, RecordDict

from fedethos.client.approvals import Approval, find_approval, write_approval
from fedethos.client.node_key import load_node_key, write_node_key
from fedethos.documents import load_job
from fedethos.flower import identify_process, with_message_id
from fedethos.job import Job
from fedethos.messages import EVALUATE, TRAIN, Arrays, Request, encode_request
from fedethos.models.tabular import Architecture
from fedethos.site import SiteDocument, load_site

RUN = "triage-0123abcd"
NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)

JOB: dict[str, object] = {
    "schema": "fedethos/job/v1",
    "name": "triage",
    "task": "tabular-classification",
    "model": {"path": "builtin:linear"},
    "data": {
        "path": "records.csv",
        "na_values": ["?"],
        "features": {"age": {"low": 17, "high": 90}},  # two inputs: the number, and whether it is missing
        "label": {"column": "income", "values": ["<=50K", ">50K"], "favorable": ">50K"},
        "sensitive": {"sex": ["Female", "Male"]},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    },
    "training": {"local_steps": 2, "batch_size": 32, "learning_rate": 0.05},
    "privacy": {"epsilon": 4.0},
    "federation": {
        "rounds": 3,
        "min_sites": 2,
        "sites": {name: {"weight": 1.0, "declared_size": 300} for name in ("hospital-a", "hospital-b", "hospital-c")},
    },
    "simulation": {"sites": 3, "partition": {"kind": "dirichlet", "by": "sex", "alpha": 2.0}, "seed": 3},
}
SITE: dict[str, object] = {
    "schema": "fedethos/site/v1",
    "name": "hospital-a",
    "account": "hospital-a",
    "coordinator": {"address": "127.0.0.1:9092", "insecure": True},
    "data": {"path": "records.csv"},
    "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 4.0, "rounds": 10},
    "split_salt": "sixteen characters or more",
}


@dataclass(frozen=True)
class Hospital:
    """One site on disk. ``request`` is an honest one, changed by keywords; ``message`` puts it on the wire."""

    folder: Path
    job: Job
    site: SiteDocument
    tensors: dict[str, tuple[int, ...]]

    @property
    def key(self) -> Path:
        return self.folder / self.site.key

    @property
    def state(self) -> Path:
        return self.folder / self.site.state

    @property
    def job_file(self) -> Path:
        return self.folder / "job.yaml"

    @property
    def site_file(self) -> Path:
        return self.folder / "site.yaml"

    @property
    def arrays(self) -> Arrays:
        return {name: np.zeros(shape, np.float32) for name, shape in self.tensors.items()}

    def approve(self) -> None:
        self.approve_with(base_sha256=Architecture.of(self.job).sha256)

    def approve_with(self, *, base_sha256: str) -> None:
        key = load_node_key(self.key)
        write_approval(self.state, self.job, self.site, key, base_sha256=base_sha256, tensors=self.tensors, frozen={})

    def approval(self) -> Approval:
        return find_approval(self.state, self.job.sha256, self.key, self.site)

    def request(self, **changes: object) -> Request:
        fields = {"job_sha256": self.job.sha256, "run": RUN, "round": 1, "attempt": 0, "arrays": self.arrays}
        return Request(**{**fields, **changes})

    def train(self, *, message_id: str = "m1", **changes: object) -> Message:
        return message(TRAIN, encode_request(TRAIN, self.request(**changes)), message_id)

    def evaluate(self, *, message_id: str = "m1", **changes: object) -> Message:
        fields = {"round": 3, "split": "test", "cuts": (20, 32), "edge": 30}
        return message(EVALUATE, encode_request(EVALUATE, self.request(**{**fields, **changes})), message_id)


def message(message_type: str, content: RecordDict, message_id: str = "m1") -> Message:
    identify_process(run_id=1)
    return with_message_id(Message(content, 1, message_type), message_id)


@pytest.fixture
def open_hospital(tmp_path: Path, adult_rows: Path) -> Callable[..., Hospital]:
    """``open_hospital(job={...}, site={...})``: keys of the documents replaced, sections merged. The job is not approved yet."""

    def open_one(*, job: dict[str, object] | None = None, site: dict[str, object] | None = None) -> Hospital:
        (tmp_path / "records.csv").write_bytes(adult_rows.read_bytes())
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(merged(JOB, job or {})))
        (tmp_path / "site.yaml").write_text(yaml.safe_dump(merged(SITE, site or {})))
        document = load_site(tmp_path / "site.yaml")
        if not (tmp_path / document.key).exists():
            write_node_key(tmp_path / document.key)
        tensors = {"layers.0.bias": (2,), "layers.0.weight": (2, 2)}
        return Hospital(tmp_path, load_job(tmp_path / "job.yaml"), document, tensors)

    return open_one


@pytest.fixture
def hospital(open_hospital) -> Hospital:
    """The site, with its job approved."""
    opened: Hospital = open_hospital()
    opened.approve()
    return opened


def merged(document: dict[str, object], changes: dict[str, object]) -> dict[str, object]:
    result = dict(document)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = {**old, **value} if isinstance(value, dict) and isinstance(old, dict) else value
    return result
