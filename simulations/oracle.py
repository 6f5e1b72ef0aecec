"""Exact evaluation on every virtual site's records, which only a simulation can do. No message carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from fedethos.client.evaluator import lay_out, predict
from fedethos.client.examples import Examples
from fedethos.client.node import Node
from fedethos.fairness.histograms import pool
from fedethos.fairness.layout import WHOLE, Layout
from fedethos.job import Job
from fedethos.messages import Arrays, SplitName, Tables
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
        parts = [node.examples[split] for node in self.nodes]
        predictions = [predict(model, part, job.data.label.favorable_index) for part in parts]
        tables = [
            lay_out(one, part, job, layout, node.source_of(f"decisions/{split}", round))
            for one, part, node in zip(predictions, parts, self.nodes, strict=True)
        ]
        return exact_measurement(job, tables, [one.log_odds for one in predictions], parts, layout)


def exact_measurement(
    job: Job, tables: Sequence[Tables], scores: Sequence[Floats], parts: Sequence[Examples], layout: Layout = WHOLE
) -> Measurement:
    """All sites together, from each site's tables, scores (float[n]) and records. Counterfactual copies do not count."""
    truth = np.concatenate([part.label[part.counted] for part in parts]) == job.data.label.favorable_index
    real = np.concatenate([values[part.counted] for values, part in zip(scores, parts, strict=True)])
    return Measurement(pool(tables, shapes_of(job, layout)), exact_auc=_auc(truth, real))


def _auc(truth: npt.NDArray[np.bool_], scores: Floats) -> float | None:
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else None
