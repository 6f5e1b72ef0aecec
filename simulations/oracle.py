"""Exact evaluation on every virtual site's records, which only a simulation can do. No message carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from fedethos.client.evaluator import lay_out, score, tabulate
from fedethos.client.examples import Examples
from fedethos.client.node import Node
from fedethos.fairness.histograms import pool
from fedethos.fairness.layout import WHOLE, Layout
from fedethos.job import Job
from fedethos.messages import Arrays, SplitName
from fedethos.server.measure import MeasureBasis, Measurement, shapes_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Oracle:
    """Sees all nodes of this process; ``basis`` marks what it says wherever it is shown."""

    nodes: Sequence[Node]
    basis: MeasureBasis = "oracle"

    @property
    def people(self) -> dict[SplitName, int]:
        splits: tuple[SplitName, ...] = ("train", "validation", "test")
        return {split: sum(node.examples[split].units for node in self.nodes) for split in splits}

    def __call__(self, arrays: Arrays, split: SplitName, round: int, layout: Layout = WHOLE) -> Measurement:
        model, job = self.nodes[0].model, self.nodes[0].job
        model.load(arrays)
        scored = [(score(model, node.examples[split], job.data.label.favorable_index), node.examples[split]) for node in self.nodes]
        if not layout.wanted:
            return exact_measurement(job, scored)
        tables = [
            lay_out(values, part, job.data, layout, node.source_of(f"decisions/{split}", round))
            for (values, part), node in zip(scored, self.nodes, strict=True)
        ]
        return Measurement(pool(tables, shapes_of(job, layout)), exact_auc=_exact_auc(job, scored))


def exact_measurement(job: Job, scored: Sequence[tuple[Floats, Examples]]) -> Measurement:
    """Exact tables of all sites together, from each site's scores (float[n]) and records. Counterfactual copies do not count."""
    tables = pool([tabulate(scores, part, job.data) for scores, part in scored], shapes_of(job, WHOLE))
    return Measurement(tables, exact_auc=_exact_auc(job, scored))


def _exact_auc(job: Job, scored: Sequence[tuple[Floats, Examples]]) -> float | None:
    truth = np.concatenate([part.label[part.counted] for _, part in scored]) == job.data.label.favorable_index
    scores = np.concatenate([scores[part.counted] for scores, part in scored])
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else None
