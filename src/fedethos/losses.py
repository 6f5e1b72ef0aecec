"""Losses of single examples. Each depends on its own example only, so that clipping it bounds that example's influence.

A Hugging Face model's built-in loss divides by the number of targets in the BATCH: an example's gradient then depends on
its neighbours, and no clipping of it bounds anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedethos.token_loss import token_cross_entropy

IGNORED = -100  # label of a position without a target, as in Hugging Face


def per_example_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example in nats, float[b], for ``logits`` [b, classes] and ``labels`` int64[b]."""
    return F.cross_entropy(trainable_precision(logits), labels, reduction="none")


def trainable_precision(logits: Tensor) -> Tensor:
    """At least float32: exponentials of half-precision logits lose small probabilities."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def per_example_next_token_loss(hidden: Tensor, output_layer: nn.Module, labels: Tensor) -> Tensor:
    """Mean next-token cross-entropy of each example over its own targets, in nats.

    The output layer, the widest of a small language model, is evaluated only where there is a target, and for few targets at a
    time (``token_loss.py``): a prompt and padding cost nothing.

    Parameters
    ----------
    hidden : Tensor[b, t, h]
        Last hidden states of the transformer.
    output_layer : nn.Module
        Hidden state to logits, ``model.get_output_embeddings()``; frozen.
    labels : Tensor int64[b, t]
        The input's own tokens, ``IGNORED`` for prompt and padding. Position i predicts label i + 1.

    Returns
    -------
    Tensor float32[b]
        Zero, with a zero gradient, for an example without targets.
    """
    targets = labels[:, 1:]
    example, position = torch.nonzero(targets != IGNORED, as_tuple=True)
    losses = token_cross_entropy(hidden[example, position], output_layer, targets[example, position])
    sums = torch.zeros(len(labels), dtype=losses.dtype, device=losses.device).index_add(0, example, losses)
    counts = torch.bincount(example, minlength=len(labels)).clamp(min=1)
    return sums / counts
