"""The ledger on disk: tampering, cut tails, kills at random moments, processes that race."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.caps import Caps
from fedethos.errors import FedethosError
from fedethos.privacy.events import Allotment, CountRelease
from fedethos.privacy.ledger import Ledger, read_ledger
from fedethos.privacy.ledger_chain import NOTHING, Chain, head_path
from fedethos.privacy.ledger_entries import SpendingPlan

ROUNDS = 4


def open_ledger(path: Path, *, sigma: float = 20.0, times: int = ROUNDS, lifetime: float = 8.0, commit: bool = True) -> Ledger:
    caps = Caps(lifetime_epsilon=lifetime, per_job_epsilon=lifetime, rounds=100_000)
    ledger = Ledger(path)
    ledger.open_account("patients", caps=caps, unit="record", adjacency="add-remove", simulated=False)
    if commit:
        ledger.commit(spending(sigma=sigma, times=times))
    return ledger


def spending(*, sigma: float = 20.0, times: int = ROUNDS) -> SpendingPlan:
    event = CountRelease(sigma=sigma, rows=1, tables=1, population="train")
    return SpendingPlan(
        account="patients",
        job_sha256="a" * 64,
        run="r1",
        unit="record",
        adjacency="add-remove",
        epsilon=8.0,
        delta=1e-5,
        allotments=(Allotment(purpose="train", event=event, times=times),),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed ledger of two rounds: six entries."""
    path = tmp_path_factory.mktemp("written") / "ledger.sqlite"
    with open_ledger(path) as ledger:
        plan = ledger.commit(spending())
        for round in (1, 2):
            receipt = plan.reserve("train", round)
            plan.record(receipt.release(round, event=receipt.event), f"reply {round}".encode())
    return path


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return copy_to(written, tmp_path)


def copy_to(written: Path, folder: Path) -> Path:
    for file in (written, head_path(written)):
        shutil.copy(file, folder / file.name)
    return folder / written.name


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def is_refused(path: Path) -> None:
    for look in (lambda: Ledger(path).close(), lambda: read_ledger(path)):
        with pytest.raises(FedethosError, match="PRIV-312"):
            look()


# --- tampering ---


def test_untouched_ledger_is_accepted_and_only_its_owner_can_read_it(written: Path) -> None:
    state, head = read_ledger(written)
    assert (head.count, len(state.reservations)) == (6, 2)
    assert [file.stat().st_mode & 0o777 for file in (written, head_path(written))] == [0o600, 0o600]


@settings(max_examples=60, deadline=None)
@given(row=st.integers(1, 6), column=st.sampled_from(["previous", "text", "hash"]), where=st.integers(0, 2000), data=st.data())
def test_any_flipped_character_is_found(
    written: Path, tmp_path_factory: pytest.TempPathFactory, row: int, column: str, where: int, data: st.DataObject
) -> None:
    path = copy_to(written, tmp_path_factory.mktemp("flip"))
    with closing(sqlite3.connect(path)) as database:
        text = database.execute(f"SELECT {column} FROM entries WHERE number = ?", (row,)).fetchone()[0]  # noqa: S608
        at = where % len(text)
        other = data.draw(st.characters(min_codepoint=32, max_codepoint=126).filter(lambda one: one != text[at]))
        flipped = text[:at] + other + text[at + 1 :]
        database.execute(f"UPDATE entries SET {column} = ? WHERE number = ?", (flipped, row))  # noqa: S608
        database.commit()
    is_refused(path)


@pytest.mark.parametrize(
    "statements",
    [
        ("DELETE FROM entries WHERE number = 3",),
        ("DELETE FROM entries WHERE number = 1",),
        ("DELETE FROM entries WHERE number = 6",),
        ("DELETE FROM entries",),
        (
            "UPDATE entries SET number = 99 WHERE number = 3",
            "UPDATE entries SET number = 3 WHERE number = 4",
            "UPDATE entries SET number = 4 WHERE number = 99",
        ),
        ("UPDATE entries SET number = 7 WHERE number = 6",),
        ("INSERT INTO entries SELECT 7, previous, text, hash FROM entries WHERE number = 6",),
        ("UPDATE entries SET text = CAST(text AS BLOB) WHERE number = 2",),
    ],
    ids=["middle removed", "first removed", "tail cut", "emptied", "swapped", "renumbered", "repeated", "retyped"],
)
def test_removed_moved_or_added_entries_are_found(copied: Path, statements: tuple[str, ...]) -> None:
    change(copied, *statements)
    is_refused(copied)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: head_path(path).unlink(),
        lambda path: path.unlink(),
        lambda path: head_path(path).write_bytes(b"0" * 40),
        lambda path: head_path(path).write_bytes(head_path(path).read_bytes().replace(b"6 ", b"7 ")),
        lambda path: path.write_bytes(b"no database at all" * 100),
    ],
    ids=["no head", "no table", "torn head", "head ahead", "no database"],
)
def test_files_that_do_not_belong_together_are_refused(copied: Path, spoil: Callable[[Path], None]) -> None:
    spoil(copied)
    is_refused(copied)


def test_missing_ledger_is_not_replaced_by_an_empty_one(copied: Path) -> None:
    copied.unlink()
    with pytest.raises(FedethosError, match="PRIV-312"):
        Ledger(copied)
    assert not copied.exists()


def test_rebuilt_chain_is_found_by_the_head(copied: Path) -> None:
    """Somebody removes the last reservation and recomputes every hash, but cannot write the head."""
    with closing(sqlite3.connect(copied)) as database:
        texts = [row[0] for row in database.execute("SELECT text FROM entries ORDER BY number")]
        database.execute("DELETE FROM entries")
        head = NOTHING
        for text in [*texts[:4], texts[2], texts[3]]:
            before, head = head, head.next(text)
            database.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", (head.count, before.hash, text, head.hash))
        database.commit()
    is_refused(copied)


def test_entry_of_another_version_is_refused(copied: Path) -> None:
    chain = Chain(copied)
    with chain.exclusive():
        chain.append('{"body":{"entry":"refund"},"time":"now"}')
    chain.close()
    is_refused(copied)


def test_changed_reply_is_not_sent(copied: Path) -> None:
    change(copied, "UPDATE replies SET reply = X'00' WHERE round = 2")
    with open_ledger(copied) as ledger:
        plan = ledger.commit(spending())
        assert plan.stored_reply("train", 1) == b"reply 1"
        with pytest.raises(FedethosError, match="PRIV-312"):
            plan.stored_reply("train", 2)


def test_head_that_is_behind_is_brought_up_to_date(copied: Path) -> None:
    """As after a kill between the table and the head, or a power cut."""
    newest = head_path(copied).read_bytes()
    head_path(copied).write_bytes(f"{0:020d} {'0' * 64}\n".encode())
    Ledger(copied).close()
    assert head_path(copied).read_bytes() == newest


def test_what_cannot_be_written_is_not_released(tmp_path: Path) -> None:
    with pytest.raises(FedethosError, match="PRIV-307"):
        Ledger(tmp_path / "no such folder" / "ledger.sqlite")


def test_failed_commit_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with open_ledger(path, commit=False, lifetime=1.0) as ledger:
        with pytest.raises(FedethosError, match="PRIV-310"):
            ledger.commit(spending(sigma=2.0))
        assert ledger.head.count == 1
        ledger.commit(spending(sigma=30.0))
        assert ledger.head.count == 2
    assert read_ledger(path)[1].count == 2


# --- kills and races ---

OPEN = """
import os, random, signal, sys, time
from pathlib import Path
from fedethos.errors import FedethosError
from fedethos.privacy.ledger import Ledger
path = Path(sys.argv[1])

def committed(ledger):
    [state] = ledger.accounts["patients"].plans.values()
    return ledger.commit(state.plan)

def in_children(work, count):
    go, start = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            os.close(start)
            os.read(go, 1)
            os._exit(work(number))
        children.append(child)
    os.close(start)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
"""

KILLED = """
def work():
    outside = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with Ledger(path) as ledger:
        plan = committed(ledger)
        while True:
            receipt = plan.reserve("train", 1)
            release = receipt.release(os.urandom(8), event=receipt.event)
            os.write(outside, f"computed {release.number}\\n".encode())
            plan.record(release, release.value)
            os.write(outside, f"sent {release.number} {release.value.hex()}\\n".encode())

random.seed(7)
for _ in range(200):
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    time.sleep(random.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
"""

RACE_FOR_A_ROUND = """
def work(number):
    with Ledger(path) as ledger:
        try:
            committed(ledger).reserve("train", 1)
        except FedethosError as refusal:
            return int(refusal.code == "PRIV-315")
    return 0

print(*in_children(work, 4))
"""

RACE_FOR_THE_BUDGET = """
import dataclasses
import fedethos.privacy.composition
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.events import Allotment, CountRelease
table = CountRelease(sigma=3.0, rows=1, tables=1, population="train")

def work(number):
    with Ledger(path) as ledger:
        try:
            ledger.commit(
                SpendingPlan(
                    account="patients", job_sha256=f"{number:064d}", run="r", unit="record", adjacency="add-remove", epsilon=8.0,
                    delta=1e-5, allotments=(Allotment(purpose="train", event=table, times=9),),
                )
            )
        except FedethosError as refusal:
            return int(refusal.code == "PRIV-310")
    return 0

print(*in_children(work, 2))
"""

TOGETHER = """
def work(number):
    with Ledger(path) as ledger:
        plan = committed(ledger)
        for round in range(25):
            receipt = plan.reserve("train", 100 * number + round)
            plan.record(receipt.release(round, event=receipt.event), str(number).encode())
    return 0

print(*in_children(work, 4))
"""


def run(script: str, *arguments: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", OPEN + script, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_200_kills_never_make_the_ledger_say_less_than_was_released(tmp_path: Path) -> None:
    path, outside = tmp_path / "ledger.sqlite", tmp_path / "outside"
    open_ledger(path, sigma=3000.0, times=100_000).close()
    run(KILLED, path, outside)
    lines = [line.split() for line in outside.read_text().splitlines()]
    computed = [int(line[1]) for line in lines if line[0] == "computed"]
    sent = {int(line[1]): line[2] for line in lines if line[0] == "sent"}
    state, _ = read_ledger(path)
    assert len(computed) == len(set(computed)) > 100
    assert set(computed) <= set(state.reservations)
    assert all(state.reservations[number].sha256 for number in sent)
    assert len(state.reservations) > len(sent), "no kill hit the time between paying and sending: the test proves nothing"
    [plan] = state.plans.values()
    assert plan.left["train"].times == 100_000 - len(state.reservations)


def test_one_of_two_processes_gets_the_last_budget(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    open_ledger(path, commit=False, lifetime=6.0).close()
    assert sorted(run(RACE_FOR_THE_BUDGET, path)) == ["0", "1"]
    assert len(read_ledger(path)[0].plans) == 1


def test_one_of_four_processes_gets_the_last_round(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    open_ledger(path, times=1).close()
    assert sorted(run(RACE_FOR_A_ROUND, path)) == ["0", "1", "1", "1"]


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    open_ledger(path, times=100).close()
    assert run(TOGETHER, path) == ["0"] * 4
    state, head = read_ledger(path)
    assert head_path(path).read_text() == f"{head.count:020d} {head.hash}\n"
    assert (head.count, len(state.reservations)) == (202, 100)
    assert not next(iter(state.plans.values())).left
