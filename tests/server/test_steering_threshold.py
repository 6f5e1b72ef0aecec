"""Steering with everybody's threshold finds it at the first release, wherever the scores are, and so sees the gap."""

from __future__ import annotations

import numpy as np
import pytest

from fedethos.documents import load_job
from fedethos.fairness.histograms import EDGES, histogram
from fedethos.fairness.layout import GROUP_SCORES, Layout
from fedethos.server.measure import Measurement
from fedethos.server.state import RunState
from fedethos.server.steering import steered

PEOPLE = 4000


@pytest.mark.parametrize("middle", [-3.5, 0.0, 3.5])
def test_a_model_far_from_one_half_is_steered_at_once(write_job, middle: float) -> None:
    """A quarter has the favorable label and scores 1 higher; women score 0.7 lower than men. At 0.5 everybody or nobody is selected."""
    job = load_job(write_job(fairness={"strategy": "controller", "every": 1, "attribute": "sex"}))
    rng = np.random.default_rng(0)
    label, sex = (rng.random(PEOPLE) < 0.25).astype(np.int64), rng.integers(0, 2, PEOPLE)
    scores = middle + label + 0.7 * sex + rng.normal(0.0, 0.5, PEOPLE)
    full = histogram(scores, label, sex, groups=3, labels=2)

    def ask(_arrays: object, _split: object, _round: int, layout: Layout) -> Measurement:
        return Measurement({GROUP_SCORES: layout.tables({"sex": full})[GROUP_SCORES]})

    state, asked = steered(ask, RunState(1, {}, RunState.start({}, {}, []).memory), job, [])
    steering = state.memory.steering
    assert len(asked) == 1 and steering is not None
    assert np.mean(scores >= EDGES[steering.edge]) == pytest.approx(0.25, abs=0.15)
    women, men = np.reshape(steering.weights, (-1, 2))[:2, 1]
    assert women > 1.05
    assert men < 0.95


def test_with_the_fixed_threshold_it_asks_for_two_bins(write_job) -> None:
    job = load_job(write_job(fairness={"strategy": "controller", "every": 1, "attribute": "sex", "thresholds": "fixed"}))
    cuts = []

    def ask(_arrays: object, _split: object, _round: int, layout: Layout) -> Measurement:
        cuts.append(layout.group_cuts)
        return Measurement({GROUP_SCORES: np.full((3, 2, 2), 50)})

    start = RunState.start({}, {}, [])
    steered(ask, RunState(1, {}, start.memory), job, [])
    assert cuts == [(32,)]
