"""Cross-entropy of single tokens without ever holding all their logits.

Over 49,152 words the logits of 500 targets are 100 MB, their softmax and its gradient as much again: more than a small model's
activations. So a few tokens at a time go through the output layer, and what stays of them is a loss and its gradient by the hidden
state, which is as wide as the model. Nothing is computed twice: the backward pass only scales.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TOKENS_AT_ONCE = 128  # enough to keep matrix products efficient


def token_cross_entropy(hidden: Tensor, output_layer: nn.Module, targets: Tensor) -> Tensor:
    """Cross-entropy of each target in nats, float32[n], for ``hidden`` [n, h] and ``targets`` int64[n].

    ``output_layer`` maps hidden states to logits, each by itself. Where it trains it is evaluated at once: its own gradient is needed.
    """
    if any(parameter.requires_grad for parameter in output_layer.parameters()):
        return _losses(hidden, output_layer, targets)
    if hidden.requires_grad and torch.is_grad_enabled():
        losses: Tensor = _TokenCrossEntropy.apply(hidden, output_layer, targets)  # type: ignore[no-untyped-call]
        return losses
    return torch.cat([_losses(hidden[part], output_layer, targets[part]) for part in _parts(len(hidden))])


class _TokenCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, output_layer: nn.Module, targets: Tensor) -> Tensor:
        losses, gradients = hidden.new_empty(len(hidden), dtype=torch.float32), torch.empty_like(hidden)
        for part in _parts(len(hidden)):
            with torch.enable_grad():
                rows = hidden[part].detach().requires_grad_()
                found = _losses(rows, output_layer, targets[part])
                (gradients[part],) = torch.autograd.grad(found.sum(), rows)
            losses[part] = found.detach()
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * grad[:, None].to(gradients.dtype), None, None


def _losses(hidden: Tensor, output_layer: nn.Module, targets: Tensor) -> Tensor:
    return F.cross_entropy(output_layer(hidden).float(), targets, reduction="none")


def _parts(tokens: int) -> list[slice]:
    """At least one, so that no tokens have no losses."""
    return [slice(start, start + TOKENS_AT_ONCE) for start in range(0, max(1, tokens), TOKENS_AT_ONCE)]
