"""Files to one table of text: the same rows in every format, and refusals that never show a value."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.data.contract import Records, apply_contract
from fedethos.data.delimited import read_delimited
from fedethos.data.readers import read_table
from fedethos.data.values import text_of
from fedethos.errors import FedethosError
from fedethos.job_data import Data

COLUMNS = ["person", "age", "weight", "smoker", "note", "sex", "outcome"]
ROWS: list[tuple[object, ...]] = [
    ("p1", 63, 70.5, True, "chest pain, worse at night", "Male", "sick"),
    ("p1", 64, 71.0, True, 'says "fine"', "Male", "well"),
    ("p2", 41, 58.25, False, None, None, "well"),
    ("p3", 55, None, False, "?", "Female", "sick"),
]
SECRET = "JANE-DOE-4711"


def contract(path: str = "x.csv", **changes: object) -> Data:
    fields: dict[str, object] = {
        "path": path,
        "na_values": ["?"],
        "text": "{age} years old, {weight} kg, smoker {smoker}: {note}",
        "label": {"column": "outcome", "values": ["well", "sick"], "favorable": "well"},
        "sensitive": {"sex": ["Female", "Male"]},
        "person_id": "person",
    }
    return Data.model_validate(fields | changes)


def write(folder: Path, kind: str) -> str:
    """ROWS in one of the formats, typed where the format has types."""
    typed = pd.DataFrame(ROWS, columns=COLUMNS)
    match kind:
        case "csv":
            typed.to_csv(folder / "t.csv", index=False)
        case "spaced":
            lines = [", ".join("" if cell is None else '"' + str(cell).replace('"', '""') + '"' for cell in row) for row in ROWS]
            (folder / "t.data").write_text("\n".join(lines) + "\n\n")
        case "semicolon":
            typed.to_csv(folder / "t.csv", index=False, sep=";")
        case "tsv":
            typed.to_csv(folder / "t.tsv", index=False, sep="\t")
        case "pandas index":
            typed.to_csv(folder / "t.csv", encoding="utf-8-sig")
        case "parquet":
            typed.to_parquet(folder / "t.parquet")
        case "jsonl":
            lines = [json.dumps({k: v for k, v in zip(COLUMNS, row, strict=True) if v is not None}) for row in ROWS]
            (folder / "t.jsonl").write_text("\n".join(lines))
        case "dataset":
            datasets.Dataset.from_dict(dict(zip(COLUMNS, map(list, zip(*ROWS, strict=True)), strict=True))).save_to_disk(folder / "t")
            return "t"
    return next(path.name for path in folder.iterdir())


def assert_same(a: Records, b: Records) -> None:
    assert a.text == b.text
    np.testing.assert_array_equal(a.label, b.label)
    assert a.groups.keys() == b.groups.keys()
    for attribute in a.groups:
        np.testing.assert_array_equal(a.groups[attribute], b.groups[attribute])
    np.testing.assert_array_equal(a.unit, b.unit)
    np.testing.assert_array_equal(a.identity, b.identity)


def code_of(error: pytest.ExceptionInfo[FedethosError]) -> str:
    assert SECRET not in str(error.value)
    return error.value.code


@pytest.mark.parametrize("person_id", ["person", None])
@pytest.mark.parametrize("kind", ["spaced", "semicolon", "tsv", "pandas index", "parquet", "jsonl", "dataset"])
def test_the_same_rows_give_the_same_records_in_every_format(tmp_path: Path, kind: str, person_id: str | None) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "other").mkdir()
    from_csv = contract(write(tmp_path / "csv", "csv"), person_id=person_id)
    other = contract(write(tmp_path / "other", kind), person_id=person_id, columns=COLUMNS if kind == "spaced" else None)
    expected = apply_contract(read_table(from_csv, base=tmp_path / "csv"), from_csv)
    assert_same(apply_contract(read_table(other, base=tmp_path / "other"), other), expected)
    assert expected.text[0] == "63 years old, 70.5 kg, smoker True: chest pain, worse at night"
    assert expected.text[3] == "55 years old, unknown kg, smoker False: unknown"
    assert expected.groups["sex"].tolist() == [1, 1, 2, 0]


def test_every_cell_is_text_or_none(tmp_path: Path) -> None:
    frame = read_table(contract(write(tmp_path, "parquet")), base=tmp_path)
    assert {type(cell) for cell in frame.to_numpy().ravel()} == {str, type(None)}
    assert frame["weight"].tolist() == ["70.5", "71.0", "58.25", None]


@pytest.mark.parametrize(
    ("value", "text"),
    [(39, "39"), (1.0, "1.0"), (0.1, "0.1"), (True, "True"), (" a ", "a"), ("01", "01"), ("", None), (float("nan"), None), (None, None)],
)
def test_one_text_per_value(value: object, text: str | None) -> None:
    assert text_of(value) == text


def test_single_precision_keeps_its_short_form(tmp_path: Path) -> None:
    pd.DataFrame({"a": np.array([0.1, np.nan, 3.0], dtype=np.float32)}).to_parquet(tmp_path / "f.parquet")
    assert read_table(contract("f.parquet"), base=tmp_path)["a"].tolist() == ["0.1", None, "3.0"]


def test_lists_and_objects_are_json_in_every_format(tmp_path: Path) -> None:
    rows = [{"tags": ["b", "a"], "more": {"z": 1, "a": None}}]
    (tmp_path / "n.jsonl").write_text(json.dumps(rows[0]))
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "n")
    expected = [['["b","a"]', '{"a":null,"z":1}']]
    for name in ("n.jsonl", "n"):
        assert read_table(contract(name), base=tmp_path)[["tags", "more"]].to_numpy().tolist() == expected


def test_a_dataset_dict_is_read_split_after_split(tmp_path: Path) -> None:
    parts = {"train": datasets.Dataset.from_dict({"a": [1, 2]}), "test": datasets.Dataset.from_dict({"a": [3]})}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    assert read_table(contract("d"), base=tmp_path)["a"].tolist() == ["1", "2", "3"]


def test_a_shuffled_and_sharded_dataset_keeps_its_rows(tmp_path: Path) -> None:
    shuffled = datasets.Dataset.from_dict({"a": list(range(100))}).shuffle(seed=3).select(range(10, 90))
    shuffled.save_to_disk(tmp_path / "d", num_shards=3)
    assert read_table(contract("d"), base=tmp_path)["a"].tolist() == [str(value) for value in shuffled["a"]]


def test_builtin_adult_is_the_published_set() -> None:
    """Counts of the UCI documentation (adult.names): 48,842 records, 23.93 % above 50K, 16,192 women."""
    frame = read_table(contract("builtin:adult"), base=Path("/nowhere"))
    assert frame.shape == (48_842, 15)
    assert (frame["income"] == ">50K").sum() == 11_687
    assert (frame["sex"] == "Female").sum() == 16_192
    assert frame["occupation"].isna().sum() == 2_809
    assert frame.loc[0, ["age", "workclass", "capital_gain", "income"]].tolist() == ["39", "State-gov", "2174", "<=50K"]


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("none.csv", None, "DATA-101"),
        ("none", None, "DATA-101"),
        ("t.xlsx", b"PK", "DATA-102"),
        ("t.csv", b"note\n\xff\xfe" + SECRET.encode(), "DATA-103"),
        ("t.parquet", SECRET.encode(), "DATA-103"),
        ("t.parquet", b"PAR1" + SECRET.encode() + b"PAR1", "DATA-103"),
        ("t.csv", f"a,b\n1,2\n{SECRET},2,3\n".encode(), "DATA-105"),
        ("t.csv", f"a,b\n1,2\n{SECRET}\n".encode(), "DATA-105"),
        ("t.csv", f'a,b\n1,"{SECRET}\n'.encode(), "DATA-105"),
        ("t.jsonl", f'{{"a": 1}}\n{{"a": {SECRET}}}'.encode(), "DATA-106"),
        ("t.jsonl", f'["{SECRET}"]'.encode(), "DATA-106"),
        ("t.jsonl", f'{{"a": 1, "a": "{SECRET}"}}'.encode(), "DATA-106"),
        ("t.jsonl", b'{"a": "\\ud800"}', "DATA-106"),
        ("t.jsonl", b"[" * 100_000, "DATA-106"),
        ("t.csv", b"", "DATA-107"),
        ("t.csv", b"a,b\n", "DATA-107"),
        ("t.jsonl", b"\n", "DATA-107"),
        ("t.csv", f"{SECRET},b,{SECRET}\n1,2,3\n".encode(), "DATA-108"),
        ("t.csv", f"63.0,{SECRET}\n41.0,x\n".encode(), "DATA-109"),
        ("t.csv", b"a;b,c;d\n1;2,3;4\n", "DATA-110"),
    ],
)
def test_broken_files_are_refused_without_a_value(tmp_path: Path, name: str, content: bytes | None, code: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FedethosError) as error:
        read_table(contract(name), base=tmp_path)
    assert code_of(error) == code


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(FedethosError) as error:
        read_table(contract("d"), base=tmp_path)
    assert code_of(error) == "DATA-102"


@pytest.mark.parametrize("damage", ["truncate", "remove", "state", "indices"])
def test_a_damaged_dataset_folder_is_refused(tmp_path: Path, damage: str) -> None:
    datasets.Dataset.from_dict({"a": [SECRET] * 1000}).save_to_disk(tmp_path / "d")
    shard, state = tmp_path / "d/data-00000-of-00001.arrow", tmp_path / "d/state.json"
    match damage:
        case "truncate":
            shard.write_bytes(shard.read_bytes()[:500])
        case "remove":
            shard.unlink()
        case "state":
            state.write_text("{")
        case "indices":
            state.write_text(json.dumps(json.loads(state.read_text()) | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(FedethosError) as error:
        read_table(contract("d"), base=tmp_path)
    assert code_of(error) == "DATA-103"


def test_the_line_number_is_the_lines_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,b\n\n1,"two\nlines"\n1,2,3\n')
    with pytest.raises(FedethosError, match="Line 5 has 3 fields"):
        read_table(contract("t.csv"), base=tmp_path)
    (tmp_path / "t.jsonl").write_text('{"a": 1}\n\n{')
    with pytest.raises(FedethosError, match="Line 3 "):
        read_table(contract("t.jsonl"), base=tmp_path)


def test_text_that_is_not_utf8_inside_parquet_is_refused(tmp_path: Path) -> None:
    broken = pa.array([b"\xff" + SECRET.encode()]).view(pa.string())
    pq.write_table(pa.table({"a": broken}), tmp_path / "t.parquet")
    with pytest.raises(FedethosError) as error:
        read_table(contract("t.parquet"), base=tmp_path)
    assert code_of(error) == "DATA-103"


def test_bytes_are_no_text(tmp_path: Path) -> None:
    pd.DataFrame({"a": [b"x"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(FedethosError) as error:
        read_table(contract("t.parquet"), base=tmp_path)
    assert code_of(error) == "DATA-103"


def test_declared_columns_must_fit(tmp_path: Path) -> None:
    (tmp_path / "t.data").write_text("1,2,3\n")
    with pytest.raises(FedethosError) as error:
        read_table(contract("t.data", columns=["a", "b"]), base=tmp_path)
    assert code_of(error) == "DATA-109"
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(FedethosError) as error:
        read_table(contract("t.parquet", columns=["a", "b"]), base=tmp_path)
    assert code_of(error) == "DATA-109"


def test_a_repeated_column_with_the_same_values_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,a\n1,2,1\n")
    assert read_table(contract("t.csv"), base=tmp_path).columns.tolist() == ["a", "b"]


def test_blanks_separate_only_what_nothing_else_separates(tmp_path: Path) -> None:
    (tmp_path / "german.data").write_text("A11 6 A34\nA12 48 A32\n")
    (tmp_path / "adult.data").write_text("39, Private, White\n50, Private, Black\n")
    columns = ["a", "b", "c"]
    assert read_table(contract("german.data", columns=columns), base=tmp_path)["b"].tolist() == ["6", "48"]
    assert read_table(contract("adult.data", columns=columns), base=tmp_path)["c"].tolist() == ["White", "Black"]


def test_unknown_builtin_names_the_known_ones() -> None:
    with pytest.raises(FedethosError, match="builtin:adult") as error:
        read_table(contract("builtin:../adult"), base=Path())
    assert code_of(error) == "DATA-111"


_cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(_cells, _cells, _cells), min_size=1, max_size=8))
def test_what_pandas_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    pd.DataFrame(rows, columns=["a", "b", "c"]).to_csv(path, index=False, quoting=1, lineterminator="\n")
    read = read_delimited(path, None)
    assert [cells for _, cells in read] == [[text_of(cell) for cell in column] for column in zip(*rows, strict=True)]


@settings(deadline=None)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".jsonl", ".parquet"]))
def test_any_bytes_are_a_table_or_a_coded_refusal(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("any") / f"t{suffix}"
    path.write_bytes(content)
    try:
        assert len(read_table(contract(str(path)), base=path.parent)) > 0
    except FedethosError as error:
        assert error.code.startswith("DATA-1")
