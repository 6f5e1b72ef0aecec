"""How likely a model finds the responses of causal-lm, from counts: nats per token, binned as scores are.

    score = 4 · (4 - nats per token)        bins of .125 nats from 0 to 8; what is above 8 counts into the last

So the score table that other tasks release for their AUC holds the responses' losses here, for the same epsilon: a record is in one cell
of it either way. The perplexity is exp of the mean over records, each weighing the same. Its interval is that of the mean under sampling
and the noise in the counts (delta method for a ratio of noisy sums), widened by half a bin.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from fedethos.fairness.histograms import EDGES, FloatArray, IntArray
from fedethos.fairness.intervals import UNDEFINED, Estimate, Interval, critical, estimate
from fedethos.fairness.layout import DEFAULT_CUTS, FINE
from fedethos.job import Job

_MIDDLE, _PER_NAT = 4.0, 4.0
_HALF_BIN = float(EDGES[1] - EDGES[0]) / _PER_NAT / 2.0
_FEWEST = 11  # records: of fewer a mean's normal interval says too little


def known_cuts(job: Job) -> tuple[int, ...]:
    """Inner edges of the score table where nothing is known about the scores."""
    return FINE if job.counts_responses else DEFAULT_CUTS


def response_scores(nats: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scores float64[n] of responses with so many nats per token, float64[n]."""
    return _PER_NAT * (_MIDDLE - nats)


def response_perplexity(table: IntArray, *, noise_variance: float) -> Estimate:
    """exp of the mean nats per token, from counts int64[BINS] with ``noise_variance`` in each; undefined for fewer than 11 records."""
    counts = table.astype(np.float64)
    records, nats = counts.sum(), _nats_of_bins()
    if records < _FEWEST:
        return UNDEFINED
    mean = float(counts @ nats) / records
    apart = np.square(nats - mean)
    sampling = max(0.0, float(counts @ apart) / records) / records
    noise = noise_variance * float(apart.sum()) / records**2
    half = critical() * math.sqrt(sampling + noise) + _HALF_BIN
    limits = np.exp([max(0.0, mean - half), mean + half])
    return estimate(math.exp(max(0.0, mean)), Interval(limits[:1], limits[1:]))


def _nats_of_bins() -> FloatArray:
    """The middle of each bin in nats, float64[BINS]."""
    middles: FloatArray = _MIDDLE - (EDGES[:-1] + EDGES[1:]) / 2.0 / _PER_NAT
    return middles
