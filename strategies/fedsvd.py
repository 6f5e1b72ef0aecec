"""FedSVD (Lee et al. 2025, "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA"): A follows B's learning.

Sites train B alone, so the mean is exact. The coordinator then writes the same update with another A:

    (Σ pᵢ Bᵢ) A = U S Vᵀ,    A ← Vᵀ,  B ← U S

A's rows become orthonormal and point where the update does, without ever taking noise. It is post-processing: no epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fedethos.aggregation import Aggregation, layers_of
from fedethos.messages import Arrays
from fedethos.models.lowrank import with_orthonormal_a
from fedethos.strategies.averaging import Updates, adapter_of, as_lora
from fedethos.strategies.fedavg import AdapterFedAvg


class FedSvd(AdapterFedAvg):
    """The mean of B, then both factors anew."""

    rule: ClassVar[Aggregation] = "fedsvd"

    def advance(self, server_round: int, averaged: Arrays, updates: Updates, weights: Sequence[float]) -> Arrays:
        return reorthogonalised(averaged)


def reorthogonalised(arrays: Arrays) -> Arrays:
    """The same updates BA with A's rows orthonormal. A layer whose B is zero keeps its A, which nothing speaks against."""
    result = dict(arrays)
    for layer in layers_of(arrays):
        product = adapter_of(arrays, layer)
        if product.b.any():
            result |= as_lora(with_orthonormal_a(product, product.rank), layer)
    return result
