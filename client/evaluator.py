"""Local evaluation: one score per record, then counts per group. Only the counts can leave, and only with a basis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedethos.client.examples import Examples
from fedethos.client.memory import TokenBudget
from fedethos.client.model import NodeModel, log_odds_of, margin_of
from fedethos.data.batching import by_length
from fedethos.fairness.decision_rules import GroupRules
from fedethos.fairness.histograms import OVERALL, histogram
from fedethos.fairness.layout import Layout
from fedethos.fairness.responses import response_scores
from fedethos.job import Job
from fedethos.messages import Tables
from fedethos.privacy.randomness import RandomSource

TOKENS_PER_PASS = 8192


@dataclass(frozen=True)
class Predictions:
    """What a model says about n records, in their order.

    ``log_odds`` of the favorable label against the rest, float64[n]; ``margin``: against the likeliest other, the same for two labels and
    above 0 where the favorable one is predicted; ``label``: the most likely one, int64[n]. ``response``: scores of the responses,
    float64[n], which the score table counts in the place of log-odds (``fairness/responses.py``); None: it counts log-odds.
    """

    log_odds: npt.NDArray[np.float64]
    margin: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]
    response: npt.NDArray[np.float64] | None = None


def predict(model: NodeModel, examples: Examples, favorable: int, budget: TokenBudget | None = None) -> Predictions:
    """What the model says about each record. ``budget``: the padded tokens of a pass that fitted so far; None: 8,192."""
    return (budget or TokenBudget(TOKENS_PER_PASS)).fitted(lambda tokens: _predict(model, examples, favorable, tokens))


def _predict(model: NodeModel, examples: Examples, favorable: int, tokens: int) -> Predictions:
    log_odds, margin, label = np.empty(len(examples)), np.empty(len(examples)), np.empty(len(examples), dtype=np.int64)
    response = None if model.response_nats is None else np.empty(len(examples))
    with torch.inference_mode():
        for batch in by_length(examples.inputs.lengths, tokens=tokens):
            outputs = model.outputs(examples.inputs.batch(batch))
            logits = model.classes(outputs)
            if model.response_nats is not None and response is not None:
                response[batch] = response_scores(model.response_nats(outputs).double().cpu().numpy())
            log_odds[batch], margin[batch] = log_odds_of(logits, favorable), margin_of(logits, favorable)
            label[batch] = logits.argmax(dim=1).cpu().numpy()
    return Predictions(log_odds, margin, label, response)


def score(model: NodeModel, examples: Examples, favorable: int) -> npt.NDArray[np.float64]:
    """Log-odds of the favorable label for each record, float64[n], in record order."""
    return predict(model, examples, favorable).log_odds


def tabulate(scores: npt.NDArray[np.float64], examples: Examples, job: Job) -> Tables:
    """Score histograms int64[groups, labels, bins], one per attribute of the job (``overall`` when there is none).

    Counterfactual copies are never counted: counts are charged for a bounded number of records of each unit.
    """
    labels = len(job.data.label.values)
    counted = examples.counted
    scores, label = scores[counted], examples.label[counted]
    if not job.counted:
        return {OVERALL: histogram(scores, label, np.zeros(len(label), dtype=np.int64), groups=1, labels=labels)}
    return {
        attribute: histogram(scores, label, examples.groups[attribute][counted], groups=len(categories) + 1, labels=labels)
        for attribute, categories in job.counted.items()
    }


def tabulate_responses(scores: npt.NDArray[np.float64], examples: Examples, job: Job) -> npt.NDArray[np.int64]:
    """Everybody's histogram of response scores, int64[labels, bins]. No copies, as in ``tabulate``."""
    counted, labels = examples.counted, len(job.data.label.values)
    label = examples.label[counted]
    table: npt.NDArray[np.int64] = histogram(scores[counted], label, np.zeros(len(label), dtype=np.int64), groups=1, labels=labels)[0]
    return table


def lay_out(predictions: Predictions, examples: Examples, job: Job, layout: Layout, coins: RandomSource | None = None) -> Tables:
    """The exact tables that ``layout`` asks for; full histograms if it asks for nothing. ``coins``: for rules by group."""
    full = tabulate(predictions.log_odds, examples, job)
    if not layout.wanted:
        return full
    count = layout.predictions(len(job.data.label.values))
    if predictions.response is not None:
        return layout.tables(full, responses=tabulate_responses(predictions.response, examples, job))
    if job.data.label.multiclass:
        return layout.tables(full, tabulate_decisions(predictions.label, count, examples, job))
    if layout.rules is None or coins is None:
        return layout.tables(full)
    favored = decide(predictions.log_odds, examples, layout.rules, coins)
    return layout.tables(full, tabulate_decisions(favored.astype(np.int64), count, examples, job))


def decide(scores: npt.NDArray[np.float64], examples: Examples, rules: GroupRules, coins: RandomSource) -> npt.NDArray[np.bool_]:
    """Favorable decisions bool[n], each record by the rule of its group."""
    return coins.uniform(len(scores)) < rules.chance(scores, examples.groups[rules.attribute])


def tabulate_decisions(decision: npt.NDArray[np.int64], decisions: int, examples: Examples, job: Job) -> Tables:
    """Counts int64[groups, labels, decisions] by decision int64[n], one table per attribute (``overall`` when there is none).

    No copies, as in ``tabulate``.
    """
    labels, counted = len(job.data.label.values), examples.counted
    label, decision = examples.label[counted], decision[counted]

    def table(group: npt.NDArray[np.int64], groups: int) -> npt.NDArray[np.int64]:
        cell = (group * labels + label) * decisions + decision
        return np.bincount(cell, minlength=groups * labels * decisions).reshape(groups, labels, decisions).astype(np.int64)

    tables = {attribute: table(examples.groups[attribute][counted], len(names) + 1) for attribute, names in job.counted.items()}
    return tables or {OVERALL: table(np.zeros(len(label), dtype=np.int64), 1)}
