"""Whole runs on real records: what they write, and that nothing about the engine changes the numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fairlearn.metrics import demographic_parity_difference, equalized_odds_difference
from peft import PeftModel
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import resume, simulate
from fedethos.simulations.virtual_sites import site_records

KEYS = {
    "name", "status", "rounds", "seconds", "engine", "basis", "oracle", "baseline", "metrics", "fairness", "privacy", "communication",
    "aggregation_error", "group_aware", "classes", "personal", "scenarios",
}  # fmt: skip
METRICS = {"accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy"}


def run(job_file: Path, out: Path, *overrides: str, wire: bool = False) -> dict[str, object]:
    simulate(load_job(job_file, overrides), out, base=job_file.parent, observer=Silent(), wire=wire)
    return json.loads((out / "result.json").read_text())


def without_time(result: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in result.items() if key != "seconds"}


def adapter(out: Path) -> dict[str, np.ndarray]:
    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def private_run(write_job, tmp_path: Path) -> tuple[Path, Path, dict[str, object]]:
    job_file = write_job()
    return job_file, tmp_path / "run", run(job_file, tmp_path / "run")


def test_result_has_every_key_and_says_what_its_numbers_are(private_run) -> None:
    _, out, result = private_run
    assert set(result) == KEYS
    assert set(result["metrics"]) == set(result["oracle"]["metrics"]) == METRICS | {"response_perplexity"}
    assert result["metrics"]["response_perplexity"] is result["oracle"]["metrics"]["response_perplexity"] is None  # of language models
    assert (result["basis"], result["engine"], result["status"], result["rounds"]) == ("released", "inprocess", "completed", 3)
    assert all(0 < site["epsilon"] <= 8.0 and site["steps"] == 9 for site in result["privacy"]["sites"].values())
    assert result["privacy"]["secure_rng"] is False
    manifest = json.loads((out / "manifest.json").read_text())
    assert any("not a guarantee" in mark for mark in manifest["marks"])
    assert "Epsilon covers training and every count" in (out / "report.html").read_text()
    assert result["baseline"] == {}  # its counts would be a second charge
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    spent = [line["epsilon"]["site-1"] for line in lines[1:]]
    assert spent == sorted(spent)
    assert not any("/" in str(value) for value in (result["name"], result["engine"]))
    assert str(out.parent) not in (out / "result.json").read_text() + (out / "manifest.json").read_text()


def test_plain_peft_reproduces_the_metrics_that_fairlearn_computes(private_run, tiny_base: Path) -> None:
    """The saved adapter on the untouched base, outside of fedethos, and fairlearn on its predictions: equal to the oracle."""
    job_file, out, result = private_run
    job = load_job(job_file)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=2)
    model = PeftModel.from_pretrained(base, out / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    test = [splits["test"] for splits in site_records(job, job_file.parent).values()]
    texts = [text for records in test for text in records.text]
    truth = np.concatenate([records.label for records in test])
    sex = np.concatenate([records.groups["sex"] for records in test])
    with torch.inference_mode():
        batch = tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
        logits = model(**batch).logits.double().numpy()
    log_odds = logits[:, 1] - logits[:, 0]
    threshold = json.loads((out / "fairness.json").read_text())["threshold"]["log_odds"]
    predicted = (log_odds >= threshold).astype(int)

    oracle = result["oracle"]
    assert oracle["people"]["test"] == len(truth)
    assert oracle["metrics"]["accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-12)
    assert oracle["metrics"]["f1"] == pytest.approx(f1_score(truth, predicted), abs=1e-12)
    assert oracle["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(truth, log_odds), abs=1e-6)
    by_sex = oracle["fairness"]["sex"]
    assert by_sex["demographic_parity_difference"] == pytest.approx(
        demographic_parity_difference(truth, predicted, sensitive_features=sex), abs=1e-12
    )
    assert by_sex["equalized_odds_difference"] == pytest.approx(
        equalized_odds_difference(truth, predicted, sensitive_features=sex), abs=1e-12
    )


def test_released_values_carry_noise_and_their_intervals_hold_the_exact_ones(private_run) -> None:
    _, out, result = private_run
    for name in ("accuracy", "balanced_accuracy"):
        released, exact = result["metrics"][name], result["oracle"]["metrics"][name]
        assert released["value"] != exact
        assert released["low"] <= exact <= released["high"]
    state, _ = read_ledger(out / "ledger.sqlite")
    for account in state.accounts.values():
        (plan,) = account.plans.values()
        assert {one.purpose: one.times for one in plan.drawn} == {"train": 3, "scores/validation": 1, "groups+scores/test": 1}
        assert not plan.left  # everything that was planned was released, nothing else


def test_serialised_messages_give_the_same_run(private_run, tmp_path: Path) -> None:
    job_file, out, result = private_run
    assert without_time(run(job_file, tmp_path / "wire", wire=True)) == without_time(result)
    assert (tmp_path / "wire/adapter/adapter_model.safetensors").read_bytes() == (out / "adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("override", ["training.cache_frozen_prefix=off", "privacy.engine=opacus", "training.micro_batch_tokens=100"])
def test_how_it_is_computed_does_not_change_the_adapter(private_run, tmp_path: Path, override: str) -> None:
    job_file, out, _ = private_run
    run(job_file, tmp_path / "other", override)
    other, usual = adapter(tmp_path / "other"), adapter(out)
    for name in usual:
        np.testing.assert_allclose(other[name], usual[name], atol=1e-5, err_msg=name)


def test_adapter_dropout_is_on_in_training_and_repeats_with_the_seed(private_run, tmp_path: Path) -> None:
    job_file, out, _ = private_run
    run(job_file, tmp_path / "one", "lora.lora_dropout=0.5", "privacy.engine=opacus")
    run(job_file, tmp_path / "two", "lora.lora_dropout=0.5", "privacy.engine=opacus")
    one, two, without = adapter(tmp_path / "one"), adapter(tmp_path / "two"), adapter(out)
    assert all((one[name] == two[name]).all() for name in one)
    assert any(np.abs(one[name] - without[name]).max() > 1e-4 for name in one)


def test_another_seed_gives_another_run(private_run, tmp_path: Path) -> None:
    job_file, out, _ = private_run
    run(job_file, tmp_path / "other", "simulation.seed=4")
    assert any((adapter(out)[name] != array).any() for name, array in adapter(tmp_path / "other").items())


def test_without_privacy_sites_send_exact_counts_and_every_page_says_so(write_job, tmp_path: Path) -> None:
    out = tmp_path / "open"
    job_file = write_job(privacy={"mode": "none", "epsilon": None}, training={"local_steps": 30, "head_learning_rate": 0.2})
    result = run(job_file, out)
    assert result["basis"] == "unprotected"
    for name in METRICS - {"roc_auc", "worst_group_accuracy"}:  # the AUC of sent counts is binned
        assert result["metrics"][name]["value"] == pytest.approx(result["oracle"]["metrics"][name], abs=1e-12)
    assert result["metrics"]["roc_auc"]["value"] == pytest.approx(result["oracle"]["metrics"]["roc_auc"], abs=0.05)
    assert all(site["epsilon"] is None for site in result["privacy"]["sites"].values())
    assert "No privacy protection" in (out / "report.html").read_text()
    assert any("No privacy protection" in mark for mark in json.loads((out / "manifest.json").read_text())["marks"])


def test_flowers_fedadam_runs_unchanged_and_survives_a_resume(write_job, tmp_path: Path) -> None:
    job_file = write_job(federation={"rounds": 3, "min_sites": 2, "server_optimizer": "fedadam", "aggregation": "fedavg"})
    whole = run(job_file, tmp_path / "whole")
    assert whole["aggregation_error"] > 0  # A and B averaged apart

    class Interrupt(Silent):
        def round_started(self, round: int, rounds: int, sites: object) -> None:
            if round == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(load_job(job_file), tmp_path / "cut", base=tmp_path, observer=Interrupt())
    resume(tmp_path / "cut", observer=Silent())
    assert without_time(json.loads((tmp_path / "cut/result.json").read_text())) == without_time(whole)


def test_early_stop_ends_the_run_and_says_so(write_job, tmp_path: Path) -> None:
    stop = {"metric": "accuracy", "patience": 1, "min_delta": 0.9}
    result = run(write_job(federation={"rounds": 9, "min_sites": 2, "early_stop": stop}), tmp_path / "run")
    assert (result["status"], result["rounds"]) == ("stopped", 2)
    assert all(site["steps"] == 6 for site in result["privacy"]["sites"].values())


def test_a_sampled_cohort_leaves_the_others_unspent(write_job, tmp_path: Path) -> None:
    job_file = write_job(federation={"rounds": 1, "min_sites": 1, "fraction": 0.34})
    sites = run(job_file, tmp_path / "run")["privacy"]["sites"]
    assert sorted(site["steps"] for site in sites.values()) == [0, 3, 3]  # ceil(.34 * 3) = 2 of 3


def test_a_folder_with_a_run_is_refused_and_a_complete_run_is_not_resumed(private_run) -> None:
    job_file, out, _ = private_run
    before = (out / "result.json").read_bytes()
    with pytest.raises(FedethosError, match="RUN-901"):
        run(job_file, out)
    with pytest.raises(FedethosError, match="RUN-932"):
        resume(out, observer=Silent())
    assert (out / "result.json").read_bytes() == before


def test_a_refused_start_leaves_no_run_behind(write_job, tmp_path: Path) -> None:
    for _ in range(2):  # the second time is no RUN-901
        with pytest.raises(FedethosError, match="SEC-601"):
            run(write_job(model={"sha256": "0" * 64}), tmp_path / "run")
    assert not RunFolder(tmp_path / "run").holds_run()


def test_a_site_without_a_label_is_a_clear_error(write_job, tmp_path: Path) -> None:
    job_file = write_job(simulation={"sites": 40, "partition": {"kind": "dirichlet", "by": "label", "alpha": 0.05}, "seed": 3})
    with pytest.raises(FedethosError, match=r"DATA-13[56]"):
        run(job_file, tmp_path / "run")
