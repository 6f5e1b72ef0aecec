"""Response perplexity from counts: against the records themselves, and what noise does to it."""

import numpy as np
import pytest

from fedethos.fairness.histograms import BINS, histogram
from fedethos.fairness.responses import response_perplexity, response_scores


def counts(nats: np.ndarray) -> np.ndarray:
    nobody = np.zeros(len(nats), dtype=np.int64)
    return histogram(response_scores(nats), nobody, nobody, groups=1, labels=1)[0, 0]


def test_bins_cost_at_most_half_their_width() -> None:
    nats = np.random.default_rng(0).gamma(4.0, 0.4, 4000)
    found = response_perplexity(counts(nats), noise_variance=0.0)
    assert found.value is not None and found.low is not None and found.high is not None
    assert abs(np.log(found.value) - nats.mean()) < 0.0625
    assert found.low < np.exp(nats.mean()) < found.high


def test_a_certain_model_has_perplexity_one_and_a_hopeless_one_is_cut() -> None:
    assert response_perplexity(counts(np.zeros(50)), noise_variance=0.0).value == pytest.approx(np.exp(0.0625))
    assert response_perplexity(counts(np.full(50, 30.0)), noise_variance=0.0).value == pytest.approx(np.exp(7.9375))
    assert response_perplexity(counts(np.zeros(10)), noise_variance=0.0).abstained


def test_the_interval_covers_under_noise() -> None:
    """200 releases of 300 records with noise of variance 2 in each bin: the truth is inside at least 93 % of them."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        nats = rng.gamma(4.0, 0.4, 300)
        noisy = counts(nats) + np.rint(rng.normal(0.0, np.sqrt(2.0), BINS)).astype(np.int64)
        found = response_perplexity(noisy, noise_variance=2.0)
        assert found.low is not None and found.high is not None
        inside += found.low <= np.exp(1.6) <= found.high
    assert inside >= 186
