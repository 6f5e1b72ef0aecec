"""Whole runs with personal adapters (Ditto), against Li et al.'s algorithm 1 written out in NumPy, and what a run shows of them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from sklearn.metrics import accuracy_score
from tests.simulations.tabular import TABULAR
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedethos.cli import run as command
from fedethos.documents import load_job
from fedethos.models.tabular import load_tabular
from fedethos.privacy.composition import epsilon
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import resume, simulate
from fedethos.simulations.virtual_sites import site_records

TRAINED = {**TABULAR, "federation": {"rounds": 3, "min_sites": 2}}
OPEN = {"mode": "none", "epsilon": None}


@pytest.fixture
def job_file(write_job) -> Path:
    return write_job(**TRAINED, training={"local_steps": 3, "learning_rate": 0.05})


def run(job_file: Path, out: Path, *overrides: str, observer: Silent | None = None) -> dict[str, object]:
    simulate(load_job(job_file, overrides), out, base=job_file.parent, observer=observer or Silent(), wire=True)
    return result(out)


def result(out: Path) -> dict[str, object]:
    return {key: value for key, value in json.loads((out / "result.json").read_text()).items() if key != "seconds"}


def personal_weights(out: Path, site: int) -> np.ndarray:
    layer = load_tabular(out / "personal" / str(site) / "adapter").layers[0]
    return np.column_stack([layer.weight.detach().numpy(), layer.bias.detach().numpy()])


def gradient(x: np.ndarray, y: np.ndarray, w: np.ndarray, size: int) -> np.ndarray:
    """Of the softmax regression's summed loss over ``size``, float64."""
    odds = np.exp(x @ w.T)
    return (odds / odds.sum(1, keepdims=True) - np.eye(2)[y]).T @ x / size


def test_every_sites_adapter_is_ditto_by_hand(write_job, tmp_path: Path) -> None:
    """v <- v - eta (grad F(v) + lambda (v - w_t)) on full batches, w_t the weighted mean of plain gradient descent at the sites."""
    training = {"local_steps": 3, "batch_size": 1_000_000, "optimizer": "sgd", "learning_rate": 0.4}
    own = {"proximal_mu": 0.7, "local_steps": 4, "learning_rate": 0.3}
    job_file = write_job(**TRAINED, training={**training, "personal": own}, privacy=OPEN, robustness={"weight_cap": 1.0})
    run(job_file, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())["sites"]
    people = {}
    for name, splits in site_records(load_job(job_file), job_file.parent).items():
        train = splits["train"]
        people[name] = np.column_stack([train.features.astype(np.float64), np.ones(len(train))]), train.label, manifest[name]
    shared = np.zeros((2, next(iter(people.values()))[0].shape[1]))
    personal = dict.fromkeys(people, shared)
    for _ in range(3):
        updates = []
        for name, (x, y, site) in people.items():
            local, mine = shared, personal[name]
            for _ in range(3):
                local = local - 0.4 * gradient(x, y, local, site["declared_size"])
            for _ in range(4):
                mine = mine - 0.3 * (gradient(x, y, mine, site["declared_size"]) + 0.7 * (mine - shared))
            personal[name] = mine
            updates.append(site["weight"] * local)
        shared = np.sum(updates, axis=0)
    for number, name in enumerate(sorted(people), start=1):
        np.testing.assert_allclose(personal_weights(tmp_path / "run", number), personal[name], atol=2e-6)


def test_where_sites_disagree_a_personal_adapter_is_right_and_a_stronger_pull_keeps_it_nearer_to_the_global_one(
    write_job, tmp_path: Path
) -> None:
    """Two sites whose labels follow the same number with opposite signs: one model for both can only guess."""
    rng = np.random.default_rng(0)
    site, x = np.repeat(["north", "south"], 300), rng.normal(size=600)
    label = np.where((x > 0) == (site == "north"), "yes", "no")
    rows = "\n".join(f"{a:.6f},{b},{c},{d}" for a, b, c, d in zip(x, label, site, rng.choice(["f", "m"], 600), strict=True))
    (tmp_path / "rows.csv").write_text(f"x,y,site,sex\n{rows}\n")
    data = {"path": str(tmp_path / "rows.csv"), "text": None, "features": {"x": {"mean": 0.0, "scale": 1.0}}}
    data |= {"label": {"column": "y", "values": ["no", "yes"], "favorable": "yes"}, "sensitive": {"sex": ["f", "m"]}}
    accuracy, distance = [], []
    for mu in (0.0, 1.0, 30.0):
        job_file = write_job(
            **{**TRAINED, "data": data},
            training={"local_steps": 10, "optimizer": "sgd", "learning_rate": 0.03, "personal": {"proximal_mu": mu}},
            privacy=OPEN,
            simulation={"sites": 2, "partition": {"kind": "by-column", "by": "site"}},
        )
        out = tmp_path / f"mu-{mu:g}"
        shown = run(job_file, out)
        accuracy.append((shown["oracle"]["metrics"]["accuracy"], shown["personal"]["oracle"]["metrics"]["accuracy"]))
        layer = load_tabular(out / "adapter").layers[0].weight.detach().numpy()
        distance.append(np.linalg.norm(personal_weights(out, 1)[:, :-1] - layer))
    assert all(shared < 0.65 for shared, _ in accuracy)
    assert all(own > 0.95 for _, own in accuracy[:2])
    assert distance[0] > 1.3 * distance[1] > 1.7 * distance[2]


def test_the_exact_figures_are_those_of_each_sites_adapter_on_its_own_people(job_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = run(job_file, out, "privacy.mode=none", "privacy.epsilon=null", "training.personal={}", "fairness.thresholds=fixed")["personal"]
    wrong, total = 0.0, 0
    for number, (name, splits) in enumerate(sorted(site_records(load_job(job_file), job_file.parent).items()), start=1):
        test, w = splits["test"], personal_weights(out, number)
        scores = np.column_stack([test.features, np.ones(len(test))]) @ w.T
        accuracy = accuracy_score(test.label, scores[:, 1] > scores[:, 0])
        assert shown["oracle"]["sites"][name]["personal_accuracy"] == pytest.approx(accuracy, abs=1e-12)
        wrong, total = wrong + (1 - accuracy) * len(test), total + len(test)
    assert shown["oracle"]["metrics"]["accuracy"] == pytest.approx(1 - wrong / total, abs=1e-12)
    assert shown["metrics"]["accuracy"]["abstained"] and shown["fairness"] == {}  # no site sent a count of them


@pytest.mark.parametrize("mode", [[], ["privacy.mode=none", "privacy.epsilon=null"]])
def test_beside_personal_adapters_the_global_run_stays_as_it_was(job_file: Path, tmp_path: Path, mode: list[str]) -> None:
    plain = run(job_file, tmp_path / "plain", *mode)
    ditto = run(job_file, tmp_path / "ditto", *mode, "training.personal={}")
    assert ditto.pop("personal") is not None
    assert plain.pop("personal") is None
    assert ditto == plain  # metrics, epsilon, bytes


def test_released_counts_are_paid_planned_and_shown(job_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shown = run(job_file, out, "training.personal={release_counts: true}")
    (plan,) = read_ledger(out / "ledger.sqlite")[0].accounts["site-1"].plans.values()
    assert {one.purpose: one.times for one in plan.drawn} == {
        "train": 3,
        "scores/validation": 1,
        "groups+scores/test": 1,
        "personal-scores/validation": 1,
        "personal-groups+scores/test": 1,
    }
    assert sum(one.times * one.event.steps for one in plan.drawn if one.purpose == "train") == 2 * 3 * 3
    said = shown["privacy"]["sites"]["site-1"]["epsilon"]
    assert said == pytest.approx(epsilon(plan.drawn, delta=1e-5, adjacency="add-remove"), abs=1e-9)
    assert said <= 8.0
    item, exact = shown["personal"]["metrics"]["accuracy"], shown["personal"]["oracle"]["metrics"]["accuracy"]
    assert item["low"] <= exact <= item["high"]
    assert shown["personal"]["fairness"].keys() == {"sex"}
    assert "covers the personal adapters too" in RunFolder(out).read_privacy().statement


def test_unprotected_counts_are_the_exact_ones(job_file: Path, tmp_path: Path) -> None:
    mode = ["privacy.mode=none", "privacy.epsilon=null", "training.personal={release_counts: true}"]
    personal = run(job_file, tmp_path / "run", *mode)["personal"]
    exact = personal["oracle"]
    for name in ("accuracy", "balanced_accuracy", "f1"):
        assert personal["metrics"][name]["value"] == exact["metrics"][name]
    women = personal["fairness"]["sex"]["groups"]["Female"]
    assert women["selection_rate"]["value"] == exact["fairness"]["sex"]["groups"]["Female"]["selection_rate"]


class _StopsIn(Silent):
    """The process ends while the replies of a round come in: the sites have trained, the coordinator has not heard of all."""

    def __init__(self, round: int) -> None:
        self.left = round

    def round_started(self, round: int, rounds: int, sites: list[str]) -> None:
        self.left -= 1

    def site(self, name: str, state: str) -> None:
        if self.left == 0 and state == "sent":
            raise KeyboardInterrupt


@pytest.mark.parametrize("released", ["false", "true"])
@pytest.mark.parametrize("mode", [[], ["privacy.mode=none", "privacy.epsilon=null"]])
def test_an_interrupted_run_ends_with_the_same_personal_adapters(job_file: Path, tmp_path: Path, mode: list[str], released: str) -> None:
    job = [*mode, f"training.personal={{release_counts: {released}}}"]
    whole = run(job_file, tmp_path / "whole", *job)
    with pytest.raises(KeyboardInterrupt):
        run(job_file, tmp_path / "cut", *job, observer=_StopsIn(2))
    assert list((tmp_path / "cut/personal").glob("*/round-0002.safetensors"))  # a future that the checkpoint does not know
    resume(tmp_path / "cut", observer=Silent())
    assert result(tmp_path / "cut") == whole
    for site in (1, 2, 3):
        file = f"personal/{site}/adapter/model.safetensors"
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_terminal_and_report_show_both_side_by_side(job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, personal, cells in (
        ("kept", "{}", ("global, exact", "personal, exact", "Accuracy at site-3", "epsilon does not cover it")),
        ("released", "{release_counts: true}", ("global adapter", "personal adapters", "noisy counts of it")),
    ):
        out = tmp_path / name
        assert command(["simulate", str(job_file), "--out", str(out), "--set", f"training.personal={personal}"]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        page = " ".join((out / "report.html").read_text().split())
        assert all(cell in printed and cell in page for cell in cells), cells
    assert "Accuracy at site-3" in page  # the report shows exact values beside released ones


def test_force_deletes_the_personal_adapters_of_the_run_before_and_nothing_else(job_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(job_file, out, "training.personal={}")
    (out / "personal/1/notes.txt").write_text("mine")
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent(), force=True)
    assert [str(path.relative_to(out)) for path in sorted((out / "personal").rglob("*"))] == ["personal/1", "personal/1/notes.txt"]


def test_the_plan_says_how_many_steps_train(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said: Mapping[str, str] = {
        "{}": "3 steps, and 3 of the personal adapter, without noise",
        "{release_counts: true, local_steps: 7}": "3 steps, and 7 of the personal adapter, with noise",
    }
    for personal, words in said.items():
        assert command(["simulate", str(job_file), "--dry-run", "--set", f"training.personal={personal}"]) == 0
        assert words in capsys.readouterr().out


def test_the_privacy_plan_names_the_counts_of_personal_adapters_and_measures_the_global_one(
    job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(*overrides: str) -> str:
        assert command(["privacy", "plan", str(job_file), "--size", "4000", *(f"--set={one}" for one in overrides)]) == 0
        return capsys.readouterr().out

    personal = plan("training.personal={release_counts: true}")
    assert "scores and groups of the test people by the personal adapters once" in personal
    as_noisy = plan(
        "data.sensitive={sex: [Female, Male], race: [White, Black], marital_status: [Divorced, Widowed]}"
    )  # four tables in place of 2 + 2
    (mine,) = re.findall(r"sex  demographic-parity difference +±(\S+)", personal)
    (theirs,) = re.findall(r"sex +demographic-parity difference +±(\S+)", as_noisy)
    assert mine == theirs


@pytest.mark.parametrize("aggregation", ["ffa", "fedsb"])
def test_a_personal_lora_adapter_loads_with_plain_peft(write_job, tmp_path: Path, tiny_base: Path, aggregation: str) -> None:
    """Its scores on the site's test people are those that the run itself counted."""
    out = tmp_path / "run"
    federation = {"rounds": 2, "min_sites": 2, "aggregation": aggregation}
    training = {"local_steps": 2, "personal": {"learning_rate": 0.05}}
    job_file = write_job(training=training, federation=federation, fairness={"thresholds": "fixed"}, privacy=OPEN)
    shown = run(job_file, out)["personal"]["oracle"]["sites"]["site-2"]
    test = site_records(load_job(job_file), job_file.parent)["site-2"]["test"]
    base = AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=2)
    model = PeftModel.from_pretrained(base, out / "personal/2/adapter").eval()
    tokens = AutoTokenizer.from_pretrained(tiny_base)(list(test.text), truncation=True, max_length=48, padding=True, return_tensors="pt")
    with torch.inference_mode():
        predicted = model(**tokens).logits.argmax(dim=1).numpy()
    assert accuracy_score(test.label, predicted) == pytest.approx(shown["personal_accuracy"], abs=1.5 / len(test))
