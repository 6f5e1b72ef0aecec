"""The record of what left: on the disk before it leaves, and a changed, removed, moved or cut line shows."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedethos.client.egress import Egress, Sent, read, verify
from fedethos.errors import FedethosError


def sent(round: int = 1, **changes: object) -> Sent:
    fields = {
        "run": "triage-0123abcd",
        "round": round,
        "message_type": "train",
        "shapes": {"layers.0.weight": (2, 2)},
        "bytes": 400,
        "sha256": "0" * 64,
        "epsilon_after": 1.5,
        "refused": None,
    }
    return Sent(**{**fields, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "state" / "egress.jsonl"
    with Egress(file) as egress:
        for round in (1, 2, 3):
            egress.append(sent(round))
    return file


def test_what_was_sent_can_be_read_again(path: Path) -> None:
    lines = read(path)
    assert [line.sent for line in lines] == [sent(1), sent(2), sent(3)]
    assert [line.number for line in lines] == [1, 2, 3]
    assert verify(path).count == 3
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_restarted_node_goes_on_where_it_was(path: Path) -> None:
    head = verify(path)
    with Egress(path) as egress:
        assert egress.head == head
        assert egress.append(sent(4)).count == 4
    assert [line.sent.round for line in read(path)] == [1, 2, 3, 4]


def test_before_the_first_message_there_is_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "egress.jsonl") == []
    with Egress(tmp_path / "egress.jsonl"):
        pass
    assert verify(tmp_path / "egress.jsonl").count == 0


def edited(lines: list[str]) -> list[str]:
    line = json.loads(lines[1])
    line["sent"]["bytes"] = 1
    return [lines[0], json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n", lines[2]]


@pytest.mark.parametrize(
    "change",
    [
        edited,
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[0], lines[2], lines[1]],
        lambda lines: lines[:2],
        lambda lines: [],
        lambda lines: [*lines, lines[2]],
        lambda lines: ["rubbish\n", *lines],
    ],
)
def test_a_changed_removed_moved_or_cut_line_shows(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    for use in (verify, read, Egress):
        with pytest.raises(FedethosError, match="SEC-664"):
            use(path)


def test_a_lost_head_shows(path: Path) -> None:
    path.with_name("egress.jsonl.head").unlink()
    with pytest.raises(FedethosError, match="SEC-664"):
        verify(path)


def test_a_line_that_a_crash_left_half_written_is_dropped(path: Path) -> None:
    head = verify(path)
    with path.open("a") as file:
        file.write('{"number":4,"prev')
    assert verify(path) == head
    with Egress(path) as egress:
        egress.append(sent(4))
    assert [line.sent.round for line in read(path)] == [1, 2, 3, 4]


def test_a_head_that_a_crash_left_behind_is_brought_up_to_date(path: Path) -> None:
    head_file = path.with_name("egress.jsonl.head")
    behind = head_file.read_bytes()
    with Egress(path) as egress:
        egress.append(sent(4))
    head_file.write_bytes(behind)
    assert verify(path).count == 4
    with Egress(path):
        pass
    assert head_file.read_bytes() != behind


def test_two_nodes_do_not_write_one_record(path: Path) -> None:
    with Egress(path), pytest.raises(FedethosError, match="SEC-664"):
        Egress(path)


def test_a_message_that_cannot_be_recorded_is_not_sent_and_leaves_the_record_whole(path: Path, monkeypatch) -> None:
    from fedethos.client import egress as module

    def half(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with Egress(path) as egress:
        monkeypatch.setattr(module, "_write_all", half)
        with pytest.raises(FedethosError, match="RUN-904"):
            egress.append(sent(4))
        monkeypatch.undo()
        egress.append(sent(5))
    assert [line.sent.round for line in read(path)] == [1, 2, 3, 5]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_any_changed_byte_shows_or_is_in_a_line_that_was_never_finished(path: Path, position: int, value: int) -> None:
    whole = path.read_bytes()
    position %= len(whole)
    path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
    try:
        if path.read_bytes() == whole:
            assert verify(path).count == 3
        else:
            with pytest.raises(FedethosError, match="SEC-664"):
                verify(path)
    finally:
        path.write_bytes(whole)
