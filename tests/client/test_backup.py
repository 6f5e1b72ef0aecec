"""A back-up is whole, private, made while the node writes, and brings the site back as it was."""

import shutil
from pathlib import Path

import pytest

from fedethos.cli import run
from fedethos.client.backup import back_up
from fedethos.client.egress import FILE, Egress, Sent, read
from fedethos.client.history import FILE as HISTORY
from fedethos.client.history import History
from fedethos.client.spending import open_site_account, spending_plan
from fedethos.errors import FedethosError
from fedethos.privacy.ledger import Ledger, read_ledger

from .conftest import RUN, Hospital


def at_work(hospital: Hospital, rounds: range) -> None:
    """Rounds that were paid for, answered and recorded."""
    with Egress(hospital.state / FILE) as record, Ledger(hospital.folder / "ledger.sqlite") as ledger:
        open_site_account(ledger, hospital.job, hospital.site)
        plan = ledger.commit(spending_plan(hospital.job, hospital.site, RUN))
        for round in rounds:
            receipt = plan.reserve("train", round)
            plan.record(receipt.release(b"", event=receipt.event), b"reply")
            fields = {"run": RUN, "round": round, "message_type": "train", "shapes": {}, "bytes": 1, "sha256": "0" * 64}
            record.append(Sent(**fields, epsilon_after=plan.spent(), refused=None))


def test_a_copy_brings_the_site_back(hospital, tmp_path: Path, capsys) -> None:
    at_work(hospital, range(1, 3))
    with History(hospital.state / HISTORY) as history:
        history.record("m1", hospital.job.sha256, RUN, 2)
    copy = tmp_path / "copies" / "today"
    assert run(["client", "backup", str(copy), str(hospital.site_file)]) == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in copy.rglob("*"))
    assert run(["client", "doctor", str(hospital.site_file), "--offline", "--backup", str(copy)]) == 0
    before = read(hospital.state / FILE), read_ledger(hospital.folder / "ledger.sqlite")[1]
    for path in (hospital.state, *hospital.folder.glob("ledger*"), hospital.key):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(copy, hospital.folder, dirs_exist_ok=True)
    assert (read(hospital.state / FILE), read_ledger(hospital.folder / "ledger.sqlite")[1]) == before
    assert hospital.approval().job == hospital.job
    with History(hospital.state / HISTORY) as history, pytest.raises(FedethosError, match="SEC-634"):
        history.check("m1", hospital.job.sha256, RUN, 2)


def test_it_is_made_while_the_node_writes(hospital, tmp_path: Path) -> None:
    at_work(hospital, range(1, 2))
    with Egress(hospital.state / FILE), Ledger(hospital.folder / "ledger.sqlite") as ledger:
        back_up(hospital.site_file, hospital.site, tmp_path / "copy")
        assert read_ledger(tmp_path / "copy" / "ledger.sqlite")[1] == ledger.head


def test_an_older_copy_is_never_overwritten(hospital, tmp_path: Path) -> None:
    back_up(hospital.site_file, hospital.site, tmp_path / "copy")
    with pytest.raises(FedethosError, match="CFG-406"):
        back_up(hospital.site_file, hospital.site, tmp_path / "copy")


def test_a_damaged_record_is_not_copied_as_if_it_were_whole(hospital, tmp_path: Path) -> None:
    at_work(hospital, range(1, 3))
    path = hospital.state / FILE
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":3'))
    with pytest.raises(FedethosError, match="SEC-664"):
        back_up(hospital.site_file, hospital.site, tmp_path / "copy")


def test_putting_back_only_an_old_ledger_is_noticed(hospital, tmp_path: Path, capsys) -> None:
    at_work(hospital, range(1, 2))
    back_up(hospital.site_file, hospital.site, tmp_path / "copy")
    at_work(hospital, range(2, 3))
    for path in hospital.folder.glob("ledger*"):
        path.unlink()
    for name in ("ledger.sqlite", "ledger.sqlite.head"):
        shutil.copy(tmp_path / "copy" / name, hospital.folder / name)
    assert run(["client", "ledger", str(hospital.site_file)]) == 4
    assert "PRIV-362" in capsys.readouterr().err
