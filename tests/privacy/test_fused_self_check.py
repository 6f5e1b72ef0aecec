"""The start-up check passes right engines and catches wrong ones."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from fedethos.errors import FedethosError
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.self_check import check_engine, synthetic_classification


def fresh(layers: int = 2, **options: object) -> nn.Module:
    """As at the start of training: B is zero."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24)
    return get_peft_model(
        BertForSequenceClassification(config).eval(), LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", **options)
    )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("make_engine", [FusedEngine, OpacusEngine])
def test_passes_a_right_engine_and_changes_nothing(make_engine):
    model = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_engine(make_engine, model, trainable(model), synthetic_classification(50, 2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


class ForgetsOneTensor(FusedEngine):
    def clipped_sum(self):
        sums = super().clipped_sum()
        next(iter(sums.values())).zero_()
        return sums


class NeverClips(FusedEngine):
    def __init__(self, max_grad_norm: float) -> None:
        super().__init__(1e12)


class ClipsTheBatch(FusedEngine):
    """The classic mistake: all rows as one unit."""

    def backward(self, per_example_loss, unit_ids, weights=None):
        super().backward(per_example_loss, torch.zeros_like(unit_ids), weights)


class CouplesTheBatch(FusedEngine):
    def backward(self, per_example_loss, unit_ids, weights=None):
        super().backward(per_example_loss * per_example_loss.mean(), unit_ids, weights)


@pytest.mark.parametrize("wrong", [ForgetsOneTensor, NeverClips, ClipsTheBatch, CouplesTheBatch])
def test_catches_a_wrong_engine(wrong):
    model = fresh()
    with pytest.raises(FedethosError, match="PRIV-328"):
        check_engine(wrong, model, trainable(model), synthetic_classification(50, 2))


def test_names_a_tensor_that_does_not_train():
    model = fresh()
    model.base_model.model.bert.pooler.forward = lambda hidden: hidden[:, 0]  # the loss no longer reaches its adapter
    with pytest.raises(FedethosError, match=r"PRIV-328 .*pooler"):
        check_engine(FusedEngine, model, trainable(model), synthetic_classification(50, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_catches_a_loss_that_couples_records(dtype):
    model = fresh()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    plain = synthetic_classification(50, 2)

    def contrastive(model, rows):
        losses = plain(model, rows)
        return losses * losses.mean()

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        check_engine(FusedEngine, model, trainable(model), plain)
        with pytest.raises(FedethosError, match="depends on the other records"):
            check_engine(FusedEngine, model, trainable(model), contrastive)
