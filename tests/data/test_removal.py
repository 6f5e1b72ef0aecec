"""A person on the list is gone before the split, nobody else moves, and a list that cannot be applied stops everything."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedethos.data.contract import apply_contract
from fedethos.data.records import Records
from fedethos.data.removal import identity_of, read_removed, without_removed
from fedethos.data.split import split_records
from fedethos.errors import FedethosError
from fedethos.job_data import Data

CONTRACT = {
    "path": "x.csv",
    "features": {"age": {"low": 0, "high": 100}},
    "label": {"column": "y", "values": ["no", "yes"], "favorable": "yes"},
    "sensitive": {"sex": ["F", "M"]},
    "person_id": "patient",
}
PEOPLE = [f"MRN-{number:04d}" for number in range(60)]


def records(**changes: object) -> Records:
    rows = [{"patient": PEOPLE[n % 60], "age": str(n % 90), "y": "yes" if n % 3 else "no", "sex": "FM"[n % 2]} for n in range(150)]
    return apply_contract(pd.DataFrame(rows, dtype=object), Data.model_validate({**CONTRACT, **changes}))


def removed(folder: Path, *lines: str) -> frozenset[bytes]:
    file = folder / "removed.txt"
    file.write_text("\n".join(lines) + "\n")
    return read_removed(file)


def test_all_records_of_a_listed_person_are_gone(tmp_path: Path) -> None:
    everybody = records()
    left = without_removed(everybody, removed(tmp_path, "# asked on 2026-03-02", "", "MRN-0003", " MRN-0007 "), by_person=True)
    assert left.units == 58 and len(left) == 150 - 3 - 3
    gone = {identity_of("MRN-0003"), identity_of("MRN-0007")}
    assert {row.tobytes() for row in left.identity} == {row.tobytes() for row in everybody.identity} - gone


def test_a_list_of_hashes_names_nobody_and_does_the_same(tmp_path: Path) -> None:
    hashed = [f"sha256:{identity_of(person).hex()}" for person in PEOPLE[:5]]
    assert removed(tmp_path, *hashed) == removed(tmp_path, *PEOPLE[:5])


def test_nobody_else_changes_the_split(tmp_path: Path) -> None:
    data = Data.model_validate(CONTRACT)
    before = split_records(records(), data.split, salt="a salt of this site", limit=None)
    left = without_removed(records(), removed(tmp_path, *PEOPLE[10:20]), by_person=True)
    after = split_records(left, data.split, salt="a salt of this site", limit=None)
    gone = {identity_of(person) for person in PEOPLE[10:20]}
    for split, part in before.items():
        assert {row.tobytes() for row in after[split].identity} == {row.tobytes() for row in part.identity} - gone


def test_an_empty_list_changes_nothing(tmp_path: Path) -> None:
    everybody = records()
    assert without_removed(everybody, removed(tmp_path, "# nobody yet"), by_person=True) is everybody


def test_a_list_that_cannot_be_read_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(FedethosError, match="DATA-125"):
        read_removed(tmp_path / "gone.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa\xfb")
    with pytest.raises(FedethosError, match="DATA-125"):
        read_removed(tmp_path / "binary")


def test_without_a_person_in_the_contract_a_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedethosError, match="DATA-126") as refusal:
        without_removed(records(person_id=None), removed(tmp_path, "MRN-0003"), by_person=False)
    assert "MRN" not in str(refusal.value)


def test_a_list_of_everybody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedethosError, match="DATA-127"):
        without_removed(records(), removed(tmp_path, *PEOPLE), by_person=True)


@given(st.sets(st.sampled_from(PEOPLE), min_size=1, max_size=59))
def test_exactly_the_listed_people_go(people: set[str]) -> None:
    left = without_removed(records(), frozenset(identity_of(person) for person in people), by_person=True)
    assert left.units == 60 - len(people)
    assert not {row.tobytes() for row in left.identity} & {identity_of(person) for person in people}


@given(st.text())
def test_identity_is_that_of_the_records(person: str) -> None:
    import hashlib

    assert identity_of(person) == hashlib.sha256(json.dumps(person).encode()).digest()
    assert np.frombuffer(identity_of(person), np.uint8).shape == (32,)
