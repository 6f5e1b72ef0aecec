"""Losses of single examples. Each depends on its own example only, so that clipping it bounds that example's influence.

A Hugging Face model's built-in loss divides by the number of targets in the BATCH: an example's gradient then depends on
its neighbours, and no clipping of it bounds anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # label of a position without a target, as in Hugging Face


def per_example_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example in nats, float[b], for ``logits`` [b, classes] and ``labels`` int64[b]."""
    return F.cross_entropy(trainable_precision(logits), labels, reduction="none")


def trainable_precision(logits: Tensor) -> Tensor:
    """At least float32: exponentials of half-precision logits lose small probabilities."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
