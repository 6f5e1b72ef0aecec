import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedethos.result import Attribute, Interval, Result, in_declared_order, result_schema

KEYS = {
    "name", "status", "rounds", "seconds", "engine", "basis", "oracle", "baseline", "metrics", "fairness", "privacy", "communication",
    "aggregation_error", "group_aware", "classes", "personal", "scenarios",
}  # fmt: skip
VALUE = {"value": 0.5, "low": 0.4, "high": 0.6, "abstained": False}
WITHHELD = {"value": None, "low": None, "high": None, "abstained": True}
METRICS = ("accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy", "response_perplexity")
GAPS = ("demographic_parity_difference", "demographic_parity_ratio", "equalized_odds_difference", "equal_opportunity_difference")
GROUP = {"count": 20} | dict.fromkeys(("selection_rate", "tpr", "fpr", "accuracy"), VALUE)
ATTRIBUTE = dict.fromkeys(GAPS, VALUE) | {"groups": {"Female": GROUP, "Male": GROUP, "unknown": {**GROUP, "count": None, "tpr": WITHHELD}}}
EXACT = dict.fromkeys(METRICS, 0.5)


def result(**changes: object) -> dict:
    value = {
        "name": "demo",
        "status": "completed",
        "rounds": 6,
        "seconds": 12.5,
        "engine": "inprocess",
        "basis": "oracle",
        "group_aware": False,
        "oracle": {
            "metrics": EXACT,
            "fairness": {},
            "baseline": EXACT | {"roc_auc": 0.25},
            "people": {"train": 60, "validation": 10, "test": 30},
            "classes": None,
            "scenarios": {"older": 0.2},
        },
        "baseline": {},
        "metrics": dict.fromkeys(METRICS, VALUE),
        "fairness": {"sex": ATTRIBUTE},
        "classes": None,
        "personal": None,
        "scenarios": {"older": {"metric": "error_rate", "count": 40, "value": VALUE, "at_most": 0.6, "holds": True}},
        "privacy": {
            "unit": "record",
            "adjacency": "add-remove",
            "accountant": "pld",
            "secure_rng": False,
            "sites": {"a": {"epsilon": 8.0, "delta": 1e-5, "steps": 120, "releases": 1}},
        },
        "communication": {"bytes_up": 1, "bytes_down": 2},
        "aggregation_error": 0.0,
    }
    return copy.deepcopy(value | changes)


def test_the_keys_are_the_published_ones():
    assert set(Result.model_fields) == KEYS
    assert set(result_schema()["required"]) == KEYS
    assert result_schema()["additionalProperties"] is False


def test_a_whole_result_comes_back_as_it_was():
    assert Result.model_validate(result()).model_dump() == result()


@pytest.mark.parametrize("key", sorted(KEYS))
def test_every_key_is_needed(key):
    value = result()
    del value[key]
    with pytest.raises(ValidationError):
        Result.model_validate(value)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"status": "fine"},
        {"basis": "exact"},
        {"rounds": -1},
        {"rounds": 6.0},
        {"seconds": float("nan")},
        {"baseline": {"accuracy": VALUE}},
        {"metrics": dict.fromkeys(METRICS, 0.5)},
    ],
)
def test_a_result_of_another_form_is_refused(change):
    with pytest.raises(ValidationError):
        Result.model_validate(result(**change))


@pytest.mark.parametrize(
    ("value", "low", "high", "abstained"),
    [
        (0.5, None, None, False),  # a bare number
        (0.5, 0.4, None, False),
        (0.5, 0.6, 0.4, False),
        (None, 0.4, 0.6, False),  # missing, but not abstained
        (0.5, 0.4, 0.6, True),  # abstained, and yet a number
    ],
)
def test_a_number_never_stands_without_its_interval(value, low, high, abstained):
    with pytest.raises(ValidationError):
        Interval(value=value, low=low, high=high, abstained=abstained)


@given(st.floats(0, 1), st.floats(0, 1))
def test_an_abstained_interval_may_keep_its_bounds(one, other):
    low, high = sorted((one, other))
    assert Interval(value=None, low=low, high=high, abstained=True).value is None


def test_the_base_value_comes_from_what_the_basis_allows():
    assert Result.model_validate(result()).base_value("roc_auc") == 0.25
    assert Result.model_validate(result(basis="released")).base_value("roc_auc") is None
    assert Result.model_validate(result(basis="released", baseline=dict.fromkeys(METRICS, VALUE))).base_value("roc_auc") == 0.5


def test_attributes_and_groups_follow_the_job_and_strangers_come_last():
    fairness = {name: Attribute.model_validate(ATTRIBUTE) for name in ("age", "race", "sex")}
    ordered = in_declared_order(fairness, {"sex": ["Male", "Female"], "race": []})
    assert list(ordered) == ["sex", "race", "age"]
    assert list(ordered["sex"].groups) == ["Male", "Female", "unknown"]
