"""The discrete Gaussian N_Z(0, sigma^2), sampled exactly: integers only, no floating point, no truncation.

P(X = x) is proportional to exp(-x^2 / (2 sigma^2)) over all integers x. Canonne, Kamath and Steinke (2020,
https://arxiv.org/abs/2004.00010): algorithm 1 (Bernoulli of exp(-gamma)), 2 (discrete Laplace), 3 (discrete Gaussian by rejection).

Why the output has exactly this law: every branch is a comparison of a uniform integer with a rational number, in Python's
unbounded integers. ``sigma`` is a binary fraction, and is taken as exactly that. The uniform integers come from uniform bytes
by rejection, so that they have no modulo bias. What remains is the quality of the bytes (``randomness.py``) and the
running time, which depends on the values drawn: time of arrival is a stated side channel.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from fedethos.privacy.randomness import RandomSource

_WORD_BITS = 64
_WORDS_AT_ONCE = 4096


def discrete_gaussian(sigma: float, count: int, source: RandomSource) -> npt.NDArray[np.int64]:
    """``count`` independent draws, int64[count]. ``sigma`` is the parameter, positive and finite, in units of the counts."""
    uniform = _UniformIntegers(source)
    variance = Fraction(sigma) ** 2
    return np.array([_gaussian(variance, math.floor(sigma) + 1, uniform) for _ in range(count)], dtype=np.int64)


def discrete_gaussian_variance(sigma: float) -> float:
    """Variance of one draw: never above sigma^2, and well below it for a sigma under 0.5."""
    x = np.arange(1, math.ceil(12.0 * sigma) + 2, dtype=np.float64)
    weights = np.exp(-((x / sigma) ** 2) / 2.0)
    return float(2.0 * (x**2 @ weights) / (1.0 + 2.0 * weights.sum()))


class _UniformIntegers:
    """Uniform integers below any bound, from blocks of bytes."""

    def __init__(self, source: RandomSource) -> None:
        self._source = source
        self._words: list[int] = []

    def below(self, bound: int) -> int:
        """Uniform on 0 … bound - 1: the largest multiple of ``bound`` that the words can hold is cut into equal classes."""
        words = -(-bound.bit_length() // _WORD_BITS)
        limit = 1 << (words * _WORD_BITS)
        usable = limit - limit % bound
        while True:
            drawn = self._word()
            for _ in range(words - 1):
                drawn = drawn << _WORD_BITS | self._word()
            if drawn < usable:
                return drawn % bound

    def _word(self) -> int:
        if not self._words:
            self._words = np.frombuffer(self._source.random_bytes(_WORDS_AT_ONCE * _WORD_BITS // 8), dtype="<u8").tolist()
        return self._words.pop()


def _gaussian(variance: Fraction, scale: int, uniform: _UniformIntegers) -> int:
    """Algorithm 3: a discrete Laplace draw y, accepted with probability exp(-(|y| - variance/scale)^2 / (2 variance))."""
    a, b = variance.numerator, variance.denominator
    while True:
        y = _laplace(scale, uniform)
        # The exponent over one denominator: (|y| b scale - a)^2 / (2 a b scale^2).
        if _exponential(abs(y) * b * scale - a, 2 * a * b * scale * scale, uniform):
            return y


def _laplace(scale: int, uniform: _UniformIntegers) -> int:
    """Algorithm 2: P(y) proportional to exp(-|y| / scale)."""
    while True:
        remainder = uniform.below(scale)
        if not _bernoulli_exp(remainder, scale, uniform):
            continue
        quotient = 0
        while _bernoulli_exp(1, 1, uniform):
            quotient += 1
        size = remainder + scale * quotient
        negative = uniform.below(2) == 1
        if size or not negative:  # or zero would be drawn twice as often
            return -size if negative else size


def _exponential(root: int, denominator: int, uniform: _UniformIntegers) -> bool:
    """True with probability exp(-root^2 / denominator), whatever its size."""
    whole, rest = divmod(root * root, denominator)
    return all(_bernoulli_exp(1, 1, uniform) for _ in range(whole)) and _bernoulli_exp(rest, denominator, uniform)


def _bernoulli_exp(numerator: int, denominator: int, uniform: _UniformIntegers) -> bool:
    """Algorithm 1: true with probability exp(-numerator / denominator), for a fraction in [0, 1]."""
    k = 1
    while uniform.below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1
