"""The guards of a real node let every honest run pass: each aggregation rule, each kind of count, with and without privacy.

Whole simulated runs in which every request goes through the gatekeeper and every reply through the release contract, with an approval made
from the job as ``fedethos client approve`` makes it.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from flwr.app import ConfigRecord, Message
from tests.language.conftest import job_text, questions

from fedethos.client import app
from fedethos.client.approvals import Approval
from fedethos.client.gatekeeper import check_request
from fedethos.client.model_probe import probe_model
from fedethos.client.release_contract import check_reply
from fedethos.client.review import Review, review_job
from fedethos.documents import load_job
from fedethos.flower import all_objects
from fedethos.job import Job
from fedethos.messages import CONFIG, EVALUATE, TRAIN
from fedethos.privacy.ledger_state import LedgerState
from fedethos.progress import Silent
from fedethos.simulations.engine import simulate
from fedethos.site import SiteDocument

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
OPEN = {"mode": "none", "epsilon": None}
BY_GROUP = {"policy": {"allow_group_thresholds": True, "reason": "a test"}}
RUNS: dict[str, dict[str, object]] = {
    "ffa": {},
    "fedex": {"federation": {"aggregation": "fedex"}},
    "flora": {"federation": {"aggregation": "flora"}, "privacy": OPEN},
    "rolora": {"federation": {"aggregation": "rolora"}},
    "fedsb": {"federation": {"aggregation": "fedsb"}},
    "flexlora": {"federation": {"aggregation": "flexlora"}, "privacy": OPEN},
    "early-stop": {"federation": {"early_stop": {"metric": "worst_group_accuracy", "patience": 5}}},
    "controller": {"fairness": {"strategy": "controller", "every": 1}},
    "group-thresholds": {"fairness": {"thresholds": "equal_opportunity"}, **BY_GROUP},
    "personal": {"training": {"personal": {}}},
    "personal-counts": {"training": {"personal": {"release_counts": True}}},
    "open-personal-counts": {"privacy": OPEN, "training": {"personal": {"release_counts": True}}},
    "center": {"training": {"center_head": "on"}},
    "open": {"privacy": OPEN, "fairness": {"strategy": "controller", "every": 1}},
}


def approval_of(job: Job, folder: Path, account: str) -> Approval:
    site = site_of(account)
    facts = probe_model(job, site, folder, declared_size=200)
    return Approval(
        job=job,
        job_sha256=job.sha256,
        base_sha256=facts.base_sha256,
        tensors=facts.tensors,
        frozen=facts.frozen,
        code_sha256="",
        site=account,
        account=account,
        caps=site.caps,
        signed_at="",
    )


def site_of(name: str) -> SiteDocument:
    return SiteDocument.model_validate(
        {
            "name": name,
            "account": name,
            "coordinator": {"address": "127.0.0.1:1", "insecure": True},
            "data": {"path": "records.csv"},
            "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0},
            "split_salt": "sixteen characters",
            "allow_unprotected": True,
        }
    )


Guarded = Callable[[Job, Path], list["Passed"]]


class Passed(NamedTuple):
    """A reply of ``site`` that the guards let through."""

    site: str
    kind: str
    sha256: str
    bytes: int


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Guarded:
    """``guarded(job, folder)`` simulates with the guards in between; returns what passed."""
    answer = app._answer

    def run(job: Job, out: Path) -> list[Passed]:
        names = sorted(job.federation.sites)
        approvals = {name: approval_of(job, tmp_path, name) for name in names}
        passed: list[Passed] = []

        def between(message: Message, handler: Callable) -> Message:
            name, config = names[message.metadata.dst_node_id - 1], message.content.config_records[CONFIG]
            named = str(config["run"])  # a simulation names its runs in its own way
            message.content[CONFIG] = ConfigRecord({**config, "run": f"{job.name}-00000000"})
            request = check_request(message, approvals[name], site_of(name), None, NOW)
            message.content[CONFIG] = config
            reply = answer(message, handler)
            ledger = None if job.privacy.mode == "none" else out / "ledger.sqlite"
            kind = message.metadata.message_type
            check_reply(kind, replace(request, run=named), reply.content, approvals[name], ledger)
            assert "error" not in reply.content
            sizes = [len(item.deflate()) for item in all_objects(reply.content).values()]
            passed.append(Passed(name, kind, reply.content.object_id, sum(sizes)))
            return reply

        monkeypatch.setattr(app, "_answer", between)
        simulate(job, out, base=tmp_path, observer=Silent())
        return passed

    return run


@pytest.mark.parametrize("kind", RUNS)
def test_an_honest_run_passes_all_guards_and_sends_no_more_than_the_review_announced(
    write_job, guarded: Guarded, tmp_path: Path, kind: str
) -> None:
    sections = RUNS[kind]
    sites = {"sites": {name: {"declared_size": 200} for name in ("a", "b", "c")}, "rounds": 2, "min_sites": 2}
    federation = {**sites, **sections.get("federation", {})}
    training = {"local_steps": 1, **sections.get("training", {})}
    job = load_job(write_job(**{**sections, "federation": federation, "training": training}))
    as_announced(job, guarded, tmp_path)


@pytest.mark.parametrize("task", ["causal-lm", "multiple-choice", "preference"])
def test_so_do_language_models(task: str, tiny_language_base: Path, guarded: Guarded, tmp_path: Path) -> None:
    rows, path = tmp_path / "rows.jsonl", tmp_path / "job.yaml"
    rows.write_text("".join(json.dumps(row) + "\n" for row in questions()))
    federation = {"sites": {name: {"declared_size": 40} for name in ("a", "b")}}
    path.write_text(job_text(tiny_language_base, rows, task, federation=federation, training={"local_steps": 1}))
    announced = as_announced(load_job(path), guarded, tmp_path)
    read = dict(announced.reads)
    learnt = {"causal-lm": "learns to write", "multiple-choice": "option second", "preference": "worse answer"}[task]
    assert read["model reads"] == "Who was {who}?"
    assert read[learnt] == {"causal-lm": "the {answer}", "multiple-choice": "{b}", "preference": "{bad}"}[task]
    assert announced.seconds > 0.0


def as_announced(job: Job, guarded: Guarded, folder: Path) -> Review:
    """The review of a site, after a run has shown that it is true."""
    review = review_job(job, site_of("a"), probe_model(job, site_of("a"), folder, declared_size=40), LedgerState())
    trains = [row for row in review.leaving if row.what.startswith("train")]
    counts = [row for row in review.leaving if "counts" in row.what]
    passed = [one for one in guarded(job, folder / "run") if one.site == "a"]
    trained, counted = ({one.sha256: one.bytes for one in passed if one.kind == kind} for kind in (TRAIN, EVALUATE))
    assert len(trained) == sum(row.times for row in trains)
    assert 0 < len(counted) <= sum(row.times for row in counts)
    assert 0.5 * trains[0].bytes < max(trained.values()) <= trains[0].bytes
    assert max(counted.values()) <= max(row.bytes for row in counts)
    return review
