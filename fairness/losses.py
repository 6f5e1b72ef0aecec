"""Ethics losses by name (``fairness.loss``): what a record's loss is, from that record and the counterfactual copies in its unit alone.

So clipping bounds a unit's influence with each of them. A loss over groups of a batch would not be safe, and a weight inside a loss is
clipped away: ``reweighing`` and ``group_dro`` are cross-entropy here, and weigh cells after clipping (``strategies/reweighing.py``,
``strategies/group_dro.py``). Next on the path: ``client/trainer.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from fedethos.job import Job
from fedethos.job_fairness import Fairness
from fedethos.losses import per_example_cross_entropy, trainable_precision

LossName = Literal["none", "reweighing", "group_dro", "counterfactual_consistency", "focal"]

ExampleLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``loss(logits, labels, original)``: float[b] from ``logits`` [b, classes], ``labels`` int64[b], and ``original`` int64[b], the row of the
micro-batch that each row is a counterfactual copy of, its own where it is none."""


def example_loss(job: Job) -> ExampleLoss:
    """The loss of a job's task, or the one that ``fairness.loss`` names."""
    if job.task == "causal-lm":
        return negative_log_likelihood
    if job.task == "preference":
        return direct_preference
    return LOSSES[job.fairness.loss](job.fairness)


def negative_log_likelihood(outputs: Tensor, labels: Tensor, original: Tensor) -> Tensor:
    """Of causal-lm, whose ``outputs`` [b, 2] begin with the response's mean log-likelihood per token: that in nats, positive."""
    return -outputs[:, 0]


def direct_preference(outputs: Tensor, labels: Tensor, original: Tensor) -> Tensor:
    """DPO (Rafailov et al. 2023, arXiv:2305.18290, equation 7), ``outputs`` [b, 4] begin with the scaled gains of both answers, the
    better one first: -log sigmoid of their difference."""
    return -F.logsigmoid(outputs[:, 0] - outputs[:, 1])


def cross_entropy(logits: Tensor, labels: Tensor, original: Tensor) -> Tensor:
    """``per_example_cross_entropy`` as an ``ExampleLoss``."""
    return per_example_cross_entropy(logits, labels)


def focal(logits: Tensor, labels: Tensor, original: Tensor, *, gamma: float) -> Tensor:
    """Focal loss (Lin et al. 2017, arXiv:1708.02002, eq. 4): -(1 - p)^gamma log p, p the probability of the true label.

    What the model already knows counts less. ``gamma`` 0 is cross-entropy.
    """
    loss = per_example_cross_entropy(logits, labels)
    wrong = (-(-loss).expm1()).clamp(min=1e-12)  # 1 - p; at 0 a power below 1 would have no gradient
    return wrong**gamma * loss


def counterfactual_consistency(logits: Tensor, labels: Tensor, original: Tensor, *, weight: float) -> Tensor:
    """Cross-entropy, and for a copy ``weight`` times the symmetric Kullback-Leibler divergence from its original, KL(p|q) + KL(q|p).

    Counterfactual logit pairing (Garg et al. 2019, arXiv:1809.10610) with a divergence in nats. Both rows belong to one unit, so the
    gradient through the original's row is clipped with that of the copy.
    """
    log_p = F.log_softmax(trainable_precision(logits), dim=-1)
    log_q = log_p[original]
    divergence = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1)
    return per_example_cross_entropy(logits, labels) + weight * divergence


LOSSES: Mapping[LossName, Callable[[Fairness], ExampleLoss]] = {
    "none": lambda fairness: cross_entropy,
    "reweighing": lambda fairness: cross_entropy,
    "group_dro": lambda fairness: cross_entropy,
    "counterfactual_consistency": lambda fairness: partial(counterfactual_consistency, weight=fairness.consistency_weight),
    "focal": lambda fairness: partial(focal, gamma=fairness.focal_gamma),
}
