"""Which records a scenario's filter matches, by hand."""

import pandas as pd
import pytest

from fedethos.data.contract import apply_contract
from fedethos.data.filters import matching
from fedethos.errors import FedethosError
from fedethos.job_data import Data
from fedethos.job_scenarios import Contains

TABLE = {
    "age": ["70", "30", "65", None, "old"],
    "group": ["older", "younger", "older", None, "older"],  # age after data.map
    "note": ["uses a Walker", "runs", None, "walker", "no aid"],
    "ward": ["a", "b", "a", "c", None],
}


@pytest.mark.parametrize(
    ("wanted", "groups"),
    [
        ({"ward": ["a", "c"]}, [0, 1, 0, 0, 2]),
        ({"age": [">=65"]}, [0, 1, 0, 2, 1]),
        ({"age": [">=65", "30"]}, [0, 0, 0, 2, 1]),
        ({"age": [">=60,<70"]}, [1, 1, 0, 2, 1]),
        ({"note": Contains(contains=["WALKER", "wheelchair"])}, [0, 1, 2, 0, 1]),
        ({"note": Contains(contains=["walker"]), "ward": ["a"]}, [0, 1, 2, 1, 1]),  # what is missing matters only where it decides
        ({"ward": ["nowhere"]}, [1, 1, 1, 1, 2]),
    ],
)
def test_values_comparisons_and_texts(wanted: dict[str, object], groups: list[int]) -> None:
    assert matching(wanted, TABLE, TABLE, rows=5).tolist() == groups


def test_a_number_that_the_map_sorts_into_groups_is_compared_as_a_number_and_named_as_a_group() -> None:
    mapped = {**TABLE, "age": TABLE["group"]}
    assert matching({"age": ["older"]}, mapped, TABLE, rows=5).tolist() == [0, 1, 0, 2, 0]
    assert matching({"age": [">66"]}, mapped, TABLE, rows=5).tolist() == [0, 1, 1, 2, 1]


def test_a_filter_is_one_more_grouping_of_the_records() -> None:
    data = Data.model_validate({"path": "x.csv", "text": "{note}", "response": "{ward}", "sensitive": {"group": ["younger", "older"]}})
    frame = pd.DataFrame({name: [cells[row] for row in (0, 1, 3)] for name, cells in TABLE.items()}, dtype=object)
    found = apply_contract(frame, data, filters={"scenario:aided": {"note": Contains(contains=["walker"])}})
    assert found.groups["group"].tolist() == [1, 0, 2]
    assert found.groups["scenario:aided"].tolist() == [0, 1, 0]
    with pytest.raises(FedethosError, match=r"DATA-104.*scenarios"):
        apply_contract(frame, data, filters={"scenario:x": {"notes": ["x"]}})
