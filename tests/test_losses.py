"""Per-example losses, row by row."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fedethos.losses import per_example_cross_entropy


def test_cross_entropy_is_the_log_loss_of_each_row():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = torch.stack([-F.log_softmax(row, 0)[label] for row, label in zip(logits, labels, strict=True)])
    assert torch.allclose(per_example_cross_entropy(logits, labels), expected, atol=1e-6)
