"""Counterfactual records against texts and features written out by hand, and the copies that training may see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedethos.data.contract import apply_contract
from fedethos.data.counterfactual import counterfactual, read_swaps, with_copies
from fedethos.data.features import encode_features
from fedethos.data.records import Records
from fedethos.errors import FedethosError
from fedethos.job_data import Data

TERMS = {"sex": [["husband", "wife"], ["his", "her"], ["male", "female"]]}
TABLE = {
    "age": ["63", "41", "30", "22"],
    "sex": ["1.0", "0.0", None, "1.0"],
    "race": ["black", "white", "asian", None],
    "relationship": ["Husband", "Own-child", "Wife", "Own-child"],
    "num": ["sick", "well", "well", "sick"],
    "who": ["a", "b", "a", "c"],
}


def records(**changes: object) -> Records:
    fields: dict[str, object] = {
        "path": "t.csv",
        "map": {"sex": {"1.0": "Male", "0.0": "Female"}},
        "text": "{age}, {sex}, his {relationship}, {sex}!",
        "label": {"column": "num", "values": ["well", "sick"], "favorable": "well"},
        "sensitive": {"sex": ["Female", "Male"], "race": ["black", "white", "asian"]},
        "person_id": "who",
    }
    data = Data.model_validate(fields | changes)
    terms = TERMS if "sex" in data.sensitive else None
    return apply_contract(pd.DataFrame(TABLE, dtype=object), data, swaps=read_swaps(data, terms, Path()))


def test_the_sensitive_column_and_the_terms_change_and_nothing_else() -> None:
    swapped = records().swapped["sex"]
    assert swapped.text == (
        "63, Female, her Wife, Female!",
        "41, Male, her Own-child, Male!",
        "30, unknown, her Husband, unknown!",
        "22, Female, her Own-child, Female!",
    )
    assert swapped.changed.all()


def test_an_attribute_that_the_text_does_not_show_changes_nothing() -> None:
    assert not records().swapped["race"].changed.any()


def test_three_categories_go_round_and_a_missing_value_stays() -> None:
    swapped = records(text="{race}").swapped["race"]
    assert swapped.text == ("white", "asian", "black", "unknown")
    assert swapped.changed.tolist() == [True, True, True, False]


def test_a_number_that_is_sorted_into_groups_stays() -> None:
    by_age = {"map": {"age": {"<40": "younger", ">=40": "older"}}, "sensitive": {"age": ["younger", "older"]}, "text": "{age} years"}
    assert not records(**by_age).swapped["age"].changed.any()


def test_categories_among_features_change() -> None:
    features = {"age": {"low": 0, "high": 100}, "sex": ["Female", "Male"], "relationship": ["Husband", "Own-child", "Wife"]}
    made = records(text=None, features=features)
    expected = {
        "age": TABLE["age"],
        "sex": ["Female", "Male", None, "Female"],
        "relationship": ["Wife", "Own-child", "Husband", "Own-child"],
    }
    data = Data.model_validate(
        {"path": "t", "features": features, "label": {"column": "num", "values": ["well", "sick"], "favorable": "well"}}
    )
    swapped = made.swapped["sex"]
    np.testing.assert_array_equal(swapped.features, encode_features(expected, data.features))
    assert swapped.changed.tolist() == [True, True, True, True]


def test_a_category_becomes_only_one_that_is_listed() -> None:
    mapping = {"sex": {"1.0": "Male", "0.0": "Female"}, "relationship": {"Wife": "Husband"}}
    assert not records(text=None, features={"relationship": ["Husband", "Own-child"]}, map=mapping).swapped["sex"].changed.any()


def test_counterfactual_takes_the_changed_records_alone() -> None:
    made = records(text="{race}, {age}").take(np.array([3, 2, 0]))
    other = counterfactual(made, "race")
    assert other.text == ("black, 30", "white, 63")
    assert other.label.tolist() == [0, 1]


def test_copies_share_the_unit_the_label_and_the_identity_of_their_original() -> None:
    made = records(text="{race}, {relationship}")
    both = with_copies(made)
    assert both.original.tolist() == [0, 1, 2, 3, 0, 2, 0, 1, 2]  # the husband and the wife by sex; three by race
    assert both.text[4:] == ("black, Wife", "asian, Husband", "white, Husband", "asian, Own-child", "black, Wife")
    assert both.text[:4] == made.text
    for field in ("label", "unit", "identity"):
        np.testing.assert_array_equal(getattr(both, field), getattr(made, field)[both.original])
    assert both.unit.tolist()[:4] == [0, 1, 0, 2]
    assert both.units == made.units
    assert not both.swapped
    with pytest.raises(ValueError, match="copies"):
        both.take(np.array([4]))


def test_terms_of_no_sensitive_attribute_are_refused() -> None:
    data = Data.model_validate(
        {"path": "t", "text": "{a}", "label": {"column": "l", "values": ["a", "b"], "favorable": "a"}, "sensitive": {"race": ["x", "y"]}}
    )
    with pytest.raises(FedethosError) as error:
        read_swaps(data, {"sex": [["he", "she"]]}, Path())
    assert error.value.code == "DATA-172"
