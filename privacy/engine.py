"""The seam between a trainer and whatever bounds each unit's gradient.

An engine turns per-example losses into the sum over units of each unit's clipped gradient. Sampling, noise and the
optimizer stay in the trainer (``fedethos.client.trainer``), the same for every engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from fedethos.privacy.clipping import Units

Parameters = Mapping[str, nn.Parameter]
Gradients = dict[str, Tensor]


class ClippingEngine(Protocol):
    """One object per training run of a site: attach, then for each step reset, backward per micro-batch, clipped_sum.

    Attributes
    ----------
    max_grad_norm : float
        C. It may be changed between steps.
    unclipped_balance : float
        Σ over the units since ``reset`` of 1/2 if the gradient's norm is at most C, else -1/2. It must not leave the node unnoised.
    nonfinite_units : int
        Units since ``reset`` that added zero because of a NaN or an infinity. It must not leave the node.
    """

    max_grad_norm: float

    @property
    def unclipped_balance(self) -> float: ...

    @property
    def nonfinite_units(self) -> int: ...

    def attach(self, model: nn.Module, parameters: Parameters) -> None:
        """Prepare ``model``; refuse a trainable parameter that the engine does not cover."""

    def reset(self) -> None:
        """Begin a logical step."""

    def backward(self, per_example_loss: Tensor, unit_ids: Tensor, weights: Tensor | None = None) -> None:
        """Add one micro-batch: ``per_example_loss`` float[b], ``unit_ids`` int64[b]; whole units only.

        ``weights`` float[b] multiply a unit's gradient after clipping, a unit with several rows by their mean. The caller bounds them.
        """

    def clipped_sum(self) -> Gradients:
        """Sum since ``reset`` of the units' clipped gradients, float64; zeros when no micro-batch came."""

    def detach(self) -> None:
        """Leave the model as it was before ``attach``."""


class PlainEngine:
    """No clipping: the plain sum of gradients, for ``privacy.mode: none`` and as a reference in tests."""

    max_grad_norm = math.inf
    unclipped_balance = 0.0
    nonfinite_units = 0

    def attach(self, model: nn.Module, parameters: Parameters) -> None:
        self._parameters = dict(parameters)

    def reset(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def backward(self, per_example_loss: Tensor, unit_ids: Tensor, weights: Tensor | None = None) -> None:
        if weights is not None:  # nothing is clipped, so a weight on the loss is a weight on the gradient
            units = Units.of(unit_ids)
            per_example_loss = per_example_loss * units.average_rows(weights)[units.position]
        torch.autograd.backward(per_example_loss.sum())

    def clipped_sum(self) -> Gradients:
        sums = {name: _grad_or_zero(parameter).double() for name, parameter in self._parameters.items()}
        self.reset()
        return sums

    def detach(self) -> None:
        self._parameters = {}


def _grad_or_zero(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
