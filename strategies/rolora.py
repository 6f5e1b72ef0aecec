"""RoLoRA (Chen et al. 2025, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA"): one factor a round.

Odd rounds train B and leave A, even rounds train A and leave B. The update BA is then linear in what trains, so

    Σ pᵢ Bᵢ A = (Σ pᵢ Bᵢ) A        Σ pᵢ B Aᵢ = B (Σ pᵢ Aᵢ)

and the mean is exact in every round, while both factors learn. Which one trains follows from the round alone
(``fedethos.aggregation.trained_in``).
"""

from __future__ import annotations

from typing import ClassVar

from fedethos.aggregation import Aggregation
from fedethos.strategies.fedavg import AdapterFedAvg


class RoLora(AdapterFedAvg):
    """The mean of the factor whose turn it is; the other stays."""

    rule: ClassVar[Aggregation] = "rolora"
