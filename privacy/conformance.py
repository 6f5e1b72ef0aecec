"""Did a training do what its plan says? Sharp tests of sampling, noise and accounting, beside the bound of ``privacy/audit.py``.

A lower bound on epsilon needs much evidence: wrong sampling or a tenth of the noise missing can stay below it. Whoever owns the
machine sees more than any receiver of the model, and can compare each part of the mechanism with the plan directly. Each
statistical check wrongs a right implementation at most once in 10,000 audits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import binomtest, chi2, norm

from fedethos.privacy.discrete_gaussian import discrete_gaussian_variance
from fedethos.privacy.plan import PrivacyPlan

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
CheckName = Literal["statement", "accounting", "contributions", "noise", "sampling", "counts"]

_SIGNIFICANCE = 1e-4
ACCOUNTING_TOLERANCE = 1e-3  # relative; noise multipliers are searched to 0.1 %


@dataclass(frozen=True)
class Check:
    """``says`` is a sentence without any number that a site keeps to itself."""

    name: CheckName
    holds: bool
    says: str


def check_accounting(plan: PrivacyPlan, *, steps: int, claim: float) -> Check:
    """Whether ``steps`` steps, as many as were done, cost at most ``claim``."""
    cost = plan.epsilon_after(steps)
    says = f"{steps} steps at noise multiplier {plan.noise_multiplier:.4g} cost epsilon {cost:.4g}; claimed {claim:.4g}"
    return Check("accounting", cost <= claim * (1 + ACCOUNTING_TOLERANCE), says)


def check_noise(noise: Floats, *, noise_multiplier: float) -> Check:
    """Whether noise is as large as planned, in every step, and independent between steps.

    Parameters
    ----------
    noise : float[steps, n]
        What was released where no record adds anything, in units of the clipping norm.
    """
    steps, width = noise.shape
    standard = noise / noise_multiplier
    by_step = np.square(standard).sum(axis=1)
    # The sums over all steps have one standard deviation again, unless one step's noise can be taken from another's.
    joint = float(np.square(standard.sum(axis=0)).sum() / steps)
    p = _smallest(
        float(chi2.cdf(by_step.sum(), steps * width)),
        steps * float(chi2.cdf(by_step.min(), width)),
        2.0 * min(float(chi2.cdf(joint, width)), float(chi2.sf(joint, width))),
    )
    quietest, overall = math.sqrt(by_step.min() / width), math.sqrt(by_step.mean() / width)
    says = f"measured / planned standard deviation {overall:.3f}, in the quietest step {quietest:.3f}, summed over the steps"
    return Check("noise", p >= _SIGNIFICANCE, f"{says} {math.sqrt(joint / width):.3f}")


def check_sampling(sampled: Bools, *, sampling_rate: float) -> Check:
    """Whether each step took each unit with the planned probability, independently of the others and of other steps.

    Parameters
    ----------
    sampled : bool[steps, n]
        Which unit reached the clipping engine in which step.
    """
    if sampling_rate >= 1.0:
        return Check("sampling", bool(sampled.all()), "every unit in every step is what was planned")
    steps, units = sampled.shape
    variance = sampling_rate * (1.0 - sampling_rate)
    batches = np.square(sampled.sum(axis=1) - units * sampling_rate).sum() / (units * variance)
    p = _smallest(
        float(binomtest(int(sampled.sum()), sampled.size, sampling_rate).pvalue),
        2.0 * min(float(chi2.cdf(batches, steps)), float(chi2.sf(batches, steps))),
        _dispersion_p(sampled.sum(axis=0), steps, sampling_rate),
    )
    return Check("sampling", p >= _SIGNIFICANCE, f"independent draws of each unit at rate {sampling_rate:.4g} are what was planned")


def check_counts(noise: npt.NDArray[np.int64], *, sigma: float) -> Check:
    """Whether released minus exact counts look like discrete Gaussian noise of parameter ``sigma`` in every cell, int64[n].

    By its size and by its mean. The bounds on both p-values are Chernoff's, with the exact law of a cell: they hold for any number
    of cells and any noise, where a chi-square would need a sigma well above 1.
    """
    cells, squares = noise.size, float(np.square(noise).sum())
    x = np.arange(-math.ceil(120.0 * sigma) - 1, math.ceil(120.0 * sigma) + 2, dtype=np.float64)
    scaled = np.square(x / sigma) / 2.0
    normal = logsumexp(-scaled)

    def log_bound(t: float) -> float:
        """Log of E[exp(t S)] / exp(t s) for S the sum of all squares over 2 sigma^2, and s what was seen."""
        return float(cells * (logsumexp((t - 1.0) * scaled) - normal) - t * squares / (2.0 * sigma**2))

    size = 2.0 * math.exp(min(0.0, float(minimize_scalar(log_bound, bounds=(-200.0, 0.99), method="bounded").fun)))
    mean = 2.0 * math.exp(-(float(noise.sum()) ** 2) / (2.0 * cells * sigma**2))  # a cell is sub-Gaussian with sigma
    measured = math.sqrt(squares / (cells * discrete_gaussian_variance(sigma)))
    says = f"released counts carry noise of {measured:.3f} times the stated standard deviation in {cells} cells"
    return Check("counts", _smallest(size, mean) >= _SIGNIFICANCE, says)


def _dispersion_p(counts: npt.NDArray[np.int64], steps: int, rate: float) -> float:
    """Two-sided p-value of the spread of n binomial counts: shuffling deals every unit equally often, so it spreads too little.

    The squared deviation of Binomial(T, q), over its variance s², has mean 1 and variance 2 + (1 - 6·q·(1 - q)) / s².
    """
    variance = steps * rate * (1.0 - rate)
    mean = float(np.square(counts - steps * rate).mean() / variance)
    deviation = math.sqrt((2.0 + (1.0 - 6.0 * rate * (1.0 - rate)) / variance) / len(counts))
    return 2.0 * float(norm.sf(abs(mean - 1.0) / deviation))


def _smallest(*p_values: float) -> float:
    """The smallest p-value, corrected for having looked at several (Bonferroni)."""
    return len(p_values) * min(p_values)
