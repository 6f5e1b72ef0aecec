"""Exact evaluation on every virtual site's records, which only a simulation can do. No message carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from fedethos.client.evaluator import score, tabulate
from fedethos.client.examples import Examples
from fedethos.client.node import Node
from fedethos.fairness.histograms import pool
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

    def __call__(self, arrays: Arrays, split: SplitName, round: int) -> Measurement:
        model, job = self.nodes[0].model, self.nodes[0].job
        model.load(arrays)
        parts = [node.examples[split] for node in self.nodes]
        return exact_measurement(job, [(score(model, part, job.data.label.favorable_index), part) for part in parts])


def exact_measurement(job: Job, scored: Sequence[tuple[Floats, Examples]]) -> Measurement:
    """Exact tables of all sites together, from each site's scores (float[n]) and records. Counterfactual copies do not count."""
    tables = pool([tabulate(scores, part, job.data) for scores, part in scored], shapes_of(job))
    truth = np.concatenate([part.label[part.counted] for _, part in scored]) == job.data.label.favorable_index
    return Measurement(tables, exact_auc=_auc(truth, np.concatenate([scores[part.counted] for scores, part in scored])))


def _auc(truth: npt.NDArray[np.bool_], scores: Floats) -> float | None:
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else None
