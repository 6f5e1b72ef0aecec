"""``engine: opacus`` on real LoRA modules, against a loop over single examples."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from fedethos.errors import FedethosError
from fedethos.job import Lora
from fedethos.losses import per_example_cross_entropy
from fedethos.models.adapter import attach_lora, named_adapter_parameters, trainable_names
from fedethos.privacy.opacus_engine import OpacusEngine

C = 1.15  # between the norms of the single examples below


def tiny_model(*, freeze_a: bool) -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50, num_labels=2)
    model = attach_lora(BertForSequenceClassification(config), Lora(r=3, lora_alpha=6), seed=1, freeze_a=freeze_a)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    named = named_adapter_parameters(model)
    return {name: named[name] for name in trainable_names(model)}


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(size)
    ids = torch.randint(1, 50, (size, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 4:] = 0
    return ids, mask, torch.randint(0, 2, (size,), generator=generator)


def losses(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return per_example_cross_entropy(model(input_ids=ids, attention_mask=mask).logits, labels)


@pytest.mark.parametrize("freeze_a", [True, False])
@pytest.mark.parametrize("units", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 2]])
def test_equals_a_loop_over_single_examples(freeze_a: bool, units: list[int]) -> None:
    model = tiny_model(freeze_a=freeze_a)
    parameters = trainable(model)
    ids, mask, labels = batch(6)

    per_unit = {unit: {name: torch.zeros_like(parameter) for name, parameter in parameters.items()} for unit in units}
    for row, unit in enumerate(units):
        gradients = torch.autograd.grad(losses(model, ids[row, None], mask[row, None], labels[row, None]).sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            per_unit[unit][name] += gradient
    norms = {unit: torch.sqrt(sum(part.double().square().sum() for part in parts.values())) for unit, parts in per_unit.items()}
    assert max(norms.values()) > C
    assert min(norms.values()) < C or len(set(units)) < 6

    engine = OpacusEngine(C)
    engine.attach(model, parameters)
    engine.reset()
    for part in (slice(0, 2), slice(2, 6)) if len(set(units)) < 6 else (slice(0, 1), slice(1, 6)):
        engine.backward(losses(model, ids[part], mask[part], labels[part]), torch.tensor(units[part]))
    sums = engine.clipped_sum()
    for name in parameters:
        expected = sum(parts[name].double() * min(1.0, C / norms[unit]) for unit, parts in per_unit.items())
        np.testing.assert_allclose(sums[name].numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)
    engine.detach()


def test_an_empty_step_sums_to_zero_and_the_next_one_is_clean() -> None:
    model = tiny_model(freeze_a=True)
    engine = OpacusEngine(C)
    engine.attach(model, trainable(model))
    engine.reset()
    assert all(not tensor.any() for tensor in engine.clipped_sum().values())
    engine.backward(losses(model, *batch(3)), torch.arange(3))
    assert any(tensor.any() for tensor in engine.clipped_sum().values())
    engine.reset()
    assert all(not tensor.any() for tensor in engine.clipped_sum().values())


def test_detach_leaves_no_hook_and_no_mode_behind() -> None:
    model = tiny_model(freeze_a=True)
    before = {name: module.training for name, module in model.named_modules()}
    for _ in range(2):
        engine = OpacusEngine(C)
        engine.attach(model, trainable(model))
        engine.detach()
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_a_trainable_parameter_outside_is_refused() -> None:
    model = tiny_model(freeze_a=True)
    parameters = trainable(model)
    parameters.popitem()
    with pytest.raises(FedethosError, match="PRIV-320"):
        OpacusEngine(C).attach(model, parameters)


def test_a_parameter_that_the_loss_does_not_reach_is_refused() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)})
    engine = OpacusEngine(C)
    engine.attach(model, dict(model.named_parameters()))
    with pytest.raises(FedethosError, match="PRIV-321"):
        engine.backward(model["used"](torch.ones(2, 3)).sum(1), torch.arange(2))


def test_batch_normalisation_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.raises(FedethosError, match="PRIV-318"):
        OpacusEngine(C).attach(model, dict(model.named_parameters()))
