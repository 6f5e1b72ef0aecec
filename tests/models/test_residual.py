"""A residual in the base's weights computes what the dense sum computes, goes without a trace, and comes out in one PEFT adapter."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from fedethos.aggregation import layers_of, residual_names
from fedethos.errors import FedethosError
from fedethos.job import Lora
from fedethos.models.adapter import attach_lora, named_adapter_parameters, save_adapter
from fedethos.models.base import weights_hash
from fedethos.models.residual import FoldedResidual

LORA = Lora(r=2, lora_alpha=6.0)  # scaling 3
IDS = torch.arange(1, 13).reshape(2, 6)


def base(kind: str) -> torch.nn.Module:
    torch.manual_seed(3)
    if kind == "bert":
        return BertForSequenceClassification(
            BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=50)
        ).eval()
    return GPT2ForSequenceClassification(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=32, pad_token_id=0)).eval()


def adapted(kind: str) -> PeftModel:
    model = attach_lora(base(kind), LORA, seed=1, freeze_a=False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in named_adapter_parameters(model).items():
            if ".lora_B." in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def residual(model: PeftModel, rank: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    parameters, arrays = named_adapter_parameters(model), {}
    for layer in layers_of(parameters):
        d_out, d_in = parameters[f"{layer}.lora_B.weight"].shape[0], parameters[f"{layer}.lora_A.weight"].shape[1]
        for name, shape in zip(residual_names(layer), ((d_out, rank), (rank, d_in)), strict=True):
            arrays[name] = (0.2 * rng.normal(size=shape)).astype(np.float32)
    return arrays


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.numpy()


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_folding_adds_the_scaled_product_and_unfolding_leaves_the_same_bytes(kind: str) -> None:
    model = adapted(kind)
    before, plain, extra = weights_hash(model), logits(model), residual(model)
    layer = layers_of(named_adapter_parameters(model))[0]
    own = model.get_submodule(layer).base_layer.weight.detach().numpy().copy()
    fold = FoldedResidual(model)
    for _ in range(2):  # a second one replaces the first
        fold.fold(extra)
    moved = model.get_submodule(layer).base_layer.weight.detach().numpy() - own
    name_b, name_a = residual_names(layer)
    product = 3.0 * extra[name_b].astype(np.float64) @ extra[name_a].astype(np.float64)
    np.testing.assert_allclose(moved, product.T if kind == "gpt2" else product, atol=1e-5)
    assert np.abs(logits(model) - plain).max() > 1e-3
    fold.unfold()
    assert weights_hash(model) == before
    np.testing.assert_array_equal(logits(model), plain)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_plain_peft_loads_adapter_and_residual_as_one(kind: str, tmp_path: Path) -> None:
    model = adapted(kind)
    extra = residual(model)
    some = dict(list(extra.items())[2:])  # one layer without a residual keeps its rank
    FoldedResidual(model).fold(some)
    save_adapter(tmp_path, model, some)
    loaded = PeftModel.from_pretrained(base(kind), tmp_path).eval()
    np.testing.assert_allclose(logits(loaded), logits(model), atol=1e-5)
    ranks = {parameter.shape[0] for name, parameter in loaded.named_parameters() if "lora_A" in name}
    assert ranks == {2, 5}  # 2 + 3 where there is one


def spoil(extra: dict[str, np.ndarray], how: str) -> dict[str, np.ndarray]:
    name = sorted(extra)[0]
    array = extra[name]
    return {
        "half a pair": {key: value for key, value in extra.items() if key != name},
        "an unknown layer": {**extra, name.replace("query", "pooler"): array},
        "another rank": {**extra, name: array[:2]},
        "another width": {**extra, name: np.hstack([array, array])},
        "not a matrix": {**extra, name: array.ravel()},
        "not float32": {**extra, name: array.astype(np.float64)},
        "not finite": {**extra, name: np.full_like(array, np.nan)},
    }[how]


@pytest.mark.parametrize(
    "how", ["half a pair", "an unknown layer", "another rank", "another width", "not a matrix", "not float32", "not finite"]
)
def test_a_residual_that_does_not_fit_changes_nothing(how: str) -> None:
    model = adapted("bert")
    extra = {name: array for name, array in residual(model).items() if "query" in name}
    fold = FoldedResidual(model)
    before = weights_hash(model)
    with pytest.raises(FedethosError, match="SEC-645"):
        fold.fold(spoil(extra, how))
    assert weights_hash(model) == before


def test_a_rank_beyond_the_layers_own_is_refused() -> None:
    model = adapted("bert")
    with pytest.raises(FedethosError, match="SEC-645"):
        FoldedResidual(model).fold(residual(model, rank=25))
