"""Local evaluation: one score per record, then counts per group. Only the counts can leave, and only with a basis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fedethos.client.examples import Examples
from fedethos.client.model import NodeModel, log_odds_of
from fedethos.fairness.histograms import OVERALL, histogram
from fedethos.job_data import Data
from fedethos.messages import Tables

_TOKENS_PER_BATCH = 8192


def score(model: NodeModel, examples: Examples, favorable: int) -> npt.NDArray[np.float64]:
    """Log-odds of the favorable label for each record, float64[n], in record order."""
    lengths = examples.inputs.lengths
    order = np.argsort(lengths, kind="stable")
    scores = np.empty(len(examples))
    start = 0
    with torch.inference_mode():
        while start < len(order):
            longest_first_fit = max(1, _TOKENS_PER_BATCH // int(lengths[order[min(start + 255, len(order) - 1)]]))
            batch = order[start : start + longest_first_fit]
            scores[batch] = log_odds_of(model.logits(examples.inputs.batch(batch)), favorable)
            start += len(batch)
    return scores


def tabulate(scores: npt.NDArray[np.float64], examples: Examples, data: Data) -> Tables:
    """Score histograms int64[groups, labels, bins], one per sensitive attribute (``overall`` when there is none).

    Counterfactual copies are never counted: counts are charged for a bounded number of records of each unit.
    """
    labels = len(data.label.values)
    counted = examples.counted
    scores, label = scores[counted], examples.label[counted]
    if not data.sensitive:
        return {OVERALL: histogram(scores, label, np.zeros(len(label), dtype=np.int64), groups=1, labels=labels)}
    return {
        attribute: histogram(scores, label, examples.groups[attribute][counted], groups=len(categories) + 1, labels=labels)
        for attribute, categories in data.sensitive.items()
    }
