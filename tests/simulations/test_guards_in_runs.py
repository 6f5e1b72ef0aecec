"""The guards of a real node let every honest run pass: each aggregation rule, each kind of count, with and without privacy.

Whole simulated runs in which every request goes through the gatekeeper and every reply through the release contract, with an approval made
from the job as ``fedethos client approve`` makes it.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message

from fedethos.client import app
from fedethos.client.approvals import Approval
from fedethos.client.gatekeeper import check_request
from fedethos.client.model_probe import probe_model
from fedethos.client.release_contract import check_reply
from fedethos.client.review import review_job
from fedethos.documents import load_job
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


Guarded = Callable[[Job, Path], list[tuple[str, str, str]]]


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Guarded:
    """``guarded(job, folder)`` simulates with the guards in between; returns (site, type of message, hash of reply) of what passed."""
    answer = app._answer

    def run(job: Job, out: Path) -> list[tuple[str, str, str]]:
        names = sorted(job.federation.sites)
        approvals = {name: approval_of(job, tmp_path, name) for name in names}
        passed: list[tuple[str, str, str]] = []

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
            passed.append((name, kind, reply.content.object_id))
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
    facts = probe_model(job, site_of("a"), tmp_path, declared_size=200)
    announced = review_job(job, site_of("a"), facts, LedgerState()).leaving
    passed = guarded(job, tmp_path / "run")
    trained, counted = ({sha256 for name, kind, sha256 in passed if (name, kind) == ("a", sent)} for sent in (TRAIN, EVALUATE))
    assert len(trained) == sum(row.times for row in announced if row.what.startswith("train"))
    assert 0 < len(counted) <= sum(row.times for row in announced if "counts" in row.what)
