import errno
import multiprocessing
import os
import random
import shutil
import time

import numpy as np
import pytest

from fedethos.errors import FedethosError
from fedethos.server.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint


def checkpoint(number: int, length: int = 64) -> Checkpoint:
    values = np.arange(length, dtype=np.float64) / 7 + number
    return Checkpoint(
        round=number,
        arrays={"layer.lora_A.weight": values.astype(np.float32).reshape(4, -1), "scale": np.float32(number).reshape(())},
        strategy={"m_t.layer": values},
        state={"threshold": 0.1 + number, "spent": {"site-1": number}},
    )


def same(one: Checkpoint, other: Checkpoint) -> bool:
    def equal(left, right):
        return left.keys() == right.keys() and all(
            left[name].dtype == right[name].dtype and np.array_equal(left[name], right[name]) for name in left
        )

    return one.round == other.round and one.state == other.state and equal(one.arrays, other.arrays) and equal(one.strategy, other.strategy)


def no_warning(text: str) -> None:
    raise AssertionError(text)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_bit_by_bit_and_read_only(tmp_path):
    write_checkpoint(tmp_path, checkpoint(3))
    loaded = latest_checkpoint(tmp_path, say=no_warning)
    assert same(loaded, checkpoint(3))
    assert loaded.strategy["m_t.layer"].dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        loaded.arrays["scale"][...] = 0


def test_equal_checkpoints_have_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        write_checkpoint(tmp_path / folder, checkpoint(1))
    for name in ("state.json", "arrays.safetensors", "strategy.safetensors"):
        assert (tmp_path / "a" / "round-0001" / name).read_bytes() == (tmp_path / "b" / "round-0001" / name).read_bytes()


def test_the_newest_three_stay(tmp_path):
    for number in range(1, 12):
        write_checkpoint(tmp_path, checkpoint(number))
    assert names(tmp_path) == ["round-0009", "round-0010", "round-0011"]


def test_a_resumed_run_replaces_the_future_that_it_abandoned(tmp_path):
    for number in (1, 2, 3):
        write_checkpoint(tmp_path, checkpoint(number))
    write_checkpoint(tmp_path, checkpoint(2, length=128))
    assert names(tmp_path) == ["round-0001", "round-0002"]
    assert same(latest_checkpoint(tmp_path, say=no_warning), checkpoint(2, length=128))


def test_no_checkpoint_is_none(tmp_path):
    assert latest_checkpoint(tmp_path / "nothing", say=no_warning) is None
    (tmp_path / ".round-0004.partial").mkdir()
    assert latest_checkpoint(tmp_path, say=no_warning) is None


@pytest.mark.parametrize("name", ["state.json", "arrays.safetensors", "strategy.safetensors"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, name, damage):
    for number in (1, 2):
        write_checkpoint(tmp_path, checkpoint(number))
    path = tmp_path / "round-0002" / name
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-30] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-9])
    else:
        path.unlink()
    said = []
    assert same(latest_checkpoint(tmp_path, say=said.append), checkpoint(1))
    assert len(said) == 1
    assert "round-0002" in said[0] and name in said[0]


def test_a_checkpoint_under_another_round_is_not_believed(tmp_path):
    write_checkpoint(tmp_path, checkpoint(1))
    shutil.copytree(tmp_path / "round-0001", tmp_path / "round-0002")
    assert latest_checkpoint(tmp_path, say=lambda text: None).round == 1


def test_when_all_are_damaged_the_run_does_not_start_from_nothing(tmp_path):
    write_checkpoint(tmp_path, checkpoint(1))
    (tmp_path / "round-0001" / "state.json").write_text("{}")
    with pytest.raises(FedethosError) as caught:
        latest_checkpoint(tmp_path, say=lambda text: None)
    assert caught.value.code == "RUN-908"


def test_a_full_disk_leaves_the_older_checkpoint_and_no_half_one(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, checkpoint(1))
    calls = iter(range(10))
    real = os.fsync

    def full_at_the_second_file(descriptor):
        if next(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_the_second_file)
    with pytest.raises(FedethosError) as caught:
        write_checkpoint(tmp_path, checkpoint(2))
    assert caught.value.code == "RUN-904"
    assert names(tmp_path) == ["round-0001"]
    assert same(latest_checkpoint(tmp_path, say=no_warning), checkpoint(1))


def test_a_kill_in_the_middle_of_a_deletion_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    for number in (1, 2, 3):
        write_checkpoint(tmp_path, checkpoint(number))

    def killed(folder):
        (folder / "arrays.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, checkpoint(4))
    whole = [path for path in tmp_path.glob("round-*") if len(names(path)) == 3]
    assert sorted(path.name for path in whole) == ["round-0002", "round-0003", "round-0004"]
    assert whole == list(tmp_path.glob("round-*"))
    write_checkpoint(tmp_path, checkpoint(5))
    assert names(tmp_path) == ["round-0003", "round-0004", "round-0005"]


def write_forever(folder, first: int, length: int, started) -> None:
    number = first
    started.set()
    while True:
        write_checkpoint(folder, checkpoint(number, length))
        number += 1


def test_a_kill_at_any_moment_leaves_an_intact_newest_checkpoint(tmp_path):
    """30 kills -9 at random moments; after each the newest checkpoint is whole, and never older than the last one seen."""
    moments = random.Random(7)
    context = multiprocessing.get_context("fork")
    length, last = 100_000, 1
    began = time.monotonic()
    write_checkpoint(tmp_path, checkpoint(last, length))
    took = time.monotonic() - began
    for _ in range(30):
        started = context.Event()
        writer = context.Process(target=write_forever, args=(tmp_path, last + 1, length, started))
        writer.start()
        started.wait()
        time.sleep(moments.uniform(0, 4 * took))
        writer.kill()
        writer.join()
        newest = latest_checkpoint(tmp_path, say=no_warning)
        assert newest.round >= last
        assert same(newest, checkpoint(newest.round, length))
        took *= 1.2 if newest.round == last else 1.0  # on a busy machine: give the next one more time
        last = newest.round
    assert last > 1
