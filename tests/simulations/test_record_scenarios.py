"""Scenarios that filter records: counted by every site as a group of its own, paid for, and judged by their limit."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from tests.simulations.tabular import TABULAR

from fedethos.cli import run as fedethos
from fedethos.client.evaluator import predict
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.privacy.ledger import read_ledger
from fedethos.progress import Silent
from fedethos.scenario import load_job_with
from fedethos.simulations.engine import simulate
from fedethos.simulations.virtual_sites import open_federation

OPEN = {"mode": "none", "epsilon": None, "metrics": {"tolerance": 1.0, "min_group_size": 1}}
OLDER = {"name": "older", "filter": {"age": [">=50"]}, "metric": "error_rate", "limit": 0.5}
WOMEN = {"name": "women", "filter": {"sex": ["Female"]}, "metric": "false_positive_rate", "limit": 0.0001}
APART = {"name": "apart", "filter": {"sex": ["Female"]}, "metric": "demographic_parity_difference", "limit": 1.0}


def run(job_file: Path, out: Path, *, wire: bool = False) -> dict:
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent(), wire=wire, report=False)
    return json.loads((out / "result.json").read_text())


def test_exact_values_are_those_of_the_records_that_match(write_job, tmp_path: Path) -> None:
    """Over the wire; the truth is the records themselves, and fairness by a sensitive attribute that the filter repeats."""
    sections = {**TABULAR, "training": {"local_steps": 10, "learning_rate": 0.1}, "privacy": OPEN, "scenarios": [OLDER, WOMEN, APART]}
    job_file = write_job(**sections)
    result = run(job_file, tmp_path / "run", wire=True)
    found, oracle = result["scenarios"], result["oracle"]
    women = oracle["fairness"]["sex"]["groups"]["Female"]
    assert oracle["scenarios"]["women"] == found["women"]["value"]["value"] == pytest.approx(women["fpr"])
    assert found["women"]["count"] == women["count"]
    assert oracle["scenarios"]["apart"] == pytest.approx(oracle["fairness"]["sex"]["demographic_parity_difference"])
    assert set(result["fairness"]) == {"sex"}
    holds = {name: one["holds"] for name, one in found.items()}
    assert holds == {"older": oracle["scenarios"]["older"] <= 0.5, "women": False, "apart": True}

    job = load_job(job_file)
    with open_federation(job, base=tmp_path, scratch=tmp_path, ledger=tmp_path / "l.sqlite", observer=Silent()) as federation:
        tests = [node.examples["test"] for node in federation.nodes.values()]
        matching = np.concatenate([part.groups["scenario:older"] == 0 for part in tests])
        threshold = json.loads((tmp_path / "run" / "fairness.json").read_text())["threshold"]["log_odds"]
        age = np.concatenate([part.inputs.features[:, 0].numpy() for part in tests]) * (90 - 17) + 17
        assert np.array_equal(matching, age > 49.5)
        federation.model.load(load_file(tmp_path / "run" / "adapter" / "model.safetensors"))
        wrong = np.concatenate([predict(federation.model, part, 1).margin >= threshold for part in tests]) != np.concatenate(
            [part.label == 1 for part in tests]
        )
    assert found["older"]["count"] == matching.sum()
    assert oracle["scenarios"]["older"] == pytest.approx(wrong[matching].mean())


def test_a_private_job_pays_for_each_scenario_with_one_table_more(write_job, tmp_path: Path) -> None:
    private = {"epsilon": 8.0, "metrics": {"tolerance": 1.0, "min_group_size": 1}}
    sections = {
        **TABULAR,
        "training": {"local_steps": 2, "learning_rate": 0.1},
        "privacy": private,
        "federation": {"rounds": 1, "min_sites": 2},
    }
    plain, asked = run(write_job(**sections), tmp_path / "plain"), run(write_job(**sections, scenarios=[OLDER]), tmp_path / "asked")
    assert plain["scenarios"] == {} and asked["basis"] == "released"
    value = asked["scenarios"]["older"]["value"]
    assert value["low"] < asked["oracle"]["scenarios"]["older"] < value["high"]
    tables = {}
    for name in ("plain", "asked"):
        state, _ = read_ledger(tmp_path / name / "ledger.sqlite")
        events = [one.event for account in state.accounts.values() for plan in account.plans.values() for one in plan.plan.allotments]
        tables[name] = {(event.tables, event.sigma) for event in events if getattr(event, "population", "") == "test"}
    (before,), (after,) = tables["plain"], tables["asked"]
    assert after[0] == before[0] + 1
    assert after[1] == pytest.approx(before[1] * np.sqrt(3 / 2), rel=0.05)
    sites = asked["privacy"]["sites"].values()
    assert all(0.0 < site["epsilon"] <= 8.0 for site in sites)


def test_too_few_people_are_withheld_and_that_is_no_pass(write_job, tmp_path: Path) -> None:
    few = {**OLDER, "filter": {"age": [">=70"]}}
    metrics = {**OPEN, "metrics": {"tolerance": 1.0, "min_group_size": 11}}
    result = run(write_job(**TABULAR, training={"local_steps": 1}, privacy=metrics, scenarios=[few]), tmp_path / "run")
    assert result["scenarios"]["older"]["count"] is None
    assert result["scenarios"]["older"]["value"]["value"] is result["scenarios"]["older"]["holds"] is None


@pytest.mark.parametrize(
    ("scenarios", "data"),
    [
        ([OLDER, {**OLDER, "limit": 0.2, "filter": {"age": ["<20"]}}], {}),
        ([{**OLDER, "filter": {"who": ["Ann"]}}], {"person_id": "who"}),
    ],
)
def test_what_cannot_be_counted_is_refused(write_job, scenarios: list[dict], data: dict) -> None:
    with pytest.raises(FedethosError, match="CFG-418"):
        load_job(write_job(scenarios=scenarios, data=data))


def test_a_file_goes_into_the_job_or_onto_a_finished_simulation(write_job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, prompts, run_folder = tmp_path / "older.yaml", tmp_path / "prompts.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump({"schema": "fedethos/scenario/v1", **OLDER}))
    prompts.write_text(
        yaml.safe_dump({"schema": "fedethos/scenario/v1", "name": "x", "prompts": ["?"], "metric": "refusal_rate", "limit": 1.0})
    )
    job_file = write_job(**TABULAR, training={"local_steps": 1}, privacy=OPEN, scenarios=[WOMEN])
    assert [one.name for one in load_job_with(job_file, ["name=other"], [file]).scenarios] == ["women", "older"]
    with pytest.raises(FedethosError, match="CFG-419"):
        load_job_with(job_file, [], [prompts])
    assert fedethos(["simulate", str(job_file), "--scenario", str(file), "--out", str(run_folder)]) == 0
    assert re.search(r"older +[0-9]+ +Error rate +0\.[0-9]+ \(.*\) +0\.5: holds", capsys.readouterr().out)
    released = json.loads((run_folder / "result.json").read_text())["scenarios"]
    assert set(released) == {"women", "older"}
    page = (run_folder / "report.html").read_text()
    assert "Error rate" in page and "older: age is &gt;=50" in page
    assert page.index("older: age") > page.index("women: sex is Female"), "in the order of the job"
    again = tmp_path / "again.yaml"
    again.write_text(file.read_text().replace("name: older", "name: again"))
    assert fedethos(["evaluate", str(run_folder), "--scenario", str(again), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["scenarios"]
    assert evaluated["again"]["value"]["value"] == pytest.approx(released["older"]["value"]["value"])
    assert fedethos(["evaluate", str(run_folder), "--scenario", str(again)]) == 0
    assert "Scenario again: error_rate" in capsys.readouterr().out
    assert fedethos(["evaluate", str(run_folder), "--scenario", str(again), "--flip"]) == 2
