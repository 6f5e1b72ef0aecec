"""A clipping norm that is learned from noisy counts (Andrew et al. 2021, https://arxiv.org/abs/1905.03871).

Each step also counts, among the units it sampled, whose gradient norm is at most C, and moves C towards the norm of the wanted quantile γ:

    b̃ = 1/2 + (Σ (b_i - 1/2) + N(0, σ_b²)) / expected batch size        b_i = 1 if |g_i| ≤ C, else 0
    C ← clamp(C · exp(-η · (b̃ - γ)))

Gradient and count come from the same sample, so a step is ONE Gaussian mechanism. A unit adds at most C to the gradient's sum, whose
noise is z_g·C, and 1/2 to the count; measured in its own noise it moves both together by at most 1/z,

    1/z² = 1/z_g² + 1/(2·σ_b)².

The ledger pays for z; the gradient gets z_g. Composing the two as separate mechanisms would say less than is spent. Next on the path:
``client/trainer.py``.
"""

from __future__ import annotations

import math

from fedethos.errors import FedethosError
from fedethos.job_clipping import AdaptiveClipping


def gradient_noise_multiplier(noise_multiplier: float, unclipped_num_std: float) -> float:
    """z_g: the noise on the gradient, in units of C, with which gradient and count together are as private as ``noise_multiplier``.

    Raises
    ------
    FedethosError
        PRIV-350 when the count alone costs that much.
    """
    if 2.0 * unclipped_num_std <= noise_multiplier:
        raise FedethosError(
            "PRIV-350",
            f"The count of adaptive clipping needs more noise than {unclipped_num_std:g} units.",
            where="privacy.adaptive.unclipped_num_std",
            why="The count alone would cost more than the whole step may.",
            fix=f"Set it well above {noise_multiplier / 2:.3g}.",
        )
    return 1.0 / math.sqrt(noise_multiplier**-2 - (2.0 * unclipped_num_std) ** -2)


def next_clipbound(clipbound: float, noisy_balance: float, adaptive: AdaptiveClipping, *, expected_batch_size: float) -> float:
    """C of the next step.

    Parameters
    ----------
    noisy_balance : float
        The sampled units' Σ (b_i - 1/2) plus its noise. Divided by a public number: how many were sampled is a fact about the data.
    """
    unclipped = 0.5 + noisy_balance / expected_batch_size
    step = -adaptive.clipbound_learning_rate * (unclipped - adaptive.target_unclipped_quantile)
    moved = math.log(clipbound) + step
    low, high = math.log(adaptive.min_clipbound), math.log(adaptive.max_clipbound)
    return math.exp(min(max(moved, low), high))
