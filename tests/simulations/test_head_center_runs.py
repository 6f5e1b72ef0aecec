"""Runs with a centred head: what leaves, what it costs, what is resumed, and what is exported."""

import json
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedethos.aggregation import HEAD_CENTER
from fedethos.client.head_center import head_inputs
from fedethos.client.text_classification import text_classification
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import Request
from fedethos.privacy.events import CENTER
from fedethos.privacy.ledger import Ledger
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.server.checkpoint import latest_checkpoint
from fedethos.simulations.engine import resume, simulate
from fedethos.simulations.evaluate import evaluate_run
from fedethos.simulations.virtual_sites import open_federation

SITES = {f"site-{number}": {"declared_size": 200} for number in (1, 2, 3)}


def job_of(write_job, *changes: str, **sections: object) -> Job:
    return load_job(write_job(training={"center_head": "on"}, **{"federation": {"sites": SITES}, **sections}), changes)


def run(job: Job, out: Path) -> dict[str, object]:
    simulate(job, out, base=out.parent, observer=Silent())
    return json.loads((out / "result.json").read_text())


def center_after(out: Path) -> np.ndarray:
    saved = latest_checkpoint(RunFolder(out).checkpoints, say=print)
    assert saved is not None
    return saved.arrays[HEAD_CENTER]


def test_it_is_the_mean_of_what_the_head_reads(write_job, tmp_path: Path) -> None:
    """With next to no noise: each site's mean around the public start, over its declared size; sites weigh by their share."""
    job = job_of(write_job, privacy={"epsilon": 50.0})
    run(job, tmp_path / "run")
    with open_federation(job, base=tmp_path, scratch=tmp_path, ledger=tmp_path / "other.sqlite", observer=Silent()) as federation:
        model = federation.model
        assert model.center is not None
        start, expected = model.read()[HEAD_CENTER].astype(np.float64), np.zeros(32)
        for node_id, node in federation.nodes.items():
            away = head_inputs(model, model.center, node.examples["train"], tokens=300) - start
            inside = np.minimum(1.0, model.center.bound / np.linalg.norm(away, axis=1))
            expected += federation.sites[node_id].share * (start + (inside[:, None] * away).sum(0) / node.declared_size)
    assert np.linalg.norm(center_after(tmp_path / "run") - expected) < 0.05 * np.linalg.norm(expected - start)


@pytest.mark.parametrize("engine", ["opacus", "fused"])
def test_what_is_exported_computes_what_was_trained(write_job, tmp_path: Path, engine: str) -> None:
    """The exact figures of the run's end are found again with the exported adapter, whose head has the centre folded in."""
    out = tmp_path / "run"
    result = run(job_of(write_job, privacy={"engine": engine}), out)
    assert HEAD_CENTER not in load_file(out / "adapter/adapter_model.safetensors")
    again = evaluate_run(RunFolder(out), "test", Silent()).as_json()
    assert again["metrics"]["roc_auc"]["value"] == pytest.approx(result["oracle"]["metrics"]["roc_auc"], abs=1e-6)
    manifest = json.loads((out / "manifest.json").read_text())
    assert HEAD_CENTER not in manifest["trainable"]


def test_both_engines_release_the_same_centre(write_job, tmp_path: Path) -> None:
    for engine in ("opacus", "fused"):
        run(job_of(write_job, "federation.rounds=1", privacy={"engine": engine}), tmp_path / engine)
    assert np.array_equal(center_after(tmp_path / "opacus"), center_after(tmp_path / "fused"))


def test_it_is_paid_once_and_the_whole_stays_within_the_budget(write_job, tmp_path: Path) -> None:
    job = job_of(write_job)
    result = run(job, tmp_path / "run")
    with Ledger(RunFolder(tmp_path / "run").ledger) as ledger:
        for account in ledger.accounts.values():
            (plan,) = account.plans.values()
            drawn = [one.purpose for one in plan.drawn]
            assert drawn.count(CENTER) == 1
    assert "mean of the head's input" in json.loads((tmp_path / "run/privacy.json").read_text())["statement"]
    assert all(site["epsilon"] <= 8.0 for site in result["privacy"]["sites"].values())
    lines = [json.loads(line) for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    assert 0 < lines[0]["epsilon"]["site-1"] < lines[1]["epsilon"]["site-1"]
    assert all(site["releases"] == 3 for site in result["privacy"]["sites"].values())  # rounds of training


@pytest.mark.parametrize("at", ["Measuring the model before training", "round 2"])
def test_a_run_that_was_cut_ends_with_the_same_numbers(write_job, tmp_path: Path, at: str) -> None:
    class Stop(Silent):
        def stage(self, what: str) -> None:
            if what == at:
                raise KeyboardInterrupt

        def round_started(self, round: int, rounds: int, sites: list[str]) -> None:
            if f"round {round}" == at:
                raise KeyboardInterrupt

    job = job_of(write_job)
    whole = run(job, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        simulate(job, tmp_path / "cut", base=tmp_path, observer=Stop())
    resume(tmp_path / "cut", observer=Silent())
    cut = json.loads((tmp_path / "cut/result.json").read_text())
    adapters = [(tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert adapters[0] == adapters[1]
    assert {key: value for key, value in cut.items() if key != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}


@pytest.mark.parametrize(
    "changes",
    [
        ["federation.aggregation=fedavg", "federation.server_optimizer=fedavgm"],
        ["federation.aggregation=fedavg", "federation.server_optimizer=fedadam"],
        ["federation.aggregation=rolora"],
        ["federation.aggregation=fedsb"],
        ["federation.aggregation=flora"],
        ["robustness.rule=median"],
        ["robustness.rule=norm-bound"],
    ],
)
def test_it_stays_where_it_was_under_every_rule(write_job, tmp_path: Path, changes: list[str]) -> None:
    job = job_of(write_job, "federation.rounds=2", *changes)
    run(job, tmp_path / "run")
    centers = [
        load_file(path)[name]
        for path in sorted(RunFolder(tmp_path / "run").checkpoints.rglob("*.safetensors"))
        for name in load_file(path)
        if name.endswith(HEAD_CENTER)
    ]
    assert len(centers) >= 2
    assert all(np.array_equal(center, centers[0]) for center in centers)
    evaluate_run(RunFolder(tmp_path / "run"), "test", Silent())


def test_a_job_without_it_has_no_round_zero(write_job, tmp_path: Path) -> None:
    job = load_job(write_job(federation={"sites": SITES}))
    with open_federation(job, base=tmp_path, scratch=tmp_path, ledger=tmp_path / "l.sqlite", observer=Silent()) as federation:
        node = next(iter(federation.nodes.values()))
        assert HEAD_CENTER not in node.model.exchanged_names
        with pytest.raises(FedethosError, match="SEC-631"):
            node.train(Request(job.sha256, job.name, 0, 0, node.model.read()))


def test_on_needs_privacy(write_job) -> None:
    with pytest.raises(FedethosError, match="CFG-253"):
        job_of(write_job, privacy={"mode": "none", "epsilon": None})


def test_what_is_centred_unasked_is_a_fresh_head_that_can_be(write_job, tiny_base: Path, tiny_language_base: Path, tmp_path: Path) -> None:
    """A head that the base brings would read other numbers than it was trained on; a decoder's has no bias for the centre."""
    trained = tmp_path / "trained"
    with warnings.catch_warnings(action="ignore"):
        AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=2).save_pretrained(trained)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(trained)
    few = {"rounds": 5, "sites": SITES}
    for base, centered in ((tiny_base, True), (trained, False), (tiny_language_base, False)):
        job = load_job(write_job(federation=few, model={"path": str(base)}, lora={"layers_to_transform": [0]}))
        assert job.center_head
        with ExitStack() as resources:
            task = text_classification(job, base=tmp_path, scratch=tmp_path, resources=resources)
            assert (task.model.center is not None) is centered
            assert (HEAD_CENTER in task.model.read()) is centered


def test_a_run_of_small_sites_releases_the_centre_unasked(write_job, tmp_path: Path) -> None:
    job = load_job(write_job(federation={"rounds": 5, "sites": SITES}))
    run(job, tmp_path / "run")
    assert center_after(tmp_path / "run").any()
    said = json.loads((tmp_path / "run/privacy.json").read_text())
    assert "the mean of the head's input" in said["statement"]
    assert all(7.5 < site["epsilon"] <= 8.0 for site in said["sites"].values())


def test_a_run_without_a_head_to_centre_releases_none_and_says_so(write_job, tiny_language_base: Path, tmp_path: Path) -> None:
    sections = {"model": {"path": str(tiny_language_base)}, "lora": {"layers_to_transform": [0]}}
    job = load_job(write_job(federation={"rounds": 5, "sites": SITES}, **sections))
    run(job, tmp_path / "run")
    assert "head's input" not in json.loads((tmp_path / "run/privacy.json").read_text())["statement"]
