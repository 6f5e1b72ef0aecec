"""Tiny random LoRA models with padded synthetic records, and the truth from a loop over single examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from fedethos.losses import per_example_cross_entropy
from fedethos.token_loss import token_cross_entropy

ROWS, LENGTH, VOCABULARY = 8, 11, 97


@dataclass
class Tiny:
    """A model, what trains in it, and the losses of its synthetic records."""

    model: nn.Module
    loss_of: Callable[[nn.Module, Tensor], Tensor]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def loss(self, rows: Tensor | None = None) -> Tensor:
        return self.loss_of(self.model, torch.arange(ROWS) if rows is None else rows)

    def alone(self) -> list[dict[str, Tensor]]:
        """Plain autograd's gradient of every record, alone in its batch, float64."""
        return [self._alone(row) for row in range(ROWS)]

    def _alone(self, row: int) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(self.loss(torch.tensor([row])).sum(), list(self.parameters.values()), allow_unused=True)
        return {
            name: torch.zeros_like(parameter).double() if gradient is None else gradient.double()
            for (name, parameter), gradient in zip(self.parameters.items(), gradients, strict=True)
        }


def _base(kind: str) -> nn.Module:
    if kind == "bert":
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
                hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
            )
        )  # fmt: skip
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, num_labels=3, pad_token_id=0,
    )  # fmt: skip
    return LlamaForSequenceClassification(config) if kind == "llama" else LlamaForCausalLM(config)


def build(kind: str, *, r: int = 4, freeze_a: bool = False, dropout: float = 0.0, seed: int = 0) -> Tiny:
    """``kind``: "bert" (head with bias), "llama" (head over positions), "causal" (no head; loss on each text's own second half)."""
    torch.manual_seed(seed)
    task = "CAUSAL_LM" if kind == "causal" else "SEQ_CLS"
    base = _base(kind).eval()
    model = get_peft_model(base, LoraConfig(task_type=task, r=r, target_modules="all-linear", lora_dropout=dropout)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
        if "lora_A" in name and freeze_a:
            parameter.requires_grad_(False)
    tokens = torch.randint(1, VOCABULARY, (ROWS, LENGTH))
    mask = (torch.arange(LENGTH) < torch.randint(4, LENGTH + 1, (ROWS, 1))).long()
    tokens = tokens * mask
    labels = torch.randint(3, (ROWS,))

    def classify(model: nn.Module, rows: Tensor) -> Tensor:
        return per_example_cross_entropy(model(input_ids=tokens[rows], attention_mask=mask[rows]).logits, labels[rows])

    def continue_text(model: nn.Module, rows: Tensor) -> Tensor:
        inner = model.get_base_model() if isinstance(model, PeftModel) else model
        hidden = inner.model(input_ids=tokens[rows], attention_mask=mask[rows]).last_hidden_state
        response = torch.arange(LENGTH) >= mask[rows].sum(1, keepdim=True) // 2
        example, position = torch.nonzero((response & mask[rows].bool())[:, 1:], as_tuple=True)
        losses = token_cross_entropy(hidden[example, position], inner.get_output_embeddings(), tokens[rows][example, position + 1])
        counts = torch.bincount(example, minlength=len(rows)).clamp(min=1)
        return torch.zeros(len(rows)).index_add(0, example, losses) / counts

    return Tiny(model, continue_text if kind == "causal" else classify)


@pytest.fixture
def tiny() -> Callable[..., Tiny]:
    return build


@pytest.fixture
def clipped_truth() -> Callable[..., dict[str, Tensor]]:
    """Sum over units of clipped gradients from single-example gradients, written as a loop."""

    def loop(alone: list[dict[str, Tensor]], unit_ids: list[int], bound: float, weights: list[float] | None = None) -> dict[str, Tensor]:
        total = {name: torch.zeros_like(value) for name, value in alone[0].items()}
        for unit in sorted(set(unit_ids)):
            rows = [row for row, other in enumerate(unit_ids) if other == unit]
            gradient = {name: sum(alone[row][name] for row in rows) for name in total}
            norm = sum(float(part.square().sum()) for part in gradient.values()) ** 0.5
            weight = 1.0 if weights is None else sum(weights[row] for row in rows) / len(rows)
            for name in total:
                total[name] += weight * min(1.0, bound / norm) * gradient[name]
        return total

    return loop
