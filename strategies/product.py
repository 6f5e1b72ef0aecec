"""Adapters as what they do to the model: s·B·A per adapted layer (s = lora_alpha / r), every other tensor as it is.

Two adapters with different factors can be the same update, so distances are taken between products. No product is formed for them:
||U V||² = sum(UᵀU ∘ VVᵀ) needs matrices of the rank's size only. Next on the path: ``robust.py`` (who uses it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedethos.messages import Arrays
from fedethos.strategies.averaging import lora_pairs

Matrix = npt.NDArray[np.float64]
Factors = tuple[Matrix, Matrix]
"""U [out, k] and V [k, in] of a product U V that is never formed."""


@dataclass(frozen=True)
class Geometry:
    """What turns trainable tensors into updates of the model: the ``frozen`` tensors (lora_A under ffa) and ``scale`` = lora_alpha / r."""

    frozen: Arrays
    scale: float

    def layers(self, update: Arrays) -> list[tuple[str, str]]:
        """(lora_A, lora_B) names of the layers whose product ``update`` moves, sorted."""
        return [pair for pair in lora_pairs({*update, *self.frozen}) if not {*pair}.isdisjoint(update)]

    def others(self, update: Arrays) -> list[str]:
        """Names of trainable tensors outside of any product (the head), sorted."""
        return sorted(set(update) - {name for pair in self.layers(update) for name in pair})

    def factor(self, update: Arrays, name: str) -> Matrix:
        """One factor in float64, from ``update`` or from what is frozen."""
        return (update[name] if name in update else self.frozen[name]).astype(np.float64)

    def distance(self, one: Arrays, other: Arrays) -> float:
        """Frobenius norm of the difference of two updates over all layers and other tensors.

        B₁A₁ − B₂A₂ is written as (B₁ − B₂)A₁ + B₂(A₁ − A₂), so that close updates do not cancel.
        """
        squared = sum(float(np.square(one[name].astype(np.float64) - other[name]).sum()) for name in self.others(one))
        for difference in self._differences(one, other):
            squared += self.scale**2 * inner(difference, difference)
        return float(np.sqrt(max(0.0, squared)))

    def _differences(self, one: Arrays, other: Arrays) -> Iterator[Factors]:
        for name_a, name_b in self.layers(one):
            a, b = self.factor(one, name_a), self.factor(one, name_b)
            other_a, other_b = self.factor(other, name_a), self.factor(other, name_b)
            yield np.hstack([b - other_b, other_b]), np.vstack([a, a - other_a])


def inner(one: Factors, other: Factors) -> float:
    """Frobenius inner product <U₁V₁, U₂V₂> = sum(U₁ᵀU₂ ∘ V₁V₂ᵀ)."""
    return float(np.sum((one[0].T @ other[0]) * (one[1] @ other[1].T)))
