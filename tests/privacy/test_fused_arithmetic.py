"""The arithmetic of clipping: the bound holds for the numbers the machine adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.privacy import clipping
from fedethos.privacy.clipping import BATCH_SHAPE_MARGIN, Units, clip_and_sum, rounding_margin


def exact_norm(vector: torch.Tensor) -> float:
    """In extended precision, pairwise: exact to far below a float64's last bit."""
    return float(np.sqrt(np.sum(vector.double().numpy().astype(np.longdouble) ** 2)))


def one_unit(gradient: torch.Tensor, bound: float) -> torch.Tensor:
    return clip_and_sum({"w": gradient[None]}, Units.of(torch.zeros(1, dtype=torch.int64)), bound).sums["w"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dimension", [1, 1_000, 300_000, 2_400_000])
def test_the_margin_bounds_the_clipped_norm(dtype, dimension):
    generator = torch.Generator().manual_seed(dimension)
    heavy_tailed = (3 * torch.randn(dimension, generator=generator)).exp() * torch.randn(dimension, generator=generator).sign()
    for gradient in (heavy_tailed, torch.full((dimension,), 0.1), torch.cat([torch.tensor([1e4]), torch.full((dimension - 1,), 1e-4)])):
        for bound in (1.0, 0.3):
            clipped = exact_norm(one_unit(gradient.to(dtype), bound))
            assert clipped <= bound
            kept = min(bound / (1 + BATCH_SHAPE_MARGIN), exact_norm(gradient.to(dtype).double()))
            assert clipped == pytest.approx(kept, rel=2 * rounding_margin(dimension) + 1e-15)


def test_without_the_margin_rounding_passes_the_bound(monkeypatch):
    monkeypatch.setattr(clipping, "rounding_margin", lambda dimension: 0.0)
    monkeypatch.setattr(clipping, "BATCH_SHAPE_MARGIN", 0.0)
    generator = torch.Generator().manual_seed(0)
    norms = [exact_norm(one_unit(torch.randn(1_000, generator=generator), 0.3)) for _ in range(50)]
    assert max(norms) > 0.3


def test_the_margin_covers_the_error_of_the_norm():
    for dimension in (10, 10_000, 1_000_000):
        gradient = torch.randn(dimension, generator=torch.Generator().manual_seed(1))
        computed = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
        assert abs(computed / exact_norm(gradient.double()) - 1) <= rounding_margin(dimension) / 2
    assert rounding_margin(2_400_000) < 1e-9


@settings(max_examples=50, deadline=None)
@given(
    people=st.lists(st.integers(-3, 3), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
    poisoned=st.sets(st.integers(0, 8)),
    poison=st.sampled_from([float("nan"), float("inf"), -float("inf")]),
    largest_weight=st.floats(0.0, 4.0),
)
def test_any_unit_adds_at_most_c_times_its_weight(people, seed, poisoned, poison, largest_weight):
    generator = torch.Generator().manual_seed(seed)
    unit_ids = torch.tensor(people)
    rows = {"a": torch.randn(len(people), 3, 2, generator=generator) * 10, "b": torch.randn(len(people), 4, generator=generator)}
    for row in poisoned & set(range(len(people))):
        rows["a"][row, 1, 0] = poison
    weights = torch.rand(len(people), generator=generator, dtype=torch.float64) * largest_weight
    everybody = clip_and_sum(rows, Units.of(unit_ids), 0.7, weights=weights)
    assert everybody.nonfinite_units == len({people[row] for row in poisoned if row < len(people)})
    for unit in set(people):
        kept = unit_ids != unit
        if kept.any():
            without = clip_and_sum(
                {name: value[kept] for name, value in rows.items()}, Units.of(unit_ids[kept]), 0.7, weights=weights[kept]
            )
            moved = torch.cat([(everybody.sums[name] - without.sums[name]).flatten() for name in rows])
        else:
            moved = torch.cat([total.flatten() for total in everybody.sums.values()])
        assert float(moved.norm()) <= 0.7 * largest_weight * (1 + 1e-9) + 1e-12


def test_a_zero_gradient_stays_zero():
    assert not one_unit(torch.zeros(5), 1.0).any()


def test_the_sum_by_hand():
    rows = {"w": torch.tensor([[3.0, 4.0], [0.0, 0.5], [0.3, 0.0], [0.3, 0.0]])}
    c = 1.0 + BATCH_SHAPE_MARGIN  # so that the bound within is 1
    total = clip_and_sum(rows, Units.of(torch.tensor([5, 6, 9, 9])), c)
    assert torch.allclose(total.sums["w"], torch.tensor([0.6 + 0.0 + 0.6, 0.8 + 0.5], dtype=torch.float64), rtol=1e-7)
    automatic = clip_and_sum({"w": torch.tensor([[3.0, 4.0]])}, Units.of(torch.tensor([0])), c, "automatic")
    assert torch.allclose(automatic.sums["w"], torch.tensor([3.0, 4.0], dtype=torch.float64) / 5.01, rtol=1e-12)
