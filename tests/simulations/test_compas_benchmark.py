"""The COMPAS benchmark: FedFB's sites and gap, a floor that is the closed form's, the same effort for both strategies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import MetricFrame, selection_rate

from fedethos.documents import load_job
from fedethos.result import OracleGroup
from fedethos.simulations import bench
from fedethos.simulations.benchmarks import compas
from fedethos.simulations.benchmarks.compas import Benchmark, Figures
from fedethos.simulations.virtual_sites import read_records, site_records

RACES = ("African-American", "Caucasian", "Hispanic", "Other", "Asian", "Native American")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """600 made-up people in the raw file's form."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "id": range(600),
            "sex": rng.choice(["Male", "Female"], 600),
            "age": rng.integers(18, 60, 600),
            "race": rng.choice(RACES, 600),
            **{f"juv_{kind}_count": rng.poisson(0.2, 600) for kind in ("fel", "misd", "other")},
            "priors_count": rng.poisson(3, 600),
            "c_charge_degree": rng.choice(["F", "M"], 600),
            "two_year_recid": rng.integers(0, 2, 600),
        }
    )
    frame.to_csv(tmp_path / compas.FILE, index=False)
    return tmp_path


def test_the_two_sites_are_people_over_25_and_the_others(data: Path) -> None:
    """FedFB: (age - 18) / (96 - 18) > 0.1, which begins at 26."""
    benchmark = Benchmark(data, data / "out")
    job = load_job(benchmark.job, [f"data.path={data / compas.FILE}"])
    young, older = site_records(job, benchmark.job.parent, read_records(job, benchmark.job.parent)).values()
    ages = pd.read_csv(data / compas.FILE).age
    assert sum(len(part) for part in young.values()) == ((ages - 18) / 78 <= 0.1).sum()
    assert sum(len(part) for part in older.values()) == ((ages - 18) / 78 > 0.1).sum()
    assert {int(group) for group in young["train"].groups["age"]} == {0}
    assert len({float(age) for age in np.asarray(older["train"].features)[:, 0]}) > 20  # the model still reads the age itself


def test_the_gap_is_the_largest_distance_from_everybodys_selection_rate() -> None:
    rng = np.random.default_rng(1)
    group, favored = rng.integers(0, 4, 500), rng.integers(0, 2, 500)
    rates = MetricFrame(metrics=selection_rate, y_true=favored, y_pred=favored, sensitive_features=group)
    groups = {
        str(name): OracleGroup(count=int((group == name).sum()), selection_rate=float(rate), tpr=None, fpr=None, accuracy=None)
        for name, rate in rates.by_group.items()
    }
    nobody = OracleGroup(count=0, selection_rate=None, tpr=None, fpr=None, accuracy=None)
    gap, _, selected = compas.demographic_parity({**groups, "unknown": nobody})
    assert selected == pytest.approx(rates.overall)
    assert gap == pytest.approx((rates.by_group - rates.overall).abs().max())


def test_the_floor_of_two_equal_groups_is_the_closed_form() -> None:
    """Half of |r1 - r2|, which is about normal with variance 2p(1-p)/n: sqrt(p(1-p) / (pi n))."""
    assert compas.fair_floor((1000, 1000), 0.3) == pytest.approx(math.sqrt(0.21 / (math.pi * 1000)), rel=0.05)


def test_both_strategies_are_tuned_with_the_same_effort() -> None:
    sizes = {name: math.prod(len(values) for values in grid.values()) for name, grid in compas.read_rows().group_blind.strategies.items()}
    assert sizes == {"fedfb": 8, "controller": 8}
    assert not set(compas.TUNING_SEEDS) & set(range(1, 101))


def figures(accuracy: float, gap: float, floor: float = 0.03) -> Figures:
    return Figures(accuracy, gap, floor, 0.5, verdict=True)


def test_the_smallest_gap_wins_among_the_accurate_settings() -> None:
    points = {"a": [figures(0.70, 0.20)], "b": [figures(0.66, 0.15)], "c": [figures(0.60, 0.05)]}
    assert compas.best_of(points, 0.655) == "b"
    assert compas.best_of(points, 0.8) == "a"


def test_differences_are_paired() -> None:
    """Accuracies .01 and .03 apart: mean .02, t(1, .975) = 12.706 times .01."""
    ours, theirs = [figures(0.66, 0.1), figures(0.70, 0.1)], [figures(0.65, 0.1, 0.02), figures(0.67, 0.1, 0.02)]
    accuracy, excess = compas.paired(ours, theirs)
    assert (accuracy.low, accuracy.high) == pytest.approx((0.02 - 0.12706, 0.02 + 0.12706), abs=1e-4)
    assert (excess.mean, excess.low) == pytest.approx((-0.01, -0.01))


def test_rows_run_from_the_raw_file(data: Path, monkeypatch) -> None:
    monkeypatch.setattr(compas, "OUT", data / "out")
    monkeypatch.setattr(compas, "FEW_SEEDS", 1)
    excess, error = compas.rows(data)
    assert (excess["limit"], error["limit"]) == pytest.approx((0.01, 0.345))
    assert not (data / "out/few/thresholds/job/seed-1/report.html").exists()


def test_without_the_records_the_row_says_so(tmp_path: Path, capsys) -> None:
    assert compas.rows(tmp_path) == []
    assert "skipped" in capsys.readouterr().out


def test_what_a_benchmark_says_on_the_way_is_not_its_result(monkeypatch, capsys) -> None:
    monkeypatch.setattr(bench, "import_module", lambda _: SimpleNamespace(rows=lambda: print("run 1 of 5") or []))
    monkeypatch.setattr("sys.argv", ["bench", "--part", "main"])
    assert bench.main() == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == [] and "run 1 of 5" in captured.err
