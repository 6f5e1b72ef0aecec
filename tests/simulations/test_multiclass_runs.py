"""Whole runs with three labels and an intersection, against scikit-learn on the saved model's own predictions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from rich.console import Console
from sklearn.metrics import classification_report, confusion_matrix, roc_auc_score
from typer.testing import CliRunner

from fedethos.cli_plan import plan
from fedethos.console import print_summary
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.fairness.histograms import pool
from fedethos.fairness.precision import half_widths
from fedethos.governance.report import render_report
from fedethos.models.tabular import load_tabular
from fedethos.privacy.counts import plan_counts
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.server.measure import Measurement, describe, exact_layout, shapes_of
from fedethos.simulations.attacks import label_flipped
from fedethos.simulations.engine import simulate
from fedethos.simulations.forging import flattering
from fedethos.simulations.run_audit import audit_run
from fedethos.simulations.virtual_sites import site_records

LABELS = ["part", "full", "long"]
HOURS = {"<35": "part", ">=35,<45": "full", ">=45": "long"}


@pytest.fixture
def write_hours_job(tmp_path: Path, adult_rows: Path):
    """How long people work, from a linear model."""

    def write(**sections: dict[str, object]) -> Path:
        job = {
            "schema": "fedethos/job/v1",
            "name": "hours",
            "task": "tabular-classification",
            "model": {"path": "builtin:linear"},
            "data": {
                "path": str(adult_rows),
                "na_values": ["?", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other"],
                "map": {"hours_per_week": HOURS},
                "features": {
                    "age": {"low": 17, "high": 90},
                    "relationship": ["Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried"],
                },
                "label": {"column": "hours_per_week", "values": LABELS, "favorable": "full"},
                "sensitive": {"sex": ["Female", "Male"], "race": ["White", "Black"]},
                "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
            },
            "training": {"local_steps": 5, "batch_size": 64, "learning_rate": 0.05},
            "privacy": {"epsilon": 8.0},
            "fairness": {"thresholds": "fixed", "intersections": [["sex", "race"]]},
            "federation": {"rounds": 2, "min_sites": 1},
            "simulation": {"sites": 3, "partition": {"kind": "iid"}, "seed": 3},
        }
        for section, value in sections.items():
            job[section] = {**job[section], **value}
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    return write


def run(job_file: Path, out: Path, *overrides: str) -> dict[str, object]:
    simulate(load_job(job_file, overrides), out, base=job_file.parent, observer=Silent())
    return json.loads((out / "result.json").read_text())


def predictions_outside(job_file: Path, out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, logits and sex of the test people, from the saved model alone."""
    model = load_tabular(out / "adapter")
    test = [splits["test"] for splits in site_records(load_job(job_file), job_file.parent).values()]
    with torch.inference_mode():
        logits = model(features=torch.from_numpy(np.concatenate([records.features for records in test]))).double().numpy()
    return np.concatenate([records.label for records in test]), logits, np.concatenate([records.groups["sex"] for records in test])


def test_an_exact_run_equals_scikit_learn_on_the_saved_model(write_hours_job, tmp_path: Path) -> None:
    job_file, out = write_hours_job(privacy={"mode": "none", "epsilon": None}), tmp_path / "run"
    result = run(job_file, out)
    assert result["basis"] == "unprotected"
    truth, logits, sex = predictions_outside(job_file, out)
    predicted = logits.argmax(axis=1)
    report = classification_report(truth, predicted, output_dict=True, zero_division=0)
    others = np.logaddexp(logits[:, 0], logits[:, 2])
    for metrics in (result["oracle"]["metrics"], {name: one["value"] for name, one in result["metrics"].items() if one is not None}):
        assert metrics["accuracy"] == pytest.approx(report["accuracy"], abs=1e-12)
        assert metrics["balanced_accuracy"] == pytest.approx(report["macro avg"]["recall"], abs=1e-12)
    assert result["oracle"]["metrics"]["roc_auc"] == pytest.approx(roc_auc_score(truth == 1, logits[:, 1] - others), abs=1e-6)
    for place, label in enumerate(LABELS):
        exact, shown = result["oracle"]["classes"]["labels"][label], result["classes"]["labels"][label]
        assert exact["recall"] == pytest.approx(report[str(place)]["recall"], abs=1e-12) == shown["recall"]["value"]
        assert exact["count"] == shown["count"] == report[str(place)]["support"]
        women = (sex == 0) & (truth == place)
        by_sex = result["oracle"]["classes"]["fairness"]["sex"][label]["groups"]
        assert by_sex["Female"] == pytest.approx((predicted[women] == place).mean(), abs=1e-12)
    women = sex == 0
    favored = result["oracle"]["fairness"]["sex"]["groups"]["Female"]["selection_rate"]
    assert favored == pytest.approx((predicted[women] == 1).mean(), abs=1e-12)
    assert set(result["classes"]["fairness"]) == {"sex", "race", "sex*race"}
    assert json.loads((out / "fairness.json").read_text())["threshold"]["log_odds"] is None


def test_a_private_run_releases_counts_by_predicted_label_and_shows_them_everywhere(write_hours_job, tmp_path: Path, capsys) -> None:
    job_file, out = write_hours_job(), tmp_path / "run"
    result = run(job_file, out)
    (test,) = plan_counts(load_job(job_file))
    assert (test.population, test.release.tables) == ("test", 4)  # scores, sex, race, sex*race; a fixed rule needs no validation counts
    assert all(site["epsilon"] <= 8.0 for site in result["privacy"]["sites"].values())
    truth, logits, _ = predictions_outside(job_file, out)
    matrix = confusion_matrix(truth, logits.argmax(axis=1))
    for place, label in enumerate(LABELS):
        released, exact = result["classes"]["labels"][label], result["oracle"]["classes"]["labels"][label]
        assert exact["recall"] == pytest.approx(matrix[place, place] / matrix[place].sum(), abs=1e-12)
        assert released["recall"]["low"] <= exact["recall"] <= released["recall"]["high"]
        assert abs(released["count"] - exact["count"]) <= 60
    assert result["metrics"]["accuracy"]["value"] != result["oracle"]["metrics"]["accuracy"]  # noise
    page = render_report(out).read_text()
    for words in ("By label", "True-positive rate of each label by sex*race", "worst of them", "Female*Black", "full against the rest"):
        assert words in page
    console = Console(width=120)
    print_summary(RunFolder(out), console)
    said = capsys.readouterr().out
    assert "Worst-class recall" in said
    assert "Recall of long" in said


def test_early_stopping_watches_predictions_that_were_paid_for(write_hours_job, tmp_path: Path) -> None:
    job_file = write_hours_job(federation={"early_stop": {"metric": "balanced_accuracy", "patience": 2}})
    plans = {one.allotment.purpose: one.releases for one in plan_counts(load_job(job_file))}
    assert plans == {"groups+scores/test": 1, "scores/validation": 2, "groups/validation": 2}
    assert run(job_file, tmp_path / "run")["rounds"] == 2
    by_auc = load_job(job_file, ["federation.early_stop.metric=roc_auc"])
    assert {one.allotment.purpose for one in plan_counts(by_auc)} == {"groups+scores/test", "scores/validation"}


def test_the_audit_finds_the_paid_noise_in_counts_by_predicted_label(write_hours_job, tmp_path: Path) -> None:
    run(write_hours_job(), tmp_path / "run")
    found = audit_run(RunFolder(tmp_path / "run"), canaries=100, steps=None, claim=None, seed=1, observer=Silent())
    assert not found.audit.failed


@pytest.mark.parametrize("key", ["thresholds=pooled", "thresholds=equal_opportunity", "strategy=controller"])
def test_what_decides_or_steers_between_two_labels_is_refused(write_hours_job, key: str) -> None:
    with pytest.raises(FedethosError, match="CFG-364"):
        load_job(write_hours_job(), [f"fairness.{key}"])


def test_attacks_know_every_label(write_hours_job, tmp_path: Path) -> None:
    """Forged tables are everybody judged rightly; flipped labels are the next ones, nobody's own."""
    job = load_job(write_hours_job())
    forged = flattering({name: np.zeros(shape, dtype=np.int64) for name, shape in shapes_of(job, exact_layout(job)).items()}, 900, 1)
    summary = describe(Measurement(pool([forged], shapes_of(job, exact_layout(job)))), None, job)
    assert {summary.metrics[name].value for name in ("accuracy", "balanced_accuracy", "f1", "roc_auc")} == {1.0}
    assert summary.classes.worst_class_recall.value == 1.0
    records = site_records(job, tmp_path)["site-1"]["train"]
    assert label_flipped(records, 3).label.tolist() == [(label + 1) % 3 for label in records.label]


def test_the_plan_knows_the_cells_of_three_labels_and_the_shares_of_an_intersection(write_hours_job) -> None:
    """A selection rate is 3 cells of 9, a true positive rate 1 of 3: as independent numbers with those variances."""
    variance, people, shares = 50.0, 4000.0, [0.3, 0.7]
    widths = half_widths(shares, people, favorable_share=0.4, noise_variance=variance, labels=3)
    rng = np.random.default_rng(0)
    favored, right = [], []
    for size in people * np.array(shares):
        said, own = rng.binomial(int(size), 0.4, 20_000), rng.binomial(int(0.4 * size), 0.5, 20_000)
        noise = [rng.normal(0.0, np.sqrt(cells * variance), 20_000) for cells in (3, 6, 1, 2)]
        favored.append((said + noise[0]) / (size + noise[0] + noise[1]))
        right.append((own + noise[2]) / (0.4 * size + noise[2] + noise[3]))
    assert widths["demographic_parity_difference"] == pytest.approx(1.96 * np.std(favored[0] - favored[1]), rel=0.03)
    assert widths["equal_opportunity_difference"] == pytest.approx(1.96 * np.std(right[0] - right[1]), rel=0.03)

    app = typer.Typer()
    app.command()(plan)

    def crossed(*given: str) -> list[float]:
        told = CliRunner().invoke(app, [str(write_hours_job()), "--size", "1500", "--shares", "sex=1,3", "--json", *given])
        return [one["half_width"] for one in json.loads(told.stdout)["metrics"] if one["attribute"] == "sex*race"]

    assert crossed("--shares", "race=4,1") == pytest.approx(crossed("--shares", "sex*race=0.2,0.05,0.6,0.15"), rel=1e-9)
