"""FLoRA (Wang et al. 2024, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations"): stack.

The mean of the sites' updates is a product of their stacked factors, which the round adds to a frozen residual R:

    R ← R + [p₁B₁ p₂B₂ …] [A₁; A₂; …]  =  R + Σ pᵢ Bᵢ Aᵢ

and the next round starts with a new A (uniform on ±1/√d, PEFT's initialisation, drawn from (seed, round)) and B = 0. The paper
merges R into the frozen weights; here it stays a low-rank pair of its own, so that the base model never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from fedethos.aggregation import Aggregation, layers_of, lora_names
from fedethos.messages import Arrays
from fedethos.models.lowrank import added
from fedethos.privacy.randomness import keyed_generator
from fedethos.strategies.averaging import Updates, as_residual, mean_products, residual_of
from fedethos.strategies.fedavg import AdapterFedAvg


class Flora(AdapterFedAvg):
    """``seed``: of the factors A that each round begins with."""

    rule: ClassVar[Aggregation] = "flora"

    def __init__(self, *, seed: int, min_train_nodes: int = 2, min_evaluate_nodes: int = 2, min_available_nodes: int = 2) -> None:
        super().__init__(min_train_nodes=min_train_nodes, min_evaluate_nodes=min_evaluate_nodes, min_available_nodes=min_available_nodes)
        self._seed = seed

    def advance(self, server_round: int, averaged: Arrays, updates: Updates, weights: Sequence[float]) -> Arrays:
        return restarted(stacked_into_residual(averaged, updates, weights), seed=self._seed, round=server_round)


def stacked_into_residual(averaged: Arrays, updates: Updates, weights: Sequence[float]) -> Arrays:
    """``averaged`` with every layer's mean update added to its residual."""
    result = dict(averaged)
    for layer, mean in mean_products(updates, weights, layers_of(averaged), {}).items():
        result |= as_residual(added([*residual_of(averaged, layer), mean]), layer)
    return result


def restarted(arrays: Arrays, *, seed: int, round: int) -> Arrays:
    """``arrays`` with a new A and B = 0 in every layer: an adapter that adds nothing yet."""
    result = dict(arrays)
    for layer in layers_of(arrays):
        name_b, name_a = lora_names(layer)
        shape = arrays[name_a].shape
        bound = 1.0 / np.sqrt(shape[1])
        result[name_a] = keyed_generator(seed, "flora", layer, round).uniform(-bound, bound, shape).astype(np.float32)
        result[name_b] = np.zeros_like(arrays[name_b])
    return result
