"""FedEx-LoRA (Singhal et al. 2024, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models").

FedAvg's B̄ = Σ pᵢ Bᵢ and Ā = Σ pᵢ Aᵢ go on training; what their product misses goes into a frozen residual R:

    R ← R + Σ pᵢ Bᵢ Aᵢ - B̄ Ā        so that   B̄ Ā + R  =  the mean of the sites' updates

The paper adds R to the frozen weights. Here R stays a low-rank pair of its own, so that the base model never changes; its rank grows
by at most sites · r a round and never beyond the layer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fedethos.aggregation import Aggregation, layers_of
from fedethos.messages import Arrays
from fedethos.models.lowrank import added
from fedethos.strategies.averaging import Updates, adapter_of, as_residual, mean_products, residual_of
from fedethos.strategies.fedavg import AdapterFedAvg


class FedEx(AdapterFedAvg):
    """FedAvg, and the rest into the residual."""

    rule: ClassVar[Aggregation] = "fedex"

    def advance(self, server_round: int, averaged: Arrays, updates: Updates, weights: Sequence[float]) -> Arrays:
        return with_rest_in_residual(averaged, updates, weights)


def with_rest_in_residual(averaged: Arrays, updates: Updates, weights: Sequence[float]) -> Arrays:
    """``averaged`` with a residual that makes each layer's update the mean of the sites' updates."""
    result = dict(averaged)
    for layer, mean in mean_products(updates, weights, layers_of(averaged), {}).items():
        rest = [mean, adapter_of(averaged, layer).times(-1.0)]
        result |= as_residual(added([*residual_of(averaged, layer), *rest]), layer)
    return result
