"""The end of a private run whose noise is larger than its validation people: it has been paid for, so it ends with figures."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedethos.fairness.histograms import BINS
from fedethos.fairness.layout import SCORES, Layout
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.server.decision import threshold_json
from fedethos.server.figures import released_figures
from fedethos.server.measure import Measurement, watched_metric


@pytest.fixture
def job() -> Job:
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "few",
            "model": {"path": "asset:minilm"},
            "data": {
                "path": "builtin:adult",
                "text": "{age}",
                "label": {"column": "y", "values": ["a", "b"], "favorable": "b"},
                "sensitive": {"sex": ["f", "m"]},
            },
            "federation": {"early_stop": {"metric": "roc_auc"}},
        }
    )


def released(job: Job, validation: int):
    """Noisy counts: ``validation`` in the first cell of the validation scores, zero elsewhere; 30 test people in each cell."""

    def ask(arrays, split: str, round: int, layout: Layout) -> Measurement:
        tables = {name: np.full(shape, 30, dtype=np.int64) for name, shape in layout.shapes(job.attributes, 2).items()}
        if split == "validation":
            tables[SCORES] = np.zeros((2, BINS), dtype=np.int64)
            tables[SCORES][0, 0] = validation
        return Measurement(tables, noise_variance=4.0)

    ask.everybody = SimpleNamespace(job=job)
    return ask


def test_noisy_counts_of_nobody_leave_the_fixed_threshold_and_say_so(job: Job) -> None:
    figures = released_figures(released(job, -7), {}, 5, job)
    assert figures.decision.edge == FIXED_EDGE
    assert threshold_json(figures.decision, job)["source"] == "fixed score of 0.5: the noisy counts of the validation people held nobody"
    assert figures.people == {"validation": 0, "test": 12 * 30}, "of the table with the fewest cells, and so the least noise"
    counted = released_figures(released(job, 7), {}, 5, job)
    assert threshold_json(counted.decision, job)["source"] == "pooled validation histogram, base rate"


def test_early_stopping_waits_where_the_noise_leaves_nobody(job: Job) -> None:
    value, asked = watched_metric(released(job, 0), {}, 1, "roc_auc")
    assert (value, len(asked)) == (None, 1)
