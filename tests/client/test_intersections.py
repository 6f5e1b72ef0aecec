"""Intersections from the job to the tables that leave a site, against pandas on the same records."""

import json
from pathlib import Path

import fairlearn.metrics as fl
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

from fedethos.client.evaluator import score
from fedethos.client.examples import crossed_groups
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.governance.report import render_report
from fedethos.intersections import crossed_categories
from fedethos.privacy.counts import plan_counts
from fedethos.progress import Silent
from fedethos.server.checkpoint import latest_checkpoint
from fedethos.simulations.engine import simulate
from fedethos.simulations.virtual_sites import open_federation

SENSITIVE = {"sex": ["Female", "Male"], "race": ["White", "Black", "Other"]}
RACES = ["White", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other"]  # Black counts as missing: that group has people for sure
DATA = {"sensitive": {"sex": ["Female", "Male"], "race": RACES}, "na_values": ["?", "Black"]}


def test_groups_and_names_of_an_intersection_are_in_one_order() -> None:
    rng = np.random.default_rng(1)
    sex, race = rng.integers(0, 3, 200), rng.integers(0, 4, 200)
    names = [*crossed_categories(SENSITIVE, [["sex", "race"]])["sex*race"], "unknown"]
    ours = [names[group] for group in crossed_groups([sex, race], [2, 3])]
    sexes, races = np.array(["Female", "Male", None]), np.array(["White", "Black", "Other", None])
    frame = pd.DataFrame({"sex": sexes[sex], "race": races[race]})
    assert ours == (frame["sex"] + "*" + frame["race"]).fillna("unknown").tolist()
    assert len(names) == 7


@pytest.mark.parametrize(
    ("intersections", "code"),
    [
        ("[[sex, age]]", "CFG-360"),
        ("[[sex]]", "CFG-361"),
        ("[[sex, sex]]", "CFG-361"),
        ("[[sex, race], [race, sex]]", "CFG-361"),
    ],
)
def test_an_intersection_that_means_nothing_is_refused(write_job, intersections: str, code: str) -> None:
    with pytest.raises(FedethosError, match=code):
        load_job(write_job(data=DATA), [f"fairness.intersections={intersections}"])


def test_too_many_groups_and_two_of_one_name_are_refused(write_job) -> None:
    many = {"a": [str(n) for n in range(9)], "b": [str(n) for n in range(8)]}
    with pytest.raises(FedethosError, match="CFG-362"):
        load_job(write_job(data={"sensitive": many}, fairness={"intersections": [["a", "b"]]}, simulation={"partition": {"kind": "iid"}}))
    alike = {"a": ["x", "x*y"], "b": ["y*z", "z"]}
    with pytest.raises(FedethosError, match="CFG-363"):
        load_job(write_job(data={"sensitive": alike}, fairness={"intersections": [["a", "b"]]}, simulation={"partition": {"kind": "iid"}}))


def test_every_intersection_is_one_more_paid_table(write_job) -> None:
    alone, crossed = (
        load_job(write_job(data=DATA, privacy={"epsilon": 0.5}, fairness={"intersections": with_it})) for with_it in ([], [["sex", "race"]])
    )
    tables = [next(one.release.tables for one in plan_counts(job) if one.population == "test") for job in (alone, crossed)]
    assert tables == [3, 4]
    noise = [next(one.release.sigma for one in plan_counts(job) if one.population == "test") for job in (alone, crossed)]
    assert noise[1] == pytest.approx(noise[0] * np.sqrt(4 / 3), rel=0.01)


def test_weights_and_thresholds_may_act_on_an_intersection(write_job) -> None:
    fairness = {"intersections": [["sex", "race"]], "attribute": "sex*race", "cell_weights": {"Female*White": {">50K": 2.0}}}
    assert load_job(write_job(data=DATA, fairness=fairness)).fairness_attribute == "sex*race"
    with pytest.raises(FedethosError, match="CFG-243"):
        load_job(write_job(data=DATA, fairness={"attribute": "sex*race"}))


def test_an_exact_run_measures_every_combination_as_fairlearn_does(write_job, tmp_path: Path) -> None:
    job = load_job(
        write_job(
            data=DATA,
            privacy={"mode": "none", "epsilon": None, "metrics": {"min_group_size": 1, "tolerance": 1.0}},
            fairness={"intersections": [["sex", "race"]], "thresholds": "fixed"},
            federation={"rounds": 1},
        )
    )
    folder = tmp_path / "run"
    simulate(job, folder, base=tmp_path, observer=Silent())
    result = json.loads((folder / "result.json").read_text())
    measured = result["oracle"]["fairness"]["sex*race"]
    assert list(result["fairness"]) == sorted(["sex", "race", "sex*race"])

    with open_federation(job, base=tmp_path, scratch=tmp_path, ledger=tmp_path / "none", observer=Silent()) as opened:
        opened.model.load(dict(latest_checkpoint(folder / "checkpoints", say=print).arrays))
        tested = [node.examples["test"] for node in opened.nodes.values()]
        predicted = np.concatenate([score(opened.model, examples, 1) >= 0.0 for examples in tested]).astype(int)
    label = np.concatenate([examples.label for examples in tested])
    sexes, races = np.array(["Female", "Male", "?"]), np.array([*RACES, "?"])
    people = pd.DataFrame(
        {
            "sex": sexes[np.concatenate([examples.groups["sex"] for examples in tested])],
            "race": races[np.concatenate([examples.groups["race"] for examples in tested])],
        }
    )
    frame = fl.MetricFrame(
        metrics={"selection_rate": fl.selection_rate, "accuracy": accuracy_score, "count": fl.count},
        y_true=label,
        y_pred=predicted,
        sensitive_features=people,
    ).by_group.dropna()
    known = {f"{sex}*{race}": row for (sex, race), row in frame.iterrows() if "?" not in (sex, race)}
    assert sum(group["count"] > 0 for group in measured["groups"].values()) == len(known) + 1
    for name, row in known.items():
        group = measured["groups"][name]
        assert [group[key] for key in row.index] == pytest.approx(row.tolist(), abs=1e-12)
    unknown = frame[[("?" in index) for index in frame.index]]
    assert measured["groups"]["unknown"]["count"] == unknown["count"].sum() > 0
    names = (people["sex"] + "*" + people["race"]).where(~people.isin(["?"]).any(axis=1), "unknown")
    assert measured["demographic_parity_difference"] == pytest.approx(
        fl.demographic_parity_difference(label, predicted, sensitive_features=names), abs=1e-12
    )

    report = render_report(folder).read_text()
    assert "Rates by sex*race" in report
    assert all(name in report for name in measured["groups"])
