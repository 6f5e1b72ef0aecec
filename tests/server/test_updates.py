"""Updates of a round on disk, and aggregation in memory that does not grow with the number of sites."""

import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from fedethos.aggregation import Aggregation
from fedethos.errors import FedethosError
from fedethos.messages import Arrays
from fedethos.models.lowrank import Product, RunningSum, added, frobenius
from fedethos.server.updates import Updates
from fedethos.strategies.averaging import aggregation_error
from fedethos.strategies.fedavg import AdapterFedAvg
from fedethos.strategies.fedex import FedEx
from fedethos.strategies.ffa import FfaLora
from fedethos.strategies.flexlora import FlexLora
from fedethos.strategies.flora import Flora

B, A, HEAD = "layer.lora_B.weight", "layer.lora_A.weight", "head.weight"


def update(number: int) -> Arrays:
    return {"w": np.full(1000, number, dtype=np.float32)}


def test_updates_come_back_as_they_were_put_in_the_order_of_the_names(tmp_path: Path) -> None:
    with Updates(tmp_path, most_bytes=10_000) as updates:
        for number in (3, 1, 2, 5, 4):
            updates.put(f"site-{number}", update(number))
        assert list(updates) == [f"site-{number}" for number in range(1, 6)]
        assert [one["w"][0] for one in updates.values()] == [1, 2, 3, 4, 5]
        assert [one["w"][0] for one in updates.values()] == [1, 2, 3, 4, 5]  # and again
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) == 3  # two fit into memory
    assert list(tmp_path.iterdir()) == []


def test_what_fits_into_memory_touches_no_disk(tmp_path: Path) -> None:
    with Updates(tmp_path) as updates:
        updates.put("site-1", update(1))
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    (tmp_path / ".updates-left").mkdir()
    (tmp_path / ".updates-left/0.safetensors").write_bytes(b"x")
    (tmp_path / "job.yaml").write_text("")
    with Updates(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(FedethosError, match="RUN-904"), Updates(tmp_path, most_bytes=0) as updates:
        updates.put("site-1", update(1))
    assert list(tmp_path.iterdir()) == []


class Drawn(Mapping[str, Arrays]):
    """Updates that are made when they are read, as those on disk are: only the reader's memory counts."""

    def __init__(self, count: int, rule: Aggregation) -> None:
        self._count, self._rule = count, rule

    def __getitem__(self, name: str) -> Arrays:
        generator = np.random.default_rng(int(name))
        arrays = {B: generator.normal(size=(96, 8)), HEAD: generator.normal(size=(2, 96))}
        if self._rule != "ffa":
            arrays[A] = generator.normal(size=(8, 64))
        return {key: array.astype(np.float32) for key, array in arrays.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, range(self._count)))

    def __len__(self) -> int:
        return self._count


FROZEN = {A: np.random.default_rng(99).normal(size=(8, 64)).astype(np.float32)}


def aggregate(rule: Aggregation, count: int) -> tuple[Arrays, float]:
    strategy = {"fedavg": AdapterFedAvg, "ffa": FfaLora, "fedex": FedEx, "flexlora": FlexLora}.get(rule, lambda: Flora(seed=1))()
    updates, frozen = Drawn(count, rule).values(), FROZEN if rule == "ffa" else {}
    before = Drawn(1, rule)["0"]
    strategy.current_arrays = before
    arrays = strategy.aggregate(1, updates, [1.0] * count)
    return arrays, aggregation_error(before, updates, [1.0] * count, arrays, frozen)


@pytest.mark.parametrize("rule", ["fedavg", "ffa", "fedex", "flora", "flexlora"])
def test_memory_does_not_grow_with_the_number_of_sites(rule: Aggregation) -> None:
    """From 40 sites on: until then stacked factors grow to the size of the layer."""
    peaks = []
    for count in (40, 400):
        tracemalloc.start()
        aggregate(rule, count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.25 * peaks[0]


@pytest.mark.parametrize("rule", ["fedex", "flora"])
def test_an_exact_rule_is_exact_for_many_sites(rule: Aggregation) -> None:
    arrays, error = aggregate(rule, 60)
    assert error < 1e-5
    mean = np.mean([one[B].astype(np.float64) @ one[A] for one in Drawn(60, rule).values()], axis=0)
    whole = arrays[B].astype(np.float64) @ arrays[A]
    whole += arrays["layer.residual_B.weight"].astype(np.float64) @ arrays["layer.residual_A.weight"]
    np.testing.assert_allclose(whole, mean, atol=1e-5)


def test_the_error_of_a_mean_of_factors_is_that_of_the_dense_matrices() -> None:
    arrays, error = aggregate("fedavg", 60)
    mean = np.mean([one[B].astype(np.float64) @ one[A] for one in Drawn(60, "fedavg").values()], axis=0)
    expected = np.linalg.norm(arrays[B].astype(np.float64) @ arrays[A] - mean) / np.linalg.norm(mean)
    assert error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shared", ["a", "b", None])
def test_a_running_sum_is_the_sum(shared: str | None) -> None:
    generator = np.random.default_rng(5)
    fixed = Product(generator.normal(size=(12, 3)), generator.normal(size=(3, 7)))
    parts = []
    for _ in range(20):
        drawn = Product(generator.normal(size=(12, 3)), generator.normal(size=(3, 7)))
        parts.append(Product(fixed.b if shared == "b" else drawn.b, fixed.a if shared == "a" else drawn.a))
    total = RunningSum()
    for part in parts:
        total.add(part)
    assert total.value.rank <= 14
    assert total.value.rank == 3 or shared is None
    np.testing.assert_allclose(total.value.dense(), sum(part.dense() for part in parts), atol=1e-9)
    assert frobenius(total.value) == pytest.approx(frobenius(added(parts)))


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing was added"):
        RunningSum().value  # noqa: B018
