"""The statistics of a sweep against scipy's own t-tests and numbers worked by hand."""

from pathlib import Path

import pytest
from scipy import stats

from fedethos.result import Result
from fedethos.simulations.sweep import Axis, plan_sweep
from fedethos.simulations.sweep_table import Outcome, measures_of, sweep_table, t_interval
from fedethos.sweep_view import footnotes, print_sweep

JOB = Path(__file__).parents[2] / "simulations" / "jobs" / "adult.yaml"
ONLY_SEX = ["data.sensitive={sex: [Female, Male]}"]
NOTHING = {"value": None, "low": None, "high": None, "abstained": True}


def interval(value: float | None) -> dict:
    return NOTHING if value is None else {"value": value, "low": value - 0.1, "high": value + 0.1, "abstained": False}


def make_result(
    *, accuracy: float = 0.8, tpr: tuple[float | None, float] = (0.5, 0.7), basis: str = "released", shift: float = 0.0
) -> Result:
    """Women's and men's TPR as given; released values are the exact ones plus ``shift``."""
    names = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy")
    gaps = ("demographic_parity_difference", "demographic_parity_ratio", "equalized_odds_difference", "equal_opportunity_difference")
    exact = dict.fromkeys(names, accuracy)
    groups = {
        group: {"count": 50, "selection_rate": 0.2 + place / 10, "tpr": rate, "fpr": 0.1, "accuracy": 0.8}
        for place, (group, rate) in enumerate(zip(("Female", "Male"), tpr, strict=True))
    }
    released = {
        group: {name: value if name == "count" else interval(None if value is None else value + shift) for name, value in rates.items()}
        for group, rates in groups.items()
    }
    return Result.model_validate(
        {
            "name": "x",
            "status": "completed",
            "rounds": 1,
            "seconds": 1.0,
            "engine": "inprocess",
            "basis": basis,
            "group_aware": False,
            "oracle": {
                "metrics": exact,
                "baseline": exact,
                "people": {"train": 1, "validation": 1, "test": 1},
                "classes": None,
                "scenarios": {},
                "fairness": {"sex": {**dict.fromkeys(gaps, 0.2), "groups": groups}},
            },
            "baseline": {},
            "metrics": {name: interval(value + shift) for name, value in exact.items()},
            "fairness": {"sex": {**{gap: interval(0.2 + shift) for gap in gaps}, "groups": released}},
            "privacy": {
                "unit": "record",
                "adjacency": "add-remove",
                "accountant": "pld",
                "secure_rng": False,
                "sites": {f"site-{eps}": {"epsilon": eps, "delta": 1e-5, "steps": 1, "releases": 1} for eps in (2.5, 3.0)},
            },
            "classes": None,
            "personal": None,
            "scenarios": {},
            "communication": {"bytes_up": 1, "bytes_down": 1},
            "aggregation_error": 0.0,
        }
    )


def make_sweep(results: dict[str, Result], *, basis="oracle", verdict: bool = True):
    plan = plan_sweep(JOB, ONLY_SEX, [Axis("privacy.epsilon", ("3", "8"))], [1, 2, 3])
    return sweep_table(plan, {folder: Outcome("completed", result=result, verdict=verdict) for folder, result in results.items()}, basis)


def test_intervals_are_those_of_scipy() -> None:
    values = [0.81, 0.84, 0.79, 0.83, 0.90]
    ours, theirs = t_interval(values), stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_an_interval_worked_by_hand() -> None:
    # mean 2, s = 1, t(0.975, 2) = 4.302653, half-width 4.302653 / sqrt(3) = 2.484138
    found = t_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high, found.count) == (
        2.0,
        pytest.approx(-0.484138, abs=1e-6),
        pytest.approx(4.484138, abs=1e-6),
        3,
    )


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert t_interval([0.5]).model_dump() == {"mean": 0.5, "low": None, "high": None, "count": 1}
    assert t_interval([]).model_dump() == {"mean": None, "low": None, "high": None, "count": 0}


def test_signed_differences_are_first_minus_second_group_of_the_job() -> None:
    result = make_result(tpr=(0.5, 0.7))
    plan = plan_sweep(JOB, ONLY_SEX, [], [1])
    values = measures_of(result, plan.points[0].runs[0].job, "oracle")
    assert values["sex.signed_equal_opportunity_difference"] == pytest.approx(-0.2)
    assert values["sex.absolute_equal_opportunity_difference"] == pytest.approx(0.2)
    assert values["sex.signed_demographic_parity_difference"] == pytest.approx(-0.1)
    turned = plan_sweep(JOB, ["data.sensitive={sex: [Male, Female]}"], [], [1])
    assert measures_of(result, turned.points[0].runs[0].job, "oracle")["sex.signed_equal_opportunity_difference"] == pytest.approx(0.2)


def test_signs_cancel_in_the_mean_and_not_in_the_absolute_mean() -> None:
    results = {f"epsilon=3/seed-{seed}": make_result(tpr=rates) for seed, rates in enumerate([(0.5, 0.7), (0.7, 0.5)], start=1)}
    measures = make_sweep(results).points[0].measures
    assert measures["sex.signed_equal_opportunity_difference"].mean == pytest.approx(0.0)
    assert measures["sex.absolute_equal_opportunity_difference"].mean == pytest.approx(0.2)


def test_an_attribute_of_three_groups_has_no_signed_difference() -> None:
    job = plan_sweep(JOB, ["data.sensitive={sex: [Female, Male, Other]}"], [], [1]).points[0].runs[0].job
    assert not [name for name in measures_of(make_result(), job, "oracle") if "signed" in name]


def test_released_and_exact_values_are_never_taken_for_each_other() -> None:
    results = {"epsilon=3/seed-1": make_result(accuracy=0.8, shift=0.05)}
    exact, released = make_sweep(results, basis="oracle").points[0], make_sweep(results, basis="released").points[0]
    assert (exact.basis, exact.measures["accuracy"].mean) == ("oracle", pytest.approx(0.8))
    assert (released.basis, released.measures["accuracy"].mean) == ("released", pytest.approx(0.85))
    assert released.measures["sex.signed_equal_opportunity_difference"].mean == pytest.approx(-0.2)


def test_paired_differences_are_those_of_scipy() -> None:
    first, other = [0.80, 0.82, 0.79], [0.85, 0.83, 0.86]
    results = {
        f"epsilon={epsilon}/seed-{seed}": make_result(accuracy=value)
        for epsilon, values in (("3", first), ("8", other))
        for seed, value in enumerate(values, start=1)
    }
    [pair] = make_sweep(results).paired
    theirs = stats.ttest_rel(other, first).confidence_interval(0.95)
    assert (pair.point, pair.against) == ("epsilon=8", "epsilon=3")
    found = pair.measures["accuracy"]
    assert (found.mean, found.low, found.high) == pytest.approx((0.13 / 3, theirs.low, theirs.high))


def test_pairs_need_the_same_seed_on_both_sides() -> None:
    results = {"epsilon=3/seed-1": make_result(accuracy=0.5), "epsilon=3/seed-2": make_result(accuracy=0.9)}
    results |= {"epsilon=8/seed-2": make_result(accuracy=0.7), "epsilon=8/seed-3": make_result(accuracy=0.1)}
    found = make_sweep(results).paired[0].measures["accuracy"]
    assert (found.mean, found.count) == (pytest.approx(-0.2), 1)


def test_values_of_another_basis_are_not_subtracted_and_that_is_said() -> None:
    results = {"epsilon=3/seed-1": make_result(), "epsilon=8/seed-1": make_result(basis="unprotected")}
    sweep = make_sweep(results, basis="released")
    assert sweep.paired[0].measures == {}
    assert any("do not have the same basis" in note for note in footnotes(sweep))


def test_a_grid_that_moves_the_test_people_is_said_to() -> None:
    for key, values, same in (
        ("privacy.epsilon", ("3", "8"), True),
        ("simulation.sites", ("3", "4"), False),
        ("data.limit", ("0.5", "0.6"), False),
    ):
        plan = plan_sweep(JOB, ONLY_SEX, [Axis(key, values)], [1, 2])
        sweep = sweep_table(plan, {run.folder: Outcome("completed", result=make_result()) for run in plan.in_order()}, "oracle")
        assert sweep.same_people is same
        assert any("tested on different people" in note for note in footnotes(sweep)) is not same


def test_the_table_shows_means_epsilon_missing_seeds_and_what_it_is_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results = {f"epsilon=3/seed-{seed}": make_result(accuracy=0.7 + seed / 100) for seed in (1, 2, 3)}
    results |= {"epsilon=8/seed-1": make_result(accuracy=0.9, tpr=(None, 0.5))}
    sweep = make_sweep(results, verdict=False)
    print_sweep(sweep, tmp_path)
    printed = capsys.readouterr().out
    assert sweep.points[0].epsilon == 3.0  # the largest of the sites
    assert "0.720 ± 0.025" in printed  # 4.302653 * 0.01 / sqrt(3)
    assert "1 of 3" in printed and "0.900 (1)" in printed
    assert "not measurable" in printed  # a TPR that one group does not have
    for words in ("Basis oracle", "costs more than its epsilon", "No fairness verdict in runs of epsilon=3 (3 of 3)"):
        assert words in printed
