"""The data contract: categories, thresholds, text, people, and refusals that count rows and never show a value."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.data.contract import apply_contract
from fedethos.data.mapping import map_values
from fedethos.data.template import parse_template
from fedethos.errors import FedethosError
from fedethos.job_data import Data

SECRET = "JANE-DOE-4711"


def table(**columns: list[str | None]) -> pd.DataFrame:
    usual: dict[str, list[str | None]] = {
        "age": ["63", "41", None],
        "sex": ["1.0", "0.0", None],
        "num": ["0", "2", "4"],
        "who": ["a", "b", "a"],
        "note": ["x {age}", "{0.__class__}", None],
    }
    return pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in (usual | columns).items()})


def contract(**changes: object) -> Data:
    fields: dict[str, object] = {
        "path": "t.csv",
        "map": {"sex": {"1.0": "Male", "0.0": "Female"}, "num": {">=1": "sick", "<1": "well"}},
        "text": "{age} years old, {sex}",
        "label": {"column": "num", "values": ["well", "sick"], "favorable": "well"},
        "sensitive": {"sex": ["Female", "Male"]},
    }
    return Data.model_validate(fields | changes)


def refusal(frame: pd.DataFrame, data: Data, keep: str | None = None) -> FedethosError:
    with pytest.raises(FedethosError) as error:
        apply_contract(frame, data, keep=keep)
    assert SECRET not in str(error.value)
    return error.value


def test_a_table_becomes_records() -> None:
    records = apply_contract(table(), contract(), keep="num")
    assert records.text == ("63 years old, Male", "41 years old, Female", "unknown years old, unknown")
    assert records.label.tolist() == [0, 1, 1]
    assert records.groups["sex"].tolist() == [1, 0, 2]
    assert records.unit.tolist() == [0, 1, 2]
    assert records.kept == ("0", "2", "4")
    assert (records.label.dtype, records.unit.dtype, records.identity.dtype) == (np.int64, np.int64, np.uint8)
    assert records.identity.shape == (3, 32)


def test_rows_of_a_person_share_unit_and_identity() -> None:
    records = apply_contract(table(), contract(person_id="who"))
    assert records.unit.tolist() == [0, 1, 0]
    assert records.units == 2
    assert (records.identity[0] == records.identity[2]).all()
    assert (records.identity[0] != records.identity[1]).any()


def test_duplicate_rows_share_the_identity_but_are_units_of_their_own() -> None:
    frame = pd.concat([table(), table()])
    records = apply_contract(frame, contract())
    assert (records.identity[:3] == records.identity[3:]).all()
    assert len(np.unique(records.identity, axis=0)) == 3
    assert records.units == 6


def test_identity_ignores_the_order_of_columns_and_empty_ones() -> None:
    frame = table()
    other = frame[sorted(frame.columns, reverse=True)].assign(empty=pd.Series([None] * 3, dtype=object))
    np.testing.assert_array_equal(apply_contract(frame, contract()).identity, apply_contract(other, contract()).identity)


def test_identity_does_not_confuse_columns_or_missing_values() -> None:
    frame = table(age=["1", None, "None"], note=[None, "1", "1"])
    frame = frame.assign(sex="1.0", num="0", who="a")
    assert len(np.unique(apply_contract(frame, contract()).identity, axis=0)) == 3


def test_take_keeps_rows_together_and_units_dense() -> None:
    records = apply_contract(table(), contract(person_id="who"), keep="num").take(np.array([2, 1]))
    assert records.text == ("unknown years old, unknown", "41 years old, Female")
    assert records.label.tolist() == [1, 1]
    assert records.groups["sex"].tolist() == [2, 0]
    assert records.unit.tolist() == [0, 1]
    assert records.kept == ("4", "2")
    assert apply_contract(table(), contract()).take(np.array([2])).unit.tolist() == [0]


def test_a_text_column_is_taken_as_it_is() -> None:
    records = apply_contract(table(), contract(text={"column": "note"}))
    assert records.text == ("x {age}", "{0.__class__}", "unknown")


def test_a_group_by_threshold_keeps_its_number_in_the_text() -> None:
    ages = {"<60": "younger", ">=60": "older"}
    data = contract(map={"num": {">=1": "sick", "<1": "well"}, "age": ages}, sensitive={"age": ["younger", "older"]})
    records = apply_contract(table(), data)
    assert records.groups["age"].tolist() == [1, 0, 2]
    assert records.text[0] == "63 years old, 1.0"


def test_a_map_shows_in_the_text_of_other_columns() -> None:
    data = contract(map={"num": {">=1": "sick", "<1": "well"}, "age": {">60": "old"}}, sensitive={}, text="{age}")
    assert apply_contract(table(), data).text == ("old", "41", "unknown")


# --- data.map ---


@pytest.mark.parametrize(
    ("key", "values", "holds"),
    [
        (">=1", ["1", "1.0", "0.99", "1e0"], [True, True, False, True]),
        ("<5", ["4.9", "5", "-3", "+.5"], [True, False, True, True]),
        (" > 2 ", ["2", "2.1"], [False, True]),
        ("<=0", ["0", "-0.0", "1"], [True, True, False]),
        ("!=0", ["0", "3"], [False, True]),
        ("==3", ["3.0", "4"], [True, False]),
        (">=40,<60", ["39", "40", "59.9", "60"], [False, True, True, False]),
    ],
)
def test_comparisons(key: str, values: list[str | None], holds: list[bool]) -> None:
    assert map_values(values, {key: "yes"}, column="c") == ["yes" if held else value for value, held in zip(values, holds, strict=True)]


@pytest.mark.parametrize("value", ["nan", "inf", "1_000", "0x10", "ten", "1,5", "１"])  # the last is a full-width digit
def test_what_is_not_plainly_a_number_satisfies_no_comparison(value: str) -> None:
    assert map_values([value], {"!=-1": "yes"}, column="c") == [value]


def test_an_exact_key_wins_and_a_label_such_as_50k_is_no_comparison() -> None:
    assert map_values(["9", "3", None], {"9": "not asked", ">=1": "sick"}, column="c") == ["not asked", "sick", None]
    assert map_values([">50K", "60"], {">50K": "high", "<=50K": "low"}, column="c") == ["high", "60"]


def test_comparisons_that_disagree_are_refused_in_any_order() -> None:
    for mapping in ({">=1": "sick", ">=3": "very sick"}, {">=3": "very sick", ">=1": "sick"}):
        with pytest.raises(FedethosError, match="2 rows") as error:
            map_values(["1", "3", "4", "0"], mapping, column="c")
        assert error.value.code == "DATA-114"
    assert map_values(["4"], {">=1": "sick", ">=3": "sick"}, column="c") == ["sick"]


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_comparisons_agree_with_python(number: float, bound: float) -> None:
    both = {f">={bound!r}": "at least", f"<{bound!r}": "below"}
    assert map_values([repr(number)], both, column="c") == ["at least" if number >= bound else "below"]


# --- data.text ---


@pytest.mark.parametrize(
    "template",
    ["{age:>5}", "{age!r}", "{age", "age}", "{}", "{ }", "no column", "{{age}}", "{age:{sex}}", ""],
)
def test_templates_are_plain_columns_only(template: str) -> None:
    with pytest.raises(FedethosError) as error:
        parse_template(template)
    assert error.value.code == "DATA-112"


@pytest.mark.parametrize("template", ["{age.__class__}", "{age[0]}", "{0}", "{__builtins__}"])
def test_attributes_and_indices_are_only_names_of_columns_that_do_not_exist(template: str) -> None:
    assert refusal(table(), contract(text=template)).code == "DATA-104"


def test_a_template_keeps_literal_braces_and_names_with_dots() -> None:
    template = parse_template("a {{b}} {num.co} {{c}} {x}, {x}!")
    assert template.columns == ("num.co", "x", "x")
    assert template.render({"num.co": ["1", None], "x": ["{y}", "z"]}) == ("a {b} 1 {c} {y}, {y}!", "a {b} unknown {c} z, z!")


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(max_size=8), st.sampled_from(["a", "b c", "d.e"])), min_size=1, max_size=5), st.text(max_size=8))
def test_a_template_renders_what_it_says(parts: list[tuple[str, str]], tail: str) -> None:
    values = {"a": "{a}", "b c": "", "d.e": "%s"}
    written = "".join(literal.replace("{", "{{").replace("}", "}}") + "{" + name + "}" for literal, name in parts)
    template = parse_template(written + tail.replace("{", "{{").replace("}", "}}"))
    assert template.render({name: [value] for name, value in values.items()}) == (
        "".join(literal + values[name] for literal, name in parts) + tail,
    )


@pytest.mark.parametrize("column", ["num", "who"])
def test_the_text_shows_neither_label_nor_person(column: str) -> None:
    assert refusal(table(), contract(text=f"{{age}} {{{column}}}", person_id="who")).code == "DATA-113"
    assert refusal(table(), contract(text={"column": column}, person_id="who")).code == "DATA-113"


# --- refusals ---


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"text": "{agee}"}, "data.text"),
        ({"sensitive": {"Sex2": ["Female", "Male"]}}, "data.sensitive"),
        ({"label": {"column": "number", "values": ["well", "sick"], "favorable": "well"}}, "data.label.column"),
        ({"person_id": "whoo"}, "data.person_id"),
        ({"map": {"sexx": {"a": "b"}}}, "data.map"),
    ],
)
def test_a_missing_column_names_its_key_and_the_nearest_columns(changes: dict[str, object], key: str) -> None:
    error = refusal(table(), contract(**changes))
    assert (error.code, error.where) == ("DATA-104", key)
    assert "Nearest names" in error.fix


def test_a_kept_column_must_exist() -> None:
    assert refusal(table(), contract(), keep="hospital").code == "DATA-104"


def test_a_first_record_taken_for_a_header_is_not_shown() -> None:
    headerless = pd.DataFrame({f"age {SECRET}": ["41"], "sex-Male": ["x"]}, dtype=object)
    error = refusal(headerless, contract())
    assert error.code == "DATA-104"
    assert "sex-Male" not in str(error)
    assert "data.columns" in error.fix


def test_undeclared_values_are_counted_and_not_shown() -> None:
    error = refusal(table(sex=[SECRET, SECRET + "2", "1.0"]), contract())
    assert error.code == "DATA-121"
    assert '2 rows have a value in "sex"' in error.what
    error = refusal(table(num=["0", SECRET, "1"]), contract())
    assert error.code == "DATA-122"
    assert '1 rows have a value in "num"' in error.what


def test_a_missing_label_or_person_is_counted() -> None:
    assert "2 rows" in refusal(table(num=["0", None, None]), contract()).what
    assert refusal(table(num=["0", None, None]), contract()).code == "DATA-123"
    error = refusal(table(who=[SECRET, None, SECRET]), contract(person_id="who"))
    assert error.code == "DATA-124"
    assert "1 rows" in error.what


def test_a_map_may_lead_only_to_declared_categories() -> None:
    error = refusal(table(), contract(map={"sex": {"1.0": "Man", "0.0": "Female"}}))
    assert (error.code, error.where) == ("DATA-115", "data.map.sex")


def test_a_map_to_null_means_missing_in_this_column_alone() -> None:
    frame = table(chol=["0", "233", "0.0"], steps=["0", "5", "7"])
    data = contract(
        map={"chol": {"<=0": None}, "sex": {"1.0": "Male", "0.0": None}, "num": {">=1": "sick", "<1": "well"}},
        text="chol {chol}, steps {steps}, {sex}",
    )
    records = apply_contract(frame, data)
    assert records.text == ("chol unknown, steps 0, Male", "chol 233, steps 5, unknown", "chol unknown, steps 7, unknown")
    assert records.groups["sex"].tolist() == [1, 2, 2]


def test_a_number_sorted_into_groups_is_missing_everywhere_where_the_map_says_so() -> None:
    data = contract(
        map={"num": {">=1": "sick", "<1": "well"}, "age": {"-9": None, "<60,>=0": "younger", ">=60": "older"}},
        text=None,
        features={"age": {"low": 0, "high": 100}},
        sensitive={"age": ["younger", "older"]},
    )
    records = apply_contract(table(age=["63", "-9", "41"]), data)
    assert records.groups["age"].tolist() == [1, 2, 0]
    np.testing.assert_allclose(records.features, [[0.63, 0], [0.5, 1], [0.41, 0]], rtol=1e-6)


def test_a_label_that_the_map_calls_missing_is_refused() -> None:
    assert refusal(table(), contract(map={"num": {"0": None, ">=1": "sick"}})).code == "DATA-123"
