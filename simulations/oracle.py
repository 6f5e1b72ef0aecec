"""Exact evaluation on every virtual site's records, which only a simulation can do. No message carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from fedethos.client.evaluator import lay_out, score
from fedethos.client.node import Node
from fedethos.fairness.histograms import pool
from fedethos.fairness.layout import WHOLE, Layout
from fedethos.messages import Arrays, SplitName
from fedethos.server.measure import MeasureBasis, Measurement, shapes_of


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
        model, data = self.nodes[0].model, self.nodes[0].job.data
        favorable = data.label.favorable_index
        model.load(arrays)
        scores = [score(model, node.examples[split], favorable) for node in self.nodes]
        tables = [
            lay_out(values, node.examples[split], data, layout, node.source_of(f"decisions/{split}", round))
            for values, node in zip(scores, self.nodes, strict=True)
        ]
        truth = np.concatenate([node.examples[split].label for node in self.nodes]) == favorable
        return Measurement(pool(tables, shapes_of(self.nodes[0].job, layout)), exact_auc=_auc(truth, np.concatenate(scores)))


def _auc(truth: np.ndarray[tuple[int], np.dtype[np.bool_]], scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float | None:
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else None
