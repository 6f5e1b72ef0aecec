"""Losses of single tokens over the vocabulary without ever holding all their logits.

Over 49,152 words the logits of 500 targets are 100 MB, their softmax and its gradient as much again: more than a small model's
activations. So a few tokens at a time go through the output layer, and what stays of them is a loss and its gradient by the hidden
state, which is as wide as the model. Nothing is computed twice: the backward pass only scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

TOKENS_AT_ONCE = 128  # enough to keep matrix products efficient


def token_cross_entropy(hidden: Tensor, output_layer: nn.Module, targets: Tensor) -> Tensor:
    """Cross-entropy of each target in nats, float32[n], for ``hidden`` [n, h] and ``targets`` int64[n].

    ``output_layer`` maps hidden states to logits, each by itself.
    """
    return _by_parts(hidden, output_layer, lambda logits, part: F.cross_entropy(logits, targets[part], reduction="none"))


def token_kl_divergence(hidden: Tensor, output_layer: nn.Module, reference: Tensor) -> Tensor:
    """KL(reference || model) of each token's distribution over the vocabulary in nats, float32[n], for ``hidden`` [n, h].

    ``reference`` [n, h]: the hidden states of the model that is compared with, under the same output layer.
    """

    def divergence(logits: Tensor, part: slice) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(output_layer(reference[part]).float(), dim=-1)
        return F.kl_div(F.log_softmax(logits, dim=-1), wanted, reduction="none", log_target=True).sum(dim=-1)

    return _by_parts(hidden, output_layer, divergence)


_LossOfPart = Callable[[Tensor, slice], Tensor]
"""From the logits float32[m, v] of some tokens, and which ones these are, to their losses float32[m]."""


def _by_parts(hidden: Tensor, output_layer: nn.Module, loss: _LossOfPart) -> Tensor:
    """Where the output layer trains it is evaluated at once: its own gradient is needed."""
    if any(parameter.requires_grad for parameter in output_layer.parameters()):
        return loss(output_layer(hidden).float(), slice(None))
    if hidden.requires_grad and torch.is_grad_enabled():
        losses: Tensor = _LossByParts.apply(hidden, output_layer, loss)  # type: ignore[no-untyped-call]
        return losses
    return torch.cat([loss(output_layer(hidden[part]).float(), part) for part in _parts(len(hidden))])


class _LossByParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, output_layer: nn.Module, loss: _LossOfPart) -> Tensor:
        losses, gradients = hidden.new_empty(len(hidden), dtype=torch.float32), torch.empty_like(hidden)
        for part in _parts(len(hidden)):
            with torch.enable_grad():
                rows = hidden[part].detach().requires_grad_()
                found = loss(output_layer(rows).float(), part)
                (gradients[part],) = torch.autograd.grad(found.sum(), rows)
            losses[part] = found.detach()
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * grad[:, None].to(gradients.dtype), None, None


def _parts(tokens: int) -> list[slice]:
    """At least one, so that no tokens have no losses."""
    return [slice(start, start + TOKENS_AT_ONCE) for start in range(0, max(1, tokens), TOKENS_AT_ONCE)]
