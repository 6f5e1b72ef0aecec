import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedethos.errors import FedethosError
from fedethos.runfolder import RunFolder
from fedethos.storage import canonical_json, canonical_line, write_atomically

FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FINITE | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)


def round_record(number: int, **changes: object) -> dict:
    none = dict.fromkeys(("accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy"))
    record = {
        "round": number,
        "seconds": 1.5,
        "sites": {"a": "sent"},
        "metrics": none | {"accuracy": 0.5},
        "fairness": {},
        "basis": "oracle",
        "epsilon": None,
        "bytes_up": 10,
        "bytes_down": 20,
        "aggregation_error": 0.0,
        "refusals": [],
    }
    return record | changes


def code_of(action) -> str:
    with pytest.raises(FedethosError) as caught:
        action()
    return caught.value.code


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@given(JSON)
def test_canonical_json_keeps_the_value_and_does_not_depend_on_key_order(value):
    assert json.loads(canonical_json(value)) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)
    assert canonical_json(value).endswith(b"\n")
    assert canonical_line(value).count(b"\n") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_a_number_that_is_not_finite_is_refused(value):
    assert code_of(lambda: canonical_json(value)) == "RUN-907"


def test_what_is_written_can_be_read_without_the_lock(tmp_path):
    with RunFolder(tmp_path / "deep" / "run").create() as folder:
        folder.write_job("name: x\n")
        folder.append_round(round_record(0))
        folder.append_round(round_record(1))
    reader = RunFolder(tmp_path / "deep" / "run")
    assert reader.read_job() == "name: x\n"
    assert [record.round for record in reader.read_rounds()] == [0, 1]


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_was(tmp_path):
    with RunFolder(tmp_path).create() as folder:
        folder.write_job("old")
    assert code_of(RunFolder(tmp_path).create) == "RUN-901"
    assert RunFolder(tmp_path).read_job() == "old"


@pytest.mark.parametrize("trace", ["rounds.jsonl", "checkpoints/round-0002/state.json", "report.html"])
def test_any_trace_of_a_run_counts_as_a_run(tmp_path, trace):
    (tmp_path / trace).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / trace).write_text("")
    assert code_of(RunFolder(tmp_path).create) == "RUN-901"


def test_a_folder_with_foreign_files_only_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(tmp_path).create():
        assert (tmp_path / "notes.txt").read_text() == "mine"


def test_force_deletes_what_fedethos_wrote_and_nothing_else(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "adapter_config.json").write_text("not ours")
    run = tmp_path / "run"
    ours = [
        "job.yaml",
        "manifest.json",
        "rounds.jsonl",
        "result.json",
        "privacy.json",
        "fairness.json",
        "report.html",
        ".job.yaml.77.partial",
    ]
    ours += [f"checkpoints/round-0001/{name}" for name in ("state.json", "arrays.safetensors", "strategy.safetensors")]
    foreign = ["notes.txt", "checkpoints/mine.txt", "checkpoints/round-0001/mine.txt", "job.yaml.bak"]
    for name in ours + foreign:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    (run / "adapter").symlink_to(outside)
    with RunFolder(run).create(force=True):
        assert not any((run / name).exists() for name in ours)
        assert all((run / name).exists() for name in foreign)
        assert (outside / "adapter_config.json").exists()


def test_force_removes_the_folders_that_it_emptied(tmp_path):
    for name in ("adapter/adapter_config.json", "checkpoints/round-0001/state.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    with RunFolder(tmp_path).create(force=True):
        assert not (tmp_path / "adapter").exists()
        assert not (tmp_path / "checkpoints").exists()


def test_a_file_is_not_a_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    assert code_of(RunFolder(tmp_path / "file").create) == "RUN-903"


@pytest.mark.parametrize("force", [False, True])
def test_two_writers_never_share_a_folder(tmp_path, force):
    with RunFolder(tmp_path).create() as folder:
        folder.write_job("first")
        assert code_of(RunFolder(tmp_path).resume) == "RUN-902"
        assert code_of(lambda: RunFolder(tmp_path).create(force=force)) == ("RUN-902" if force else "RUN-901")
        assert folder.read_job() == "first"
    with RunFolder(tmp_path).resume():
        pass


def test_another_process_holds_the_lock_until_it_is_killed(tmp_path):
    script = (
        "import sys, pathlib\nfrom fedethos.runfolder import RunFolder\n"
        "folder = RunFolder(pathlib.Path(sys.argv[1])).create()\nfolder.write_job('x')\nprint('locked', flush=True)\nsys.stdin.read()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        assert code_of(RunFolder(tmp_path).resume) == "RUN-902"
    finally:
        other.kill()
        other.communicate()
    with RunFolder(tmp_path).resume() as folder:  # the stale lock file is still there and does no harm
        folder.write_job("y")


def test_writing_without_the_lock_is_a_bug(tmp_path):
    with pytest.raises(RuntimeError):
        RunFolder(tmp_path).write_job("x")
    with RunFolder(tmp_path).create() as folder:
        pass
    with pytest.raises(RuntimeError):
        folder.append_round(round_record(0))


def test_resume_needs_a_run(tmp_path):
    assert code_of(RunFolder(tmp_path / "nothing").resume) == "RUN-903"


def test_resume_drops_a_torn_line_and_half_written_files(tmp_path):
    with RunFolder(tmp_path).create() as folder:
        folder.write_job("x")
        folder.append_round(round_record(0))
    with (tmp_path / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round":1,"secon')
    (tmp_path / ".result.json.123.partial").write_text("{")
    assert [record.round for record in RunFolder(tmp_path).read_rounds()] == [0]
    with RunFolder(tmp_path).resume() as folder:
        folder.append_round(round_record(1))
    assert [record.round for record in RunFolder(tmp_path).read_rounds()] == [0, 1]
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.partial"))


def test_truncate_keeps_the_rounds_up_to_the_checkpoint(tmp_path):
    with RunFolder(tmp_path).create() as folder:
        for number in range(5):
            folder.append_round(round_record(number))
        folder.truncate_rounds(after_round=2)
        assert [record.round for record in folder.read_rounds()] == [0, 1, 2]
        folder.truncate_rounds(after_round=-1)
        assert folder.read_rounds() == []


@pytest.mark.parametrize("change", [{"round": -1}, {"basis": "guess"}, {"sites": {"a": "gone"}}, {"bytes_up": 1.5}])
def test_a_round_that_no_reader_would_understand_is_not_written(tmp_path, change):
    with RunFolder(tmp_path).create() as folder:
        assert code_of(lambda: folder.append_round(round_record(1, **change))) == "RUN-906"
        assert folder.read_rounds() == []


def test_a_damaged_line_in_the_middle_is_an_error_without_its_content(tmp_path):
    (tmp_path / "rounds.jsonl").write_bytes(b'{"round": "SECRET"}\n' + canonical_line(round_record(1)))
    with pytest.raises(FedethosError) as caught:
        RunFolder(tmp_path).read_rounds()
    assert caught.value.code == "RUN-906"
    assert "SECRET" not in str(caught.value)


def test_a_missing_document_says_so(tmp_path):
    assert code_of(RunFolder(tmp_path).read_result) == "RUN-903"


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path, monkeypatch):
    with RunFolder(tmp_path).create() as folder:
        folder.write_job("old")
        folder.append_round(round_record(0))
        before = folder.rounds.read_bytes()
        monkeypatch.setattr(os, "fsync", full_disk)
        assert code_of(lambda: folder.write_job("new")) == "RUN-904"
        assert code_of(lambda: folder.append_round(round_record(1))) == "RUN-904"
        assert folder.read_job() == "old"
        assert folder.rounds.read_bytes() == before
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "job.yaml", "rounds.jsonl"}


def test_a_write_that_is_not_allowed_is_not_called_a_full_disk(tmp_path):
    assert code_of(lambda: write_atomically(tmp_path / "no" / "file", b"x")) == "RUN-905"


def test_an_atomic_write_syncs_the_file_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("sync"), real_sync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda source, target: (calls.append("rename"), real_replace(source, target)))
    write_atomically(tmp_path / "file", b"x")
    assert calls == ["sync", "rename", "sync"]


def test_a_start_that_is_taken_back_removes_its_own_folder_and_no_other(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "new").create() as folder:
        folder.write_job("name: x")
        folder.discard()
    assert not (tmp_path / "new").exists()
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(tmp_path).create() as folder:
        folder.write_job("name: x")
        folder.discard()
    assert (tmp_path / "notes.txt").exists() and not (tmp_path / "job.yaml").exists()


def test_a_lock_whose_file_was_taken_back_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next process would make a new lock file, and two would write the same run."""
    monkeypatch.setattr("fedethos.runfolder.fcntl.flock", lambda descriptor, how: (tmp_path / ".lock").unlink())
    with pytest.raises(FedethosError, match="RUN-902"):
        RunFolder(tmp_path).create()
