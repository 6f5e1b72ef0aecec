"""A ledger of an earlier version is read, upgraded and continued; one of a later version is left alone.

``files/ledger-v0.sqlite`` is a real one: two of four rounds of counts, written before ledger files had a version.
"""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fedethos.caps import Caps
from fedethos.errors import FedethosError
from fedethos.privacy.ledger import Ledger, read_ledger
from fedethos.privacy.ledger_chain import head_path

V0 = Path(__file__).parent / "files" / "ledger-v0.sqlite"
CAPS = Caps(lifetime_epsilon=8.0, per_job_epsilon=8.0, rounds=100_000)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    for file in (V0, head_path(V0)):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / V0.name


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        number: int = database.execute("PRAGMA user_version").fetchone()[0]
        return number


def test_an_older_ledger_keeps_all_that_was_spent(old: Path) -> None:
    before, head = read_ledger(old)
    assert (version(old), head.count, len(before.reservations)) == (0, 6, 2)
    with Ledger(old):
        pass
    after, same_head = read_ledger(old)
    assert (version(old), same_head) == (1, head)
    assert after.reservations == before.reservations
    assert after.plans == before.plans


def test_an_older_ledger_goes_on_where_it_was(old: Path) -> None:
    (before,) = read_ledger(old)[0].plans.values()
    with Ledger(old) as ledger:
        ledger.open_account("patients", caps=CAPS, unit="record", adjacency="add-remove", simulated=False)
        plan = ledger.commit(before.plan)
        assert plan.stored_reply("train", 2) == b"reply 2"
        for round in (3, 4):
            receipt = plan.reserve("train", round)
            plan.record(receipt.release(round, event=receipt.event), b"more")
        with pytest.raises(FedethosError, match="PRIV-315"):
            plan.reserve("train", 5)  # the first two rounds are not forgotten
    assert len(read_ledger(old)[0].reservations) == 4


def test_reading_an_older_ledger_changes_nothing(old: Path) -> None:
    bytes_before = old.read_bytes()
    read_ledger(old)
    assert old.read_bytes() == bytes_before


def test_a_new_ledger_has_the_version(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite"):
        pass
    assert version(tmp_path / "ledger.sqlite") == 1


@pytest.mark.parametrize("number", [2, -1])
def test_a_ledger_of_another_version_is_left_alone(old: Path, number: int) -> None:
    with closing(sqlite3.connect(old)) as database:
        database.execute(f"PRAGMA user_version = {number}")
    before = old.read_bytes()
    for look in (lambda: Ledger(old).close(), lambda: read_ledger(old)):
        with pytest.raises(FedethosError, match="PRIV-365"):
            look()
    with closing(sqlite3.connect(old)) as database:
        assert database.execute("SELECT count(*) FROM entries").fetchone() == (6,)
    assert len(before) == old.stat().st_size
