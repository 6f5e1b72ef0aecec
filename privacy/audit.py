"""How much privacy one training provably gave away: the one-run audit of Steinke, Nasr and Jagielski (2023).

https://arxiv.org/abs/2305.08846. Each of m canaries takes part or not, by a fair coin of its own. The auditor sees what the
training released, scores every canary, guesses some coins and abstains from the others. If the training is (epsilon, delta)-
differentially private, he is right as rarely as theorem 5.2 says; if he is right more often, it is not.

The numbers of guesses are fixed beforehand (``RULES``), and the confidence is divided among the rules: whoever picks the best
number after seeing the scores proves nothing. ``fedethos.simulations.audit`` runs a training with canaries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from fedethos.privacy.events import Adjacency

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """Shares of the canaries, from the highest scores and from the lowest, that are guessed to take part and not to."""

    highest: float
    lowest: float

    def counts(self, canaries: int) -> tuple[int, int]:
        return math.ceil(self.highest * canaries), math.ceil(self.lowest * canaries)


RULES = (Rule(0.1, 0.0), Rule(0.25, 0.0), Rule(0.25, 0.25))  # weak leaks show in few guesses, strong ones prove more by many
LARGEST_AUDIT = 20_000  # canaries; more takes long and, at a delta of 1e-5, proves hardly more


@dataclass(frozen=True)
class Evidence:
    """The true epsilon, at the delta asked for, is at least ``epsilon`` with probability ``confidence`` over the coins.

    ``right`` of ``guesses`` guesses about ``canaries`` coins were right, under the rule that proves most.
    """

    epsilon: float
    confidence: float
    canaries: int
    guesses: int
    right: int


def p_value(*, canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound on the probability that at least ``right`` guesses are right under (``epsilon``, ``delta``) (theorem 5.2).

    With W the number of right answers of ``guesses`` independent randomized responses, each right with probability
    e^epsilon / (1 + e^epsilon):  P[W >= v] + 2·m·delta·max over i of P[v - i <= W < v] / i.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError("needs 0 <= right <= guesses <= canaries")
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    p = float(binom.sf(right - 1, guesses, accuracy))
    if right > 0:
        just_below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy))
        p += 2.0 * canaries * delta * float((just_below / np.arange(1, right + 1)).max())
    return min(p, 1.0)


def epsilon_lower_bound(*, canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """The largest epsilon (to 1e-6) that the guesses refute at ``confidence``; 0 when they refute none."""
    level = 1.0 - confidence

    def refuted(epsilon: float) -> bool:
        return p_value(canaries=canaries, guesses=guesses, right=right, epsilon=epsilon, delta=delta) < level

    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2.0 * high
    while high - low > 1e-6:
        middle = (low + high) / 2.0
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def weigh(scores: Floats, took_part: Bools, *, delta: float, confidence: float = 0.95) -> Evidence:
    """What ``scores`` float[m] prove about a training in which the canaries ``took_part`` bool[m].

    A score is high where the auditor believes that the canary took part. It may depend on anything released and on nothing else.
    """
    order = np.argsort(scores, kind="stable")
    found = [_weigh(rule, order, took_part, delta, confidence) for rule in RULES]
    return max(found, key=lambda evidence: (evidence.epsilon, evidence.right / evidence.guesses))


def most_provable(canaries: int, *, delta: float, confidence: float = 0.95) -> float:
    """The bound when every guess is right. A claim above it passes an audit with so many canaries whatever the code does."""
    everything = np.arange(canaries)
    return max(_weigh(rule, everything, everything >= canaries - rule.counts(canaries)[0], delta, confidence).epsilon for rule in RULES)


def fewest_canaries(claim: float, *, delta: float, confidence: float = 0.95) -> int | None:
    """A number of canaries (doubled from 125) that can refute ``claim``; None when ``LARGEST_AUDIT`` cannot."""
    canaries = 125
    while most_provable(canaries, delta=delta, confidence=confidence) <= claim:
        canaries *= 2
        if canaries > LARGEST_AUDIT:
            return None
    return canaries


def log_likelihood_ratios(shares: Floats, *, noise_multiplier: float, sampling_rate: float, adjacency: Adjacency) -> Floats:
    """The best score of a canary against DP-SGD with Poisson sampling: log P[released | took part] - log P[released | did not].

    Parameters
    ----------
    shares : float[steps, m]
        How much of each canary's gradient is in each released sum, in units of the clipping norm: 1 where it was sampled, 0 else,
        plus noise of standard deviation ``noise_multiplier``. Canaries' gradients are orthogonal.
    adjacency
        Under replace-one a canary that does not take part is replaced by one with the opposite gradient: -1 where sampled.
    """
    ratios = _log_mixture(shares, noise_multiplier, sampling_rate)
    if adjacency == "replace-one":
        ratios = ratios - _log_mixture(-shares, noise_multiplier, sampling_rate)
    total: Floats = ratios.sum(axis=0)
    return total


def _log_mixture(shares: Floats, noise: float, rate: float) -> Floats:
    """Density of (1 - q)·N(0, s²) + q·N(1, s²) over that of N(0, s²), logarithm."""
    sampled = math.log(rate) + (2.0 * shares - 1.0) / (2.0 * noise**2)
    return sampled if rate >= 1.0 else np.logaddexp(math.log1p(-rate), sampled)


def _weigh(rule: Rule, order: npt.NDArray[np.int64], took_part: Bools, delta: float, confidence: float) -> Evidence:
    canaries = len(order)
    highest, lowest = rule.counts(canaries)
    right = int(took_part[order[canaries - highest :]].sum()) + int((~took_part[order[:lowest]]).sum())
    epsilon = epsilon_lower_bound(
        canaries=canaries,
        guesses=highest + lowest,
        right=right,
        delta=delta,
        confidence=1.0 - (1.0 - confidence) / len(RULES),
    )
    return Evidence(epsilon, confidence, canaries, highest + lowest, right)
