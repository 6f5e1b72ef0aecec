"""The learned clipping norm: one Gaussian for gradient and count together, and an update that only sees public and noisy numbers."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.errors import FedethosError
from fedethos.job_clipping import AdaptiveClipping
from fedethos.privacy.accounting import epsilon_after
from fedethos.privacy.adaptive import gradient_noise_multiplier, next_clipbound
from fedethos.privacy.clipping import BATCH_SHAPE_MARGIN, Units, clip_and_sum

RATE, STEPS, DELTA = 0.05, 600, 1e-5


def composed(*noise_multipliers: float) -> float:
    """Epsilon of so many separate mechanisms in each step, each with a sample of its own."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    for z in noise_multipliers:
        step = dp_accounting.PoissonSampledDpEvent(RATE, dp_accounting.GaussianDpEvent(z))
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, STEPS))
    return accountant.get_epsilon(DELTA)


def test_gradient_and_count_are_one_mechanism_and_composing_them_apart_says_too_little() -> None:
    """Noise 1.9 on the gradient; 1.0 on the count in units of its sensitivity 1/2."""
    z = 1.0 / math.hypot(1 / 1.9, 1 / 1.0)
    assert gradient_noise_multiplier(z, unclipped_num_std=0.5) == pytest.approx(1.9, rel=1e-12)
    assert composed(1.9, 1.0) == pytest.approx(9.03, abs=0.005)  # wrong
    truth = epsilon_after(noise_multiplier=z, sampling_rate=RATE, steps=STEPS, delta=DELTA)
    assert truth == pytest.approx(10.62, abs=0.005)
    assert truth == pytest.approx(composed(z), rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    units=st.lists(st.integers(0, 4), min_size=2, max_size=9),
    scale=st.sampled_from([1e-2, 0.3, 1e3]),
    weight=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_a_unit_moves_gradient_and_count_together_by_at_most_one_over_z(seed: int, units: list[int], scale: float, weight: float) -> None:
    """Both sums in units of their noise, with and without one unit; weights up to 1 and noise for a weight of 1."""
    bound, z, count_std = 0.7, 1.1, 0.9
    gradient_std = gradient_noise_multiplier(z, count_std) * bound
    rows = scale * torch.randn(len(units), 6, generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor(units)

    def released(keep: torch.Tensor) -> np.ndarray:
        if not keep.any():
            return np.zeros(7)
        clipped = clip_and_sum({"a": rows[keep]}, Units.of(ids[keep]), bound, weights=torch.full((int(keep.sum()),), weight))
        return np.append(clipped.sums["a"].numpy() / gradient_std, clipped.unclipped_balance / count_std)

    everybody = torch.ones(len(units), dtype=torch.bool)
    moved = np.linalg.norm(released(everybody) - released(ids != units[0]))
    assert moved <= (1 / z) * (1 + 1e-12)
    if scale > 1 and weight == 1.0:
        assert moved == pytest.approx(1 / z, rel=2 * BATCH_SHAPE_MARGIN)  # and hardly less: the noise is not wasted


@pytest.mark.parametrize("unclipped_num_std", [0.4, 0.5])
def test_a_count_that_costs_the_whole_step_is_refused(unclipped_num_std: float) -> None:
    with pytest.raises(FedethosError, match="PRIV-350"):
        gradient_noise_multiplier(1.0, unclipped_num_std)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.0, 2.0 * math.exp(-0.2 * 0.25)),  # half of ten were below C, a quarter was wanted
        (-2.5, 2.0),  # a quarter was
        (5.0, 2.0 * math.exp(-0.2 * 0.75)),  # all ten were
        (-1e6, 3.0),
        (1e6, 0.5),
    ],
)
def test_the_norm_moves_as_worked_out_by_hand(balance: float, expected: float) -> None:
    adaptive = AdaptiveClipping(target_unclipped_quantile=0.25, min_clipbound=0.5, max_clipbound=3.0)
    assert next_clipbound(2.0, balance, adaptive, expected_batch_size=10.0) == pytest.approx(expected, rel=1e-12)


def test_the_norm_finds_the_quantile() -> None:
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(0.4, 0.7, 4000))
    adaptive = AdaptiveClipping(target_unclipped_quantile=0.8, max_clipbound=100.0)
    bound = 0.2
    for _ in range(200):
        sample = norms[rng.random(len(norms)) < 0.1]
        balance = (sample <= bound).sum() - len(sample) / 2 + rng.normal(0, 10)
        bound = next_clipbound(bound, balance, adaptive, expected_batch_size=400.0)
    assert bound == pytest.approx(np.quantile(norms, 0.8), rel=0.1)


def test_units_without_a_finite_gradient_count_as_clipped() -> None:
    rows = torch.tensor([[0.1], [9.0], [float("nan")], [float("inf")]])
    assert clip_and_sum({"a": rows}, Units.of(torch.arange(4)), 1.0).unclipped_balance == 1 - 4 / 2
