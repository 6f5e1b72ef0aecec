"""The core between fixed factors, against dense algebra, and under both clipping engines."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import BertConfig, BertForSequenceClassification

from fedethos.aggregation import core_name, layers_of, lora_names
from fedethos.errors import FedethosError
from fedethos.job import Lora
from fedethos.models.adapter import attach_lora, frozen_names, named_adapter_parameters, save_adapter, trainable_names
from fedethos.models.core import put_core_between
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.self_check import check_engine, synthetic_classification

IDS = torch.arange(1, 13).reshape(2, 6)


def base() -> BertForSequenceClassification:
    torch.manual_seed(3)
    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50)
    return BertForSequenceClassification(config).eval()


def adapted(r: int = 4) -> PeftModel:
    model = attach_lora(base(), Lora(r=r, lora_alpha=3.0 * r), seed=1, freeze_a=False)
    put_core_between(model, seed=1)
    return model


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.numpy()


def test_it_starts_as_the_base_model_and_only_cores_and_head_train() -> None:
    model, plain = adapted(), base()
    np.testing.assert_array_equal(logits(model), logits(plain))
    parameters = named_adapter_parameters(model)
    layers = layers_of(parameters)
    cores = {core_name(layer) for layer in layers}
    assert cores < set(trainable_names(model)) and not any("lora_" in name for name in set(trainable_names(model)) - cores)
    assert set(frozen_names(model)) == {name for layer in layers for name in lora_names(layer)}
    for layer in layers:
        b, a = (parameters[name].detach().double().numpy() for name in lora_names(layer))
        np.testing.assert_allclose(a @ a.T, np.eye(4), atol=1e-6)
        np.testing.assert_allclose(b.T @ b, np.eye(4), atol=1e-6)


def test_the_update_is_b_r_a_and_plain_peft_loads_it(tmp_path: Path) -> None:
    model = adapted()
    parameters = named_adapter_parameters(model)
    dense = base()
    with torch.no_grad():
        for layer in layers_of(parameters):
            core = parameters[core_name(layer)]
            core.copy_(0.1 * torch.randn(core.shape, generator=torch.Generator().manual_seed(len(layer))))
            b, a = (parameters[name] for name in lora_names(layer))
            dense.get_submodule(layer.removeprefix("base_model.model.")).weight.add_(3.0 * b @ core @ a)
    assert np.abs(logits(dense) - logits(base())).max() > 1e-3
    np.testing.assert_allclose(logits(model), logits(dense), atol=1e-5)
    save_adapter(tmp_path, model)
    np.testing.assert_allclose(logits(PeftModel.from_pretrained(base(), tmp_path).eval()), logits(dense), atol=1e-5)


@pytest.mark.parametrize("engine", [FusedEngine, OpacusEngine])
def test_both_engines_bound_the_cores_as_plain_gradients_say(engine: type) -> None:
    model = adapted()
    parameters = {name: named_adapter_parameters(model)[name] for name in trainable_names(model)}
    check_engine(partial(engine), model, parameters, synthetic_classification(50, 2))


def test_a_trained_core_that_is_not_handed_over_is_refused() -> None:
    model = adapted()
    named = named_adapter_parameters(model)
    parameters = {name: named[name] for name in trainable_names(model)[1:]}
    with pytest.raises(FedethosError, match="PRIV-320"):
        FusedEngine(1.0).attach(model, parameters)


def test_a_rank_beyond_a_layer_is_refused() -> None:
    with pytest.raises(FedethosError, match="CFG-293"):
        adapted(r=17)
