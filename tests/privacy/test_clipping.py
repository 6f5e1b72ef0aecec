"""clip_and_sum against a plain loop, and the promise it makes: one unit moves the sum by at most C."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.privacy.clipping import Clipping, Units, clip_and_sum

C = 0.7


def gradients(seed: int, examples: int, scale: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": scale * torch.randn(examples, 3, 4, generator=generator),
        "b": scale * torch.randn(examples, 5, generator=generator),
    }


def by_loop(per_example: dict[str, torch.Tensor], units: list[int]) -> np.ndarray:
    total = np.zeros(17)
    for unit in set(units):
        rows = [index for index, owner in enumerate(units) if owner == unit]
        flat = np.concatenate([per_example[name][rows].double().sum(0).flatten().numpy() for name in ("a", "b")])
        total += flat * min(1.0, C / np.linalg.norm(flat))
    return total


def clipped(per_example: dict[str, torch.Tensor], unit_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return clip_and_sum(per_example, Units.of(unit_ids), C).sums


def flat_sum(sums: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([sums[name].flatten().numpy() for name in ("a", "b")])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), units=st.lists(st.integers(0, 5), min_size=1, max_size=12), scale=st.sampled_from([1e-3, 0.2, 50.0]))
def test_equals_a_loop_over_units(seed: int, units: list[int], scale: float) -> None:
    per_example = gradients(seed, len(units), scale)
    sums = flat_sum(clipped(per_example, torch.tensor(units)))
    np.testing.assert_allclose(sums, by_loop(per_example, units), rtol=1e-5, atol=1e-5 * scale)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), units=st.lists(st.integers(0, 5), min_size=2, max_size=12), scale=st.sampled_from([0.1, 1e4]))
def test_removing_a_unit_moves_the_sum_by_at_most_c(seed: int, units: list[int], scale: float) -> None:
    per_example = gradients(seed, len(units), scale)
    keep = [index for index, unit in enumerate(units) if unit != units[0]]
    everybody = flat_sum(clipped(per_example, torch.tensor(units)))
    others = np.zeros(17)
    if keep:
        others = flat_sum(clipped({name: rows[keep] for name, rows in per_example.items()}, torch.tensor([units[index] for index in keep])))
    assert np.linalg.norm(everybody - others) <= C


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.3, 1.0, 4.0])), min_size=2, max_size=10),
    clipping=st.sampled_from(["flat", "automatic"]),
)
def test_removing_a_unit_moves_a_weighted_sum_by_at_most_c_times_its_weight(
    seed: int, rows: list[tuple[int, float]], clipping: Clipping
) -> None:
    """A unit with rows in several cells has the mean of their weights."""
    per_example = gradients(seed, len(rows), 1e3)
    units, weights = torch.tensor([unit for unit, _ in rows]), torch.tensor([weight for _, weight in rows], dtype=torch.float64)
    keep = units != units[0]

    def weighted(chosen: torch.Tensor) -> np.ndarray:
        if not chosen.any():
            return np.zeros(17)
        part = {name: values[chosen] for name, values in per_example.items()}
        return flat_sum(clip_and_sum(part, Units.of(units[chosen]), C, clipping, weights[chosen]).sums)

    own = [weight for unit, weight in rows if unit == rows[0][0]]
    moved = np.linalg.norm(weighted(torch.ones_like(keep)) - weighted(keep))
    most = C * sum(own) / len(own)
    assert 0.999 * most <= moved <= most * (1 + 1e-12) + 1e-15


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_unit_contributes_nothing_as_a_whole(poison: float) -> None:
    per_example = gradients(3, 4, 1.0)
    per_example["a"][1, 0, 0] = poison  # unit 0 owns rows 0 and 1
    units = torch.tensor([0, 0, 1, 2])
    clean = {name: rows[2:] for name, rows in per_example.items()}
    expected = flat_sum(clipped(clean, units[2:]))
    np.testing.assert_allclose(flat_sum(clipped(per_example, units)), expected, rtol=1e-12)


def test_a_zero_gradient_stays_zero() -> None:
    zeros = {"a": torch.zeros(2, 3, 4), "b": torch.zeros(2, 5)}
    assert np.array_equal(flat_sum(clipped(zeros, torch.tensor([0, 1]))), np.zeros(17))
