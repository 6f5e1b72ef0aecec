"""Adapters as what they do to the model: s·B·A per adapted layer (s = lora_alpha / r), every other tensor as it is.

Two adapters with different factors can be the same update, so distances are taken between products. No product is formed for them:
||U V||² = sum(UᵀU ∘ VVᵀ) needs matrices of the rank's size only. Next on the path: ``robust.py`` (who uses it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedethos.aggregation import core_name, layers_of, lora_names
from fedethos.messages import Arrays

Matrix = npt.NDArray[np.float64]
Factors = tuple[Matrix, Matrix]
"""U [out, k] and V [k, in] of a product U V that is never formed."""


@dataclass(frozen=True)
class Geometry:
    """What turns the tensors that train into updates of the model.

    Attributes
    ----------
    frozen : dict of float32 array
        The tensors that do not train in this round (lora_A under ffa, both factors under fedsb, one of them under rolora).
    scale : float
        lora_alpha / r.
    """

    frozen: Arrays
    scale: float

    def layers(self, update: Arrays) -> list[tuple[str, str]]:
        """(lora_A, lora_B) names of the layers of which ``update`` moves a factor, sorted."""
        pairs = [lora_names(layer) for layer in layers_of({*update, *self.frozen})]
        return [(name_a, name_b) for name_b, name_a in pairs if not {name_a, name_b}.isdisjoint(update)]

    def others(self, update: Arrays) -> list[str]:
        """Names of trainable tensors outside of any product (the head), sorted."""
        return sorted(set(update) - {name for pair in self.layers(update) for name in pair})

    def squared(self, one: Arrays, other: Arrays) -> float:
        """Squared norm of the difference of two updates outside of any product.

        A core R of fedsb stands between orthonormal factors, so that ||s·B·R·A|| = s·||R||.
        """
        cores = {core_name(layer) for layer in layers_of(self.frozen)}
        return sum(
            (self.scale**2 if name in cores else 1.0) * float(np.square(one[name].astype(np.float64) - other[name]).sum())
            for name in self.others(one)
        )

    def factor(self, update: Arrays, name: str) -> Matrix:
        """One factor in float64, from ``update`` or from what is frozen."""
        return (update[name] if name in update else self.frozen[name]).astype(np.float64)

    def distance(self, one: Arrays, other: Arrays) -> float:
        """Frobenius norm of the difference of two updates over all layers and other tensors.

        B₁A₁ − B₂A₂ is written as (B₁ − B₂)A₁ + B₂(A₁ − A₂), so that close updates do not cancel.
        """
        squared = self.squared(one, other)
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
