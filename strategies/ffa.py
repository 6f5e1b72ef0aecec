"""FFA-LoRA (Sun et al. 2024, "Improving LoRA in privacy-preserving federated learning"): A stays as drawn, B is averaged.

The update BA is then linear in what is trained, so the mean of the sites' B is exactly the mean of their updates, and
privacy noise enters once instead of in both factors. A is drawn from the job's seed and travels once, in ``query.setup``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fedethos.aggregation import Aggregation
from fedethos.errors import FedethosError
from fedethos.messages import Arrays
from fedethos.strategies.averaging import Updates
from fedethos.strategies.fedavg import AdapterFedAvg


class FfaLora(AdapterFedAvg):
    """FedAvg that refuses (AGG-720) an update which moves A."""

    rule: ClassVar[Aggregation] = "ffa"

    def combine(self, updates: Updates, weights: Sequence[float]) -> Arrays:
        for update in updates:
            if any(".lora_A." in name for name in update):
                raise FedethosError("AGG-720", "An update carries lora_A, which FFA-LoRA keeps frozen.", where="federation.aggregation")
        return super().combine(updates, weights)
