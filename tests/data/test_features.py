"""``data.features``: hand-worked rows, scikit-learn's encoders with the same constants, and refusals that show no value."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from fedethos.data.bound import at_most
from fedethos.data.contract import apply_contract
from fedethos.data.features import encode_features, feature_names
from fedethos.errors import FedethosError
from fedethos.job_data import Data, Label, Numeric

FEATURES = {
    "weight": Numeric(mean=70.0, scale=10.0),
    "age": Numeric(low=20, high=60),
    "gain": Numeric(low=0, high=99, log=True),
    "sex": ["Female", "Male"],
}
TABLE = {
    "age": ["20", "50", "90", None, "1e1"],
    "gain": ["0", "9", "99", "-5", None],
    "sex": ["Male", "Female", None, "Male", "Female"],
    "weight": ["70", "95", "65.0", None, "-30"],
}


def contract(**changes: object) -> Data:
    base = {"path": "x.csv", "features": FEATURES, "label": Label(column="sick", values=["no", "yes"], favorable="no")}
    return Data(**{**base, **changes})


def table(**changes: list[str | None]) -> pd.DataFrame:
    return pd.DataFrame({**TABLE, "sick": ["no", "yes", "no", "no", "yes"], **changes}, dtype=object)


def test_hand_worked_rows() -> None:
    assert feature_names(FEATURES) == [
        "age", "age is missing", "gain", "gain is missing", "sex = Female", "sex = Male", "sex is missing", "weight", "weight is missing",
    ]  # fmt: skip
    expected = [
        [0.00, 0, 0.0, 0, 0, 1, 0, 0.0, 0],
        [0.75, 0, 0.5, 0, 1, 0, 0, 2.5, 0],  # log(1 + 9) / log(1 + 99) = 1/2
        [1.00, 0, 1.0, 0, 0, 0, 1, -0.5, 0],
        [0.50, 1, 0.0, 0, 0, 1, 0, 0.0, 1],
        [0.00, 0, 0.5, 1, 1, 0, 0, -10.0, 0],
    ]
    encoded = encode_features(TABLE, FEATURES)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, expected, atol=1e-7)


def test_scikit_learn_agrees_given_the_same_constants() -> None:
    rng = np.random.default_rng(0)
    numbers, words = rng.normal(40, 20, 200), rng.choice(["a", "b", "c"], 200)
    features = {"n": Numeric(low=17, high=90), "s": Numeric(mean=38.6, scale=13.7), "w": ["c", "a", "b"]}
    columns = {"n": [str(n) for n in numbers], "s": [str(n) for n in numbers], "w": words.tolist()}
    encoded = encode_features(columns, features)

    scaler = MinMaxScaler(clip=True).fit([[17.0], [90.0]])
    standard = StandardScaler().fit([[38.6 - 13.7], [38.6 + 13.7]])
    one_hot = OneHotEncoder(categories=[["c", "a", "b"]], sparse_output=False)
    np.testing.assert_allclose(encoded[:, [0]], scaler.transform(numbers[:, None]), atol=1e-6)
    np.testing.assert_allclose(encoded[:, [2]], standard.transform(numbers[:, None]), atol=1e-5)
    np.testing.assert_array_equal(encoded[:, 4:7], one_hot.fit_transform(words[:, None]))
    assert not encoded[:, [1, 3, 7]].any()  # nothing is missing


def test_the_order_of_keys_and_rows_carries_no_meaning() -> None:
    backwards = dict(reversed(FEATURES.items()))
    np.testing.assert_array_equal(encode_features(TABLE, backwards), encode_features(TABLE, FEATURES))


@pytest.mark.parametrize(
    ("changes", "code", "rows"),
    [
        ({"sex": ["Male", "Canary-7", "male", "Male", "Female"]}, "DATA-151", 2),
        ({"age": ["20", "Canary-7", "nan", "inf", "0x10"]}, "DATA-152", 4),
        ({"weight": ["70", "1e300", "1e45", "1", None]}, "DATA-152", 2),  # no float32
    ],
)
def test_what_does_not_fit_is_counted_and_not_shown(changes: dict[str, list[str | None]], code: str, rows: int) -> None:
    with pytest.raises(FedethosError) as error:
        apply_contract(table(**changes), contract())
    assert error.value.code == code
    assert f"{rows} rows" in str(error.value)
    assert "Canary" not in str(error.value)


def test_a_missing_column_is_named_with_its_key() -> None:
    with pytest.raises(FedethosError, match=r"DATA-104.*weight") as error:
        apply_contract(table().drop(columns="weight"), contract())
    assert error.value.where == "data.features"


def test_mapped_categories_are_read_and_a_number_sorted_into_groups_stays_a_number() -> None:
    data = contract(
        features={"age": Numeric(low=20, high=60), "sex": ["F", "M"]},
        map={"age": {"<40": "younger", ">=40": "older"}, "sex": {"Female": "F", "Male": "M"}},
        sensitive={"age": ["younger", "older"]},
    )
    records = apply_contract(table(), data)
    assert records.groups["age"].tolist() == [0, 1, 1, 2, 0]
    np.testing.assert_allclose(records.features[:, 0], [0, 0.75, 1, 0.5, 0])
    np.testing.assert_array_equal(records.features[:, 2:], [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])


def test_records_move_with_their_features_and_the_bound_per_person_ignores_their_order() -> None:
    frame = table(who=["p", "q", "p", "p", "q"])
    records = apply_contract(frame, contract(person_id="who"))
    assert records.text == ()
    np.testing.assert_array_equal(records.take(np.array([3, 1])).features, records.features[[3, 1]])
    kept = at_most(records, 2)
    assert np.bincount(kept.unit).tolist() == [2, 2]
    shuffled = apply_contract(frame.iloc[[4, 2, 0, 1, 3]], contract(person_id="who"))
    assert {row.tobytes() for row in at_most(shuffled, 2).features} == {row.tobytes() for row in kept.features}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "CFG-273"),
        ({"low": 1.0}, "CFG-273"),
        ({"low": 1.0, "scale": 2.0}, "CFG-273"),
        ({"low": 1.0, "high": 2.0, "mean": 0.0, "scale": 2.0}, "CFG-273"),
        ({"low": 2.0, "high": 2.0}, "CFG-273"),
        ({"low": -1.0, "high": 2.0, "log": True}, "CFG-273"),
        ({"mean": 1.0, "scale": 2.0, "log": True}, "CFG-273"),
        ({"low": 0.0, "high": math.inf}, "finite"),
        ({"mean": 0.0, "scale": 0.0}, "greater than 0"),
    ],
)
def test_scaling_constants_that_say_nothing_are_refused(declared: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Numeric(**declared)
