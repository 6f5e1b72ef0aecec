"""Whole tabular runs on real records, against gradient descent written out in NumPy."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from sklearn.metrics import accuracy_score, roc_auc_score

from fedethos.documents import load_job
from fedethos.models.tabular import Architecture, load_tabular
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import resume, simulate
from fedethos.simulations.run_audit import audit_run
from fedethos.simulations.virtual_sites import read_records, site_records

Writer = Callable[..., Path]
OPEN = {"privacy": {"mode": "none", "epsilon": None}}


@pytest.fixture
def tabular_job(tmp_path: Path, adult_rows: Path) -> Writer:
    """A job of three sites with the linear model; a keyword replaces keys of that section."""

    def write(**sections: dict[str, object]) -> Path:
        job: dict[str, dict[str, object] | str] = {
            "schema": "fedethos/job/v1",
            "name": "small",
            "task": "tabular-classification",
            "model": {"path": "builtin:linear"},
            "data": {
                "path": str(adult_rows),
                "na_values": ["?"],
                "features": {
                    "age": {"low": 17, "high": 90},
                    "education_num": {"mean": 10.0, "scale": 2.5},
                    "capital_gain": {"low": 0, "high": 99999, "log": True},
                    "relationship": ["Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried"],
                },
                "label": {"column": "income", "values": ["<=50K", ">50K"], "favorable": ">50K"},
                "sensitive": {"sex": ["Female", "Male"]},
                "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
            },
            "training": {"local_steps": 3, "batch_size": 64, "learning_rate": 0.05},
            "privacy": {"epsilon": 8.0},
            "federation": {"rounds": 3, "min_sites": 1},
            "simulation": {"sites": 3, "partition": {"kind": "dirichlet", "by": "sex", "alpha": 2.0}, "seed": 3},
        }
        for section, value in sections.items():
            job[section] = {**job[section], **value}  # type: ignore[dict-item]
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    return write


def run(job_file: Path, out: Path, *overrides: str) -> dict[str, object]:
    simulate(load_job(job_file, overrides), out, base=job_file.parent, observer=Silent())
    return json.loads((out / "result.json").read_text())


def weights(out: Path) -> dict[str, np.ndarray]:
    return load_file(out / "adapter" / "model.safetensors")


def gradient_descent(x: np.ndarray, y: np.ndarray, *, steps: int, rate: float, divisor: float) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression from zero, float64: the sum of all gradients over ``divisor``, ``steps`` times."""
    weight, bias = np.zeros((2, x.shape[1])), np.zeros(2)
    for _ in range(steps):
        logits = x @ weight.T + bias
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        residual = probabilities - np.eye(2)[y]
        weight -= rate * residual.T @ x / divisor
        bias -= rate * residual.sum(0) / divisor
    return weight, bias


@pytest.mark.parametrize("sites", [1, 3])
def test_full_batches_without_privacy_are_gradient_descent_and_its_weighted_average(
    tabular_job: Writer, tmp_path: Path, sites: int
) -> None:
    job_file = tabular_job(
        **OPEN,
        training={"local_steps": 12, "batch_size": 1_000_000, "optimizer": "sgd", "learning_rate": 0.5},
        federation={"rounds": 1, "min_sites": 1},
        simulation={"sites": sites},
    )
    run(job_file, tmp_path / "run", "robustness.weight_cap=1.0")
    declared = json.loads((tmp_path / "run/manifest.json").read_text())["sites"]
    total = sum(site["declared_size"] for site in declared.values())
    expected_weight, expected_bias = 0.0, 0.0
    for name, splits in site_records(load_job(job_file), job_file.parent).items():
        train, size = splits["train"], declared[name]["declared_size"]
        weight, bias = gradient_descent(train.features.astype(np.float64), train.label, steps=12, rate=0.5, divisor=size)
        expected_weight, expected_bias = expected_weight + size / total * weight, expected_bias + size / total * bias
    trained = weights(tmp_path / "run")
    np.testing.assert_allclose(trained["layers.0.weight"], expected_weight, atol=1e-5)
    np.testing.assert_allclose(trained["layers.0.bias"], expected_bias, atol=1e-5)


def test_fedprox_and_server_momentum_are_their_papers_equations(tabular_job: Writer, tmp_path: Path) -> None:
    """One site, two rounds: local steps with the gradient + mu (w - w_global); then m <- beta m + (w_global - w), w_global - eta m."""
    rate, mu, beta, eta = 0.5, 0.8, 0.5, 0.9
    job_file = tabular_job(
        **OPEN,
        training={"local_steps": 4, "batch_size": 1_000_000, "optimizer": "sgd", "learning_rate": rate, "proximal_mu": mu},
        federation={"rounds": 2, "server_optimizer": "fedavgm", "server_momentum": beta, "server_learning_rate": eta},
        simulation={"sites": 1},
    )
    run(job_file, tmp_path / "run", "robustness.weight_cap=1.0")
    (site,) = json.loads((tmp_path / "run/manifest.json").read_text())["sites"].values()
    (splits,) = site_records(load_job(job_file), job_file.parent).values()
    x = np.column_stack([splits["train"].features.astype(np.float64), np.ones(len(splits["train"].label))])
    sent, momentum = np.zeros((2, x.shape[1])), np.zeros((2, x.shape[1]))
    for _ in range(2):
        local = sent.copy()
        for _ in range(4):
            odds = np.exp(x @ local.T)
            residual = odds / odds.sum(1, keepdims=True) - np.eye(2)[splits["train"].label]
            local -= rate * (residual.T @ x / site["declared_size"] + mu * (local - sent))
        momentum = beta * momentum + (sent - local)
        sent = sent - eta * momentum
    trained = weights(tmp_path / "run")
    np.testing.assert_allclose(np.column_stack([trained["layers.0.weight"], trained["layers.0.bias"]]), sent, atol=1e-5)


@pytest.mark.parametrize("model", [{"path": "builtin:linear"}, {"path": "builtin:mlp", "hidden": [8]}])
def test_the_fused_engine_gives_the_model_that_opacus_gives(tabular_job: Writer, tmp_path: Path, model: dict[str, object]) -> None:
    job_file = tabular_job(model=model, training={"optimizer": "sgd", "learning_rate": 0.5}, privacy={"epsilon": 40.0})
    run(job_file, tmp_path / "fused")
    run(job_file, tmp_path / "opacus", "privacy.engine=opacus", "training.micro_batch_tokens=10")
    fused, opacus = weights(tmp_path / "fused"), weights(tmp_path / "opacus")
    assert all(np.abs(array).max() > 1e-3 for array in fused.values())
    for name in fused:
        np.testing.assert_allclose(fused[name], opacus[name], atol=1e-5, err_msg=name)


@pytest.fixture
def private_run(tabular_job: Writer, tmp_path: Path) -> tuple[Path, Path, dict[str, object]]:
    job_file = tabular_job()
    return job_file, tmp_path / "run", run(job_file, tmp_path / "run")


def test_a_private_run_is_charged_and_its_documents_speak_of_its_model(private_run: tuple[Path, Path, dict[str, object]]) -> None:
    job_file, out, result = private_run
    assert result["basis"] == "released"
    assert all(0 < site["epsilon"] <= 8.0 and site["steps"] == 9 for site in result["privacy"]["sites"].values())
    state, _ = read_ledger(out / "ledger.sqlite")
    for account in state.accounts.values():
        (plan,) = account.plans.values()
        assert {one.purpose: one.times for one in plan.drawn} == {"train": 3, "scores/validation": 1, "groups+scores/test": 1}
    manifest = json.loads((out / "manifest.json").read_text())
    architecture = Architecture.of(load_job(job_file)).sha256
    assert manifest["base_model"] == {"path": "builtin:linear", "sha256": architecture, "weights_sha256": None}
    assert manifest["trainable_parameters"] == 2 * (13 + 1)  # 3 numbers and 6 categories, 4 indicators
    page = (out / "report.html").read_text()
    assert "the whole model, 13 inputs from 4 columns, aggregated with fedavg" in page
    assert "LoRA" not in page
    assert result["aggregation_error"] == 0.0


def test_the_saved_model_reproduces_the_metrics_outside_of_fedethos(private_run: tuple[Path, Path, dict[str, object]]) -> None:
    job_file, out, result = private_run
    model = load_tabular(out / "adapter")
    test = [splits["test"] for splits in site_records(load_job(job_file), job_file.parent).values()]
    truth = np.concatenate([records.label for records in test])
    with torch.inference_mode():
        # site by site: equal records stay equal to the last bit, and ties decide the AUC of so few people
        logits = np.concatenate([model(features=torch.from_numpy(records.features)).double().numpy() for records in test])
    log_odds = logits[:, 1] - logits[:, 0]
    threshold = json.loads((out / "fairness.json").read_text())["threshold"]["log_odds"]
    assert result["oracle"]["metrics"]["accuracy"] == pytest.approx(accuracy_score(truth, log_odds >= threshold), abs=1e-12)
    assert result["oracle"]["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(truth, log_odds), abs=1e-6)


def test_a_resumed_run_ends_with_the_same_bytes(tabular_job: Writer, tmp_path: Path) -> None:
    job_file = tabular_job(model={"path": "builtin:mlp", "hidden": [8]})
    whole = run(job_file, tmp_path / "whole")

    class Interrupt(Silent):
        def round_started(self, round: int, rounds: int, sites: object) -> None:
            if round == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(load_job(job_file), tmp_path / "cut", base=tmp_path, observer=Interrupt())
    resume(tmp_path / "cut", observer=Silent())
    resumed = json.loads((tmp_path / "cut/result.json").read_text())
    assert {**resumed, "seconds": 0} == {**whole, "seconds": 0}
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "cut/adapter" / name).read_bytes() == (tmp_path / "whole/adapter" / name).read_bytes()


def test_records_that_were_read_before_give_the_same_run(
    tabular_job: Writer, adult_rows: Path, tmp_path: Path, private_run: tuple[Path, Path, dict[str, object]]
) -> None:
    _, out, _ = private_run
    copy = tmp_path / "rows.csv"
    copy.write_bytes(adult_rows.read_bytes())
    job = load_job(tabular_job(data={"path": str(copy)}))
    records = read_records(job, tmp_path)
    copy.unlink()
    simulate(job, tmp_path / "again", base=tmp_path, observer=Silent(), records=records)
    assert (tmp_path / "again/adapter/model.safetensors").read_bytes() == (out / "adapter/model.safetensors").read_bytes()


def test_a_force_run_leaves_nothing_of_the_run_before(private_run: tuple[Path, Path, dict[str, object]]) -> None:
    _, out, _ = private_run
    folder = RunFolder(out)
    with folder.create(force=True):
        folder.discard()
    assert not list(out.glob("adapter*"))


@pytest.mark.parametrize("model", [{"path": "builtin:linear"}, {"path": "builtin:mlp", "hidden": [8]}])
def test_the_audit_finds_nothing_against_a_tabular_run(tabular_job: Writer, tmp_path: Path, model: dict[str, object]) -> None:
    run(tabular_job(model=model), tmp_path / "run")
    found = audit_run(RunFolder(tmp_path / "run"), canaries=100, steps=None, claim=None, seed=1, observer=Silent())
    assert not found.audit.refuted
    assert not found.audit.failed
