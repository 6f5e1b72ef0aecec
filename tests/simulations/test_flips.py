"""``fedethos evaluate``: planted models in a real run folder, copies in a real run, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from fedethos.cli import run
from fedethos.data.features import feature_names
from fedethos.documents import load_job
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import simulate
from fedethos.simulations.run_audit import audit_run
from fedethos.simulations.virtual_sites import open_federation, same_records, site_records

FEATURES = {
    "age": {"low": 17, "high": 90},
    "sex": ["Female", "Male"],
    "relationship": ["Wife", "Own-child", "Husband", "Not-in-family", "Other-relative", "Unmarried"],
}


@pytest.fixture(scope="module")
def tabular(tmp_path_factory: pytest.TempPathFactory, adult_rows: Path) -> Callable[..., Path]:
    """Write a tabular job; a keyword replaces keys of that section."""

    def write(**sections: dict[str, object]) -> Path:
        job: dict[str, object] = {
            "schema": "fedethos/job/v1",
            "name": "planted",
            "task": "tabular-classification",
            "model": {"path": "builtin:linear"},
            "data": {
                "path": str(adult_rows),
                "na_values": ["?"],
                "features": FEATURES,
                "label": {"column": "income", "values": ["<=50K", ">50K"], "favorable": ">50K"},
                "sensitive": {"sex": ["Female", "Male"], "race": ["White", "Black", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other"]},
                "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
            },
            "training": {"local_steps": 2, "batch_size": 64, "learning_rate": 0.05},
            "privacy": {"epsilon": 8.0},
            "fairness": {"thresholds": "fixed"},
            "federation": {"rounds": 2, "min_sites": 1},
            "simulation": {"sites": 2, "partition": {"kind": "iid"}, "seed": 3},
        }
        for section, value in sections.items():
            job[section] = {**job[section], **value}  # type: ignore[dict-item]
        path = tmp_path_factory.mktemp("job") / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    return write


@pytest.fixture(scope="module")
def planted(tabular: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, float]], Path]:
    """The folder of one finished run, whose weights are then replaced: log-odds are the sum of the named inputs' weights."""
    out, job_file = tmp_path_factory.mktemp("runs") / "run", tabular()
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent())
    names = feature_names(load_job(job_file).data.features or {})

    def plant(weights: dict[str, float]) -> Path:
        path = out / "adapter/model.safetensors"
        tensors = {name: np.zeros_like(array) for name, array in load_file(path).items()}
        for name, weight in weights.items():
            tensors["layers.0.weight"][1, names.index(name)] = weight
        save_file(tensors, path)
        return out

    return plant


def flipped(folder: Path, *options: str) -> dict[str, dict[str, object]]:
    assert run(["evaluate", str(folder), "--flip", *options]) == 0
    found = json.loads((folder / "flips.json").read_text())
    assert found["basis"] == "oracle"
    return found["attributes"]


def test_a_model_that_reads_only_the_attribute_always_flips(planted: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = planted({"sex = Male": 2.0, "sex = Female": -2.0})
    sex = flipped(folder)["sex"]
    assert sex["flip_rate"]["value"] == 1.0
    assert sex["swapped_share"]["value"] == 1.0
    men, women = sex["groups"]["Male"], sex["groups"]["Female"]
    assert (men["favorable_to_unfavorable"]["value"], men["unfavorable_to_favorable"]["value"]) == (1.0, 0.0)
    assert (women["favorable_to_unfavorable"]["value"], women["unfavorable_to_favorable"]["value"]) == (0.0, 1.0)
    assert men["records"] + women["records"] == sex["records"]
    change = 1 / (1 + np.exp(-2)) - 1 / (1 + np.exp(2))
    assert sex["mean_absolute_score_change"]["value"] == pytest.approx(change, abs=1e-6)
    assert "1.000 (" in capsys.readouterr().out


def test_a_model_that_reads_something_else_never_flips(planted: Callable[..., Path]) -> None:
    sex = flipped(planted({"age": 5.0, "relationship = Own-child": -4.0}), "--terms", "builtin:sex")["sex"]
    assert sex["flip_rate"]["value"] == 0.0
    assert sex["mean_absolute_score_change"]["value"] == 0.0
    assert sex["swapped"] == sex["records"] > 0


def test_terms_reach_what_the_sensitive_column_does_not(planted: Callable[..., Path]) -> None:
    """The model hires husbands: without terms the relationship stays as it is, with them husbands read as wives."""
    folder = planted({"relationship = Husband": 2.0, "relationship = Wife": -2.0, "age": -1e-3})
    assert flipped(folder, "--attribute", "sex")["sex"]["flip_rate"]["value"] == 0.0
    sex = flipped(folder, "--terms", "builtin:sex", "--attribute", "sex")["sex"]
    rows = [splits["test"] for splits in site_records(load_job(folder / "job.yaml"), folder).values()]
    names = feature_names(FEATURES)  # type: ignore[arg-type]
    married = sum(
        records.features[:, [names.index("relationship = Husband"), names.index("relationship = Wife")]].sum() for records in rows
    )
    assert sex["flip_rate"]["value"] == pytest.approx(married / sum(map(len, rows)))


def test_the_report_shows_the_flips_and_their_basis(planted: Callable[..., Path]) -> None:
    folder = planted({"sex = Male": 2.0, "sex = Female": -2.0})
    flipped(folder)
    page = (folder / "report.html").read_text()
    assert "Counterfactual flips" in page
    assert "Exact, simulation only" in page
    (folder / "flips.json").unlink()
    assert run(["report", str(folder)]) == 0
    assert "Counterfactual flips" not in (folder / "report.html").read_text()


def test_metrics_come_out_as_the_run_stated_them(tabular: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job_file = tabular()
    simulate(load_job(job_file), tmp_path / "run", base=job_file.parent, observer=Silent())
    stated = json.loads((tmp_path / "run/result.json").read_text())["oracle"]["metrics"]
    capsys.readouterr()
    assert run(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["basis"] == "oracle"
    for name in ("accuracy", "balanced_accuracy", "roc_auc"):
        assert found["metrics"][name]["value"] == pytest.approx(stated[name], abs=1e-9)
    assert run(["evaluate", str(tmp_path / "run")]) == 0
    assert "only a simulation can see" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--attribute", "planet"], "RUN-961"),
        (["--attribute", "race"], "RUN-963"),
        (["--terms", "missing.yaml"], "DATA-170"),
    ],
)
def test_refusals(planted: Callable[..., Path], capsys: pytest.CaptureFixture[str], options: list[str], code: str) -> None:
    assert run(["evaluate", str(planted({})), "--flip", *options]) in (2, 3)
    assert code in capsys.readouterr().err


def test_a_run_that_lost_its_adapter_threshold_or_base_is_refused(
    tabular: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job_file, out = tabular(), tmp_path / "run"
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent())
    for file, key, changes, code in (
        ("fairness.json", "threshold", {"edge_index": None}, "RUN-962"),
        ("fairness.json", "threshold", {"group_aware": True}, "RUN-962"),
        ("manifest.json", "base_model", {"sha256": "0" * 64}, "SEC-601"),
    ):
        kept = (out / file).read_text()
        changed = json.loads(kept)
        (out / file).write_text(json.dumps({**changed, key: {**changed[key], **changes}}))
        assert run(["evaluate", str(out)]) in (2, 7)
        assert code in capsys.readouterr().err
        (out / file).write_text(kept)
    (out / "adapter/model.safetensors").write_bytes(b"nothing")
    assert run(["evaluate", str(out)]) == 7
    assert "SEC-671" in capsys.readouterr().err
    (out / "adapter/model.safetensors").unlink()
    assert run(["evaluate", str(out)]) == 2
    assert "RUN-960" in capsys.readouterr().err


AUGMENTED = {"fairness": {"thresholds": "fixed", "augment": "counterfactual", "identity_terms": "builtin:sex"}}


def test_copies_change_the_training_and_nothing_that_is_stated_or_charged(tabular: Callable[..., Path], tmp_path: Path) -> None:
    results = {}
    for name, job_file in {"plain": tabular(), "copies": tabular(**AUGMENTED)}.items():
        simulate(load_job(job_file), tmp_path / name, base=job_file.parent, observer=Silent())
        results[name] = tmp_path / name
    plain, copies = (json.loads((out / "privacy.json").read_text()) for out in results.values())
    assert plain == copies
    events = []
    for out in results.values():
        state, _ = read_ledger(out / "ledger.sqlite")
        events.append({name: [plan.drawn for plan in account.plans.values()] for name, account in state.accounts.items()})
    assert [[one.purpose for one in drawn] for plans in events[0].values() for drawn in plans] != []
    assert str(events[0]) == str(events[1])
    people = [json.loads((out / "result.json").read_text())["oracle"]["people"] for out in results.values()]
    assert people[0] == people[1]
    weights = [load_file(out / "adapter/model.safetensors")["layers.0.weight"] for out in results.values()]
    assert not np.array_equal(*weights)


def test_only_training_records_get_copies(tabular: Callable[..., Path], tmp_path: Path) -> None:
    plain, copies = (load_job(job_file) for job_file in (tabular(), tabular(**AUGMENTED)))
    before, after = site_records(plain, tmp_path), site_records(copies, tmp_path)
    for site, splits in after.items():
        train = splits["train"]
        assert len(train) == 2 * len(before[site]["train"])  # every record shows its sex; none shows its race
        assert train.units == before[site]["train"].units
        for split in ("validation", "test"):
            np.testing.assert_array_equal(splits[split].features, before[site][split].features)
            assert splits[split].original is None
    with open_federation(copies, base=tmp_path, scratch=tmp_path, ledger=tmp_path / "l.sqlite", observer=Silent()) as federation:
        node = federation.nodes[1]
        assert node.examples["train"].units == len(node.examples["train"]) // 2
        assert node.declared_size == -(-node.examples["train"].units // 100) * 100


def test_the_audit_finds_nothing_against_a_run_with_copies(tabular: Callable[..., Path], tmp_path: Path) -> None:
    job_file = tabular(**AUGMENTED)
    simulate(load_job(job_file), tmp_path / "run", base=job_file.parent, observer=Silent())
    found = audit_run(RunFolder(tmp_path / "run"), canaries=100, steps=None, claim=None, seed=1, observer=Silent())
    assert not found.audit.refuted
    assert not found.audit.failed


def test_a_sweep_does_not_take_records_without_copies_for_those_with(tabular: Callable[..., Path]) -> None:
    plain, copies = load_job(tabular()), load_job(tabular(**AUGMENTED))
    assert not same_records(plain, copies)
    assert same_records(copies, copies)


def test_a_text_run_with_copies_is_evaluated_and_flipped(write_job: Callable[..., Path], tmp_path: Path) -> None:
    job_file = write_job(
        data={"text": "{age} years old, {sex}, {relationship}"},
        fairness={"augment": "counterfactual", "identity_terms": {"sex": [["husband", "wife"]]}},
        privacy={"mode": "none", "epsilon": None},
        training={"local_steps": 1},
        federation={"rounds": 1},
    )
    simulate(load_job(job_file), tmp_path / "run", base=tmp_path, observer=Silent())
    sex = flipped(tmp_path / "run")["sex"]
    assert sex["swapped"] == sex["records"]
    assert 0.0 < sex["mean_absolute_score_change"]["value"] < 1.0
    assert json.loads((tmp_path / "run/flips.json").read_text())["terms"]["source"] == "job"
