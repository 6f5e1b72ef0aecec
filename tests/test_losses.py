"""Per-example losses against Hugging Face on single examples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from fedethos.losses import IGNORED, per_example_cross_entropy, per_example_next_token_loss


def causal_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape)).eval()


def test_cross_entropy_is_the_log_loss_of_each_row():
    logits, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = torch.stack([-F.log_softmax(row, 0)[label] for row, label in zip(logits, labels, strict=True)])
    assert torch.allclose(per_example_cross_entropy(logits, labels), expected, atol=1e-6)


def test_next_token_loss_is_hugging_faces_loss_of_the_example_alone():
    model = causal_model()
    tokens = torch.randint(1, 50, (4, 9))
    labels = tokens.clone()
    labels[0, :6] = IGNORED  # a long prompt
    labels[1, 3:] = IGNORED  # padding
    labels[2, 1::2] = IGNORED
    losses = per_example_next_token_loss(model.model(tokens).last_hidden_state, model.lm_head, labels)
    alone = torch.stack([model(tokens[row : row + 1], labels=labels[row : row + 1]).loss for row in range(4)])
    assert torch.allclose(losses, alone, atol=1e-5)


def test_an_example_without_targets_has_loss_and_gradient_zero():
    model = causal_model()
    hidden = torch.randn(2, 5, 16, requires_grad=True)
    labels = torch.tensor([[IGNORED] * 5, [3, 4, 5, 6, 7]])
    losses = per_example_next_token_loss(hidden, model.lm_head, labels)
    losses.sum().backward()
    assert losses[0] == 0
    assert losses[1] > 0
    assert not hidden.grad[0].any()
    assert hidden.grad[1].any()
    assert per_example_next_token_loss(hidden[:1], model.lm_head, labels[:1]).tolist() == [0.0]


def test_the_output_layer_sees_targets_only():
    model = causal_model()
    seen = []
    model.lm_head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    labels = torch.full((3, 8), IGNORED)
    labels[:, 6:] = 1
    per_example_next_token_loss(torch.randn(3, 8, 16), model.lm_head, labels)
    assert seen == [(6, 16)]
