"""Clip each unit's gradient and add the clipped ones up: the arithmetic, without any model.

A unit's gradient is the sum of its examples' gradients over all trainable parameters. It is scaled to

    flat       g · min(1, C / |g|)          Abadi et al. 2016, https://arxiv.org/abs/1607.00133
    automatic  g · C / (|g| + 0.01)         AUTO-S, Bu et al. 2023, https://arxiv.org/abs/2206.07136

so that no unit adds more than C in L2 norm. The bound must hold for the numbers the machine adds, not for the real
numbers they stand for: norm and sum are taken in float64 from the same tensors, and C is divided by 1 + eta, where eta
bounds the rounding of a float64 norm of that dimension (``rounding_margin``) and leaves room for what a unit does to the rounding
of the others (``BATCH_SHAPE_MARGIN``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Clipping = Literal["flat", "automatic"]

BATCH_SHAPE_MARGIN = 2.0**-21
"""Share of C by which one unit more may move the parts of all others: float32 products round otherwise in batches of another shape.

Measured on a MiniLM-size encoder: 3e-7 for 32 records. bfloat16 is a stated gap: it moved them by .0026.
"""

AUTOMATIC_GAMMA = 0.01  # the paper's stability constant; its results do not depend on it between 0.001 and 0.1


@dataclass(frozen=True)
class Units:
    """Which unit each row of a micro-batch belongs to.

    Attributes
    ----------
    position : Tensor int64[b]
        Row to unit, counted from 0.
    count : int
        Number of different units.
    """

    position: Tensor
    count: int

    @classmethod
    def of(cls, unit_ids: Tensor) -> Units:
        """From arbitrary ids, int64[b]; one row per unit keeps the order of the rows."""
        distinct, position = torch.unique(unit_ids, return_inverse=True)
        if len(distinct) == len(unit_ids):
            position = torch.arange(len(unit_ids), device=unit_ids.device)
        return cls(position, len(distinct))

    def add_rows(self, rows: Tensor) -> Tensor:
        """Add the rows of each unit: [b, ...] to [units, ...]."""
        if self.count == len(rows):
            return rows
        return rows.new_zeros(self.count, *rows.shape[1:]).index_add_(0, self.position, rows)

    def average_rows(self, rows: Tensor) -> Tensor:
        """Mean over the rows of each unit: [b] to [units]."""
        return self.add_rows(rows) / self.add_rows(torch.ones_like(rows))


@dataclass(frozen=True)
class ClippedSum:
    """Sum over units of clipped gradients.

    Attributes
    ----------
    sums : dict of name to float64 Tensor
        Shaped like one example's gradient.
    nonfinite_units : int
        Units left out because a value was NaN or infinite. A fact about the data: it must not leave the node unnoised.
    unclipped_balance : float
        Σ over units of 1/2 if the norm is at most C, else -1/2 (``privacy/adaptive.py``). A fact about the data as well.
    """

    sums: dict[str, Tensor]
    nonfinite_units: int
    unclipped_balance: float


def clip_and_sum(
    per_example: Mapping[str, Tensor], units: Units, max_grad_norm: float, clipping: Clipping = "flat", weights: Tensor | None = None
) -> ClippedSum:
    """Sum over units of each unit's gradient, clipped to ``max_grad_norm`` in joint L2 norm.

    Parameters
    ----------
    per_example : mapping of name to Tensor[b, ...]
        Gradient of each example's own loss.
    units : Units
        The unit of each row; a unit's rows are added before its norm is taken.
    max_grad_norm : float
        C.
    clipping : "flat" or "automatic"
        See the module's formulas.
    weights : Tensor[b], optional
        Multiplies what is left of a unit after clipping, where a loss weight would be clipped away; a unit takes the mean
        of its rows. A unit then adds at most C times the largest weight.
    """
    gradients = {name: units.add_rows(rows) for name, rows in per_example.items()}
    norms = _joint_norms(gradients)
    finite = torch.isfinite(norms)
    bound = max_grad_norm / (1 + rounding_margin(_dimension(gradients)) + BATCH_SHAPE_MARGIN)
    factors = _factors(norms[finite], bound, clipping)
    if weights is not None:
        factors = factors * units.average_rows(weights.double())[finite]
    left_out = units.count - int(finite.sum())
    sums = {name: _weighted_sum(gradient[finite] if left_out else gradient, factors) for name, gradient in gradients.items()}
    return ClippedSum(sums, left_out, int((norms <= bound).sum()) - units.count / 2)


def rounding_margin(dimension: int) -> float:
    """Upper bound eta on the relative error of a float64 L2 norm of ``dimension`` float32 or float64 numbers.

    A sum of n non-negative terms, in any order, errs by at most (n + 1)·u relatively (Higham 2002, section 4.2), u = 2⁻⁵³; the
    square root halves it. Squares, division and the final product add fewer than 32 u. The bound below is twice that.
    """
    return (dimension + 64) * 2.0**-53


def _dimension(gradients: Mapping[str, Tensor]) -> int:
    return sum(gradient[0].numel() for gradient in gradients.values())


def _joint_norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """L2 norm of each unit over all parameters: float64[units]."""
    norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64) for gradient in gradients.values()]
    joint: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return joint


def _factors(norms: Tensor, bound: float, clipping: Clipping) -> Tensor:
    if clipping == "automatic":
        return bound / (norms + AUTOMATIC_GAMMA)
    return (bound / norms).clamp(max=1.0)


def _weighted_sum(gradients: Tensor, factors: Tensor) -> Tensor:
    return (factors @ gradients.flatten(1).double()).reshape(gradients.shape[1:])
