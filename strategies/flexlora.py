"""FlexLoRA (Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources").

Sites train adapters of their own ranks rᵢ. The coordinator forms the mean of the updates and cuts its SVD at the largest rank r:

    Σ pᵢ Bᵢ Aᵢ = U S Vᵀ,    B ← U S, A ← Vᵀ  (first r)

Columns fall by importance, so a site's own best adapter is the first rᵢ of them: everybody gets the same tensors and trains that part
(the rest is zero in its reply). What lies beyond rank r is lost each round, and the aggregation error says how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fedethos.aggregation import Aggregation, layers_of
from fedethos.messages import Arrays
from fedethos.models.lowrank import with_orthonormal_a
from fedethos.strategies.averaging import Updates, adapter_of, as_lora, mean_products
from fedethos.strategies.fedavg import AdapterFedAvg


class FlexLora(AdapterFedAvg):
    """The mean of the updates BA, cut at the adapter's rank."""

    rule: ClassVar[Aggregation] = "flexlora"

    def advance(self, server_round: int, averaged: Arrays, updates: Updates, weights: Sequence[float]) -> Arrays:
        return cut_mean(averaged, updates, weights)


def cut_mean(averaged: Arrays, updates: Updates, weights: Sequence[float]) -> Arrays:
    """``averaged`` with every layer's A and B replaced by the best ones of their rank for the mean update.

    With a rank of the mean below r (few sites, small ranks) the last columns are zero, so that shapes stay.
    """
    result = dict(averaged)
    for layer, mean in mean_products(updates, weights, layers_of(averaged), {}).items():
        if mean.b.any():
            result |= as_lora(with_orthonormal_a(mean, adapter_of(averaged, layer).rank), layer)
    return result
