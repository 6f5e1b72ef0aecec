"""The sampler against the probability mass function, which needs no sampler."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from fedethos.privacy.discrete_gaussian import _bernoulli_exp, _UniformIntegers, discrete_gaussian, discrete_gaussian_variance
from fedethos.privacy.randomness import SecureSource, SeededSource

SIGMAS = [0.3, 0.5589, 1.0, 2.41, 13.7]


def mass(sigma):
    """Support and probabilities of N_Z(0, sigma^2), in exact arithmetic up to the exponentials."""
    reach = math.ceil(12 * sigma) + 1
    support = np.arange(-reach, reach + 1)
    weights = [math.exp(-float(Fraction(int(x)) ** 2 / (2 * Fraction(sigma) ** 2))) for x in support]
    return support, np.array(weights) / math.fsum(weights)


class Scripted:
    """A source of prepared 64-bit words."""

    def __init__(self, *words):
        self.words = list(words)

    def random_bytes(self, count):
        block = np.zeros(count // 8, dtype="<u8")
        block[-len(self.words) :] = self.words[::-1]  # the last word of a block is used first
        return block.tobytes()


@pytest.mark.parametrize("source", [SecureSource(), SeededSource(7, "counts")], ids=["secure", "seeded"])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_draws_follow_the_mass_function(sigma, source):
    support, probabilities = mass(sigma)
    drawn = discrete_gaussian(sigma, 8000, source)
    observed = np.array([(drawn == x).sum() for x in support])
    assert observed.sum() == len(drawn)
    expected = probabilities * len(drawn)
    common = expected >= 5
    observed, expected = np.append(observed[common], observed[~common].sum()), np.append(expected[common], expected[~common].sum())
    keep = expected > 0.5
    assert stats.chisquare(observed[keep], expected[keep] * observed[keep].sum() / expected[keep].sum()).pvalue > 1e-4


@pytest.mark.parametrize("sigma", SIGMAS)
def test_moments_and_symmetry(sigma):
    support, probabilities = mass(sigma)
    variance = float(probabilities @ support**2)
    assert discrete_gaussian_variance(sigma) == pytest.approx(variance, rel=1e-9)
    assert variance <= sigma**2 * (1 + 1e-12)
    drawn = discrete_gaussian(sigma, 20_000, SeededSource(3))
    assert drawn.mean() == pytest.approx(0.0, abs=5 * math.sqrt(variance / 20_000))
    assert drawn.var() == pytest.approx(variance, rel=0.15)
    assert stats.binomtest(int((drawn > 0).sum()), int((drawn != 0).sum())).pvalue > 1e-4


def test_a_seed_repeats_and_another_differs():
    first, again, other = (discrete_gaussian(2.0, 200, SeededSource(*key)) for key in ((1, "a"), (1, "a"), (1, "b")))
    assert first.dtype == np.int64
    assert (first == again).all()
    assert (first != other).any()


def test_secure_draws_differ():
    source = SecureSource()
    assert (discrete_gaussian(2.0, 200, source) != discrete_gaussian(2.0, 200, source)).any()


def test_uniform_integers_have_no_modulo_bias():
    highest = 2**64 - 1  # 2^64 is 1 more than a multiple of 3, so the highest word belongs to no class
    assert _UniformIntegers(Scripted(highest, 5)).below(3) == 2
    assert _UniformIntegers(Scripted(highest - 1)).below(3) == (highest - 1) % 3
    assert _UniformIntegers(Scripted(1, 0)).below(2**70) == 2**64  # two words, the first one the higher


@pytest.mark.parametrize("gamma", [Fraction(0), Fraction(1, 7), Fraction(2, 3), Fraction(1)])
def test_bernoulli_of_an_exponential(gamma):
    uniform = _UniformIntegers(SeededSource(5))
    hits = sum(_bernoulli_exp(gamma.numerator, gamma.denominator, uniform) for _ in range(20_000))
    assert stats.binomtest(hits, 20_000, math.exp(-gamma)).pvalue > 1e-4
