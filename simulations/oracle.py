"""Exact evaluation on every virtual site's records, which only a simulation can do. No message carries it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

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
    """Sees all nodes of this process, by site; ``basis`` marks what it says wherever it is shown.

    ``personal``: of every site's own adapter in place of the one that is given.
    """

    nodes: Mapping[str, Node]
    personal: bool = False
    basis: MeasureBasis = "oracle"

    def of_personal(self) -> Oracle:
        """The same of every site's personal adapter."""
        return replace(self, personal=True)

    @property
    def people(self) -> dict[SplitName, int]:
        splits: tuple[SplitName, ...] = ("train", "validation", "test")
        return {split: sum(node.examples[split].units for node in self.nodes.values()) for split in splits}

    def __call__(self, arrays: Arrays, split: SplitName, round: int, layout: Layout = WHOLE) -> Measurement:
        nodes = list(self.nodes.values())
        model, job = nodes[0].model, nodes[0].job
        parts = [node.examples[split] for node in nodes]
        model.load(arrays)
        predictions = []
        for node, part in zip(nodes, parts, strict=True):
            if self.personal:
                model.load(node.personal_or(arrays, round))
            predictions.append(predict(model, part, job.data.label.favorable_index))
        tables = [
            lay_out(one, part, job, layout, node.source_of(f"decisions/{split}", round))
            for one, part, node in zip(predictions, parts, nodes, strict=True)
        ]
        pooled = exact_measurement(job, tables, [one.log_odds for one in predictions], parts, layout)
        return replace(pooled, by_site=dict(zip(self.nodes, tables, strict=True)))


def exact_measurement(
    job: Job, tables: Sequence[Tables], scores: Sequence[Floats], parts: Sequence[Examples], layout: Layout = WHOLE
) -> Measurement:
    """All sites together, from each site's tables, scores (float[n]) and records. Counterfactual copies do not count."""
    truth = np.concatenate([part.label[part.counted] for part in parts]) == job.data.label.favorable_index
    real = np.concatenate([values[part.counted] for values, part in zip(scores, parts, strict=True)])
    return Measurement(pool(tables, shapes_of(job, layout)), exact_auc=_auc(truth, real))


def _auc(truth: npt.NDArray[np.bool_], scores: Floats) -> float | None:
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else None
