"""Fed-SB (Singhal et al. 2025, "Fed-SB: A Silver Bullet for Extreme Communication Efficiency and Performance in (Private) Federated
LoRA Fine-Tuning"): only an r x r core between fixed factors trains.

    ΔW = (lora_alpha / r) B R A,    Σ pᵢ B Rᵢ A = B (Σ pᵢ Rᵢ) A

The mean is exact, a message carries r² numbers a layer, and privacy noise enters r² numbers. Where the fixed factors come from, and how
that differs from the paper: ``fedethos.models.core``.
"""

from __future__ import annotations

from typing import ClassVar

from fedethos.aggregation import Aggregation
from fedethos.strategies.fedavg import AdapterFedAvg


class FedSb(AdapterFedAvg):
    """The mean of the cores."""

    rule: ClassVar[Aggregation] = "fedsb"
