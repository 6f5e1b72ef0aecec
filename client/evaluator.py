"""Local evaluation: one score per record, then counts per group. Only the counts can leave, and only with a basis."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fedethos.client.examples import Examples
from fedethos.client.model import NodeModel, log_odds_of
from fedethos.fairness.decision_rules import GroupRules
from fedethos.fairness.histograms import OVERALL, histogram
from fedethos.fairness.layout import Layout
from fedethos.job_data import Data
from fedethos.messages import Tables
from fedethos.privacy.randomness import RandomSource

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


def lay_out(scores: npt.NDArray[np.float64], examples: Examples, data: Data, layout: Layout, coins: RandomSource) -> Tables:
    """The exact tables that ``layout`` asks for; full histograms if it asks for nothing. ``coins``: for randomised decisions."""
    full = tabulate(scores, examples, data)
    if not layout.wanted:
        return full
    if layout.rules is None:
        return layout.tables(full)
    favored = decide(scores, examples, layout.rules, coins)
    return layout.tables(full, tabulate_decisions(favored, examples, data))


def decide(scores: npt.NDArray[np.float64], examples: Examples, rules: GroupRules, coins: RandomSource) -> npt.NDArray[np.bool_]:
    """Favorable decisions bool[n], each record by the rule of its group."""
    return coins.uniform(len(scores)) < rules.chance(scores, examples.groups[rules.attribute])


def tabulate_decisions(favored: npt.NDArray[np.bool_], examples: Examples, data: Data) -> Tables:
    """Counts int64[groups, labels, 2] by decision, one table per sensitive attribute; no copies, as in ``tabulate``."""
    labels, counted = len(data.label.values), examples.counted
    label, favored = examples.label[counted], favored[counted]
    return {
        attribute: np.bincount(
            (examples.groups[attribute][counted] * labels + label) * 2 + favored, minlength=(len(categories) + 1) * labels * 2
        )
        .reshape(len(categories) + 1, labels, 2)
        .astype(np.int64)
        for attribute, categories in data.sensitive.items()
    }
