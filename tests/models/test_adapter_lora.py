"""LoRA adapters: the real encoder through plain PEFT and back, the guards on every array, and a base that never changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from fedethos.errors import FedethosError
from fedethos.job import Lora
from fedethos.models.adapter import (
    attach_lora,
    frozen_names,
    named_adapter_parameters,
    save_adapter,
    trainable_names,
)
from fedethos.models.assets import cache_folder
from fedethos.models.base import load_base, weights_hash
from fedethos.models.tensors import read_arrays, write_arrays

Build = Callable[[str], PreTrainedModel]
Shake = Callable[[PeftModel], PeftModel]
LAYER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
ALL = ("bert", "roberta", "distilbert", "llama", "gpt2")


def arrays_of(model: PeftModel) -> dict[str, np.ndarray]:
    return read_arrays(named_adapter_parameters(model), named_adapter_parameters(model))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_saved_adapter_gives_the_same_logits_with_plain_peft(minilm: Path, tmp_path: Path, shake: Shake) -> None:
    loaded = load_base(minilm, num_labels=2, sha256=None)
    model = shake(attach_lora(loaded.model, Lora(layers_to_transform=[4, 5]), seed=1, freeze_a=False))
    save_adapter(tmp_path, model)

    batch = AutoTokenizer.from_pretrained(minilm)(["a short text", "another text, somewhat longer"], padding=True, return_tensors="pt")
    plain = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(minilm), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(plain(**batch).logits, model(**batch).logits)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = (tmp_path / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] == "asset:minilm"
    for place in (minilm, cache_folder(), Path.home(), tmp_path):
        assert str(place) not in config
    plain.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.safetensors").exists(), "a user can save it again with PEFT"


@pytest.mark.parametrize("name", ALL)
def test_saved_bytes_are_the_same_for_the_same_adapter(name: str, tiny: Build, shake: Shake, tmp_path: Path) -> None:
    for run in ("one", "two"):
        save_adapter(tmp_path / run, shake(attach_lora(tiny(name), Lora(r=2), seed=1, freeze_a=False)))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    again = PeftModel.from_pretrained(tiny(name), tmp_path / "one")
    assert {name: array.tolist() for name, array in arrays_of(again).items()} == {
        name: array.tolist() for name, array in arrays_of(shake(attach_lora(tiny(name), Lora(r=2), seed=1, freeze_a=False))).items()
    }


def test_adapter_depends_on_the_seed_alone(tiny: Build) -> None:
    torch.manual_seed(1)
    first = arrays_of(attach_lora(tiny("bert"), Lora(), seed=5, freeze_a=True))
    torch.rand(3)
    again = arrays_of(attach_lora(tiny("bert"), Lora(), seed=5, freeze_a=True))
    other = arrays_of(attach_lora(tiny("bert"), Lora(), seed=6, freeze_a=True))
    for name, array in first.items():
        assert np.array_equal(array, again[name])
        assert np.array_equal(array, other[name]) == (".lora_A." not in name)
        assert ".lora_B." not in name or not array.any()


def test_attaching_leaves_the_callers_random_numbers_alone(tiny: Build) -> None:
    base = tiny("bert")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    attach_lora(base, Lora(lora_dropout=0.5), seed=5, freeze_a=False)
    assert torch.equal(torch.rand(3), expected)


def test_ffa_freezes_a_and_nothing_else(tiny: Build) -> None:
    model = attach_lora(tiny("bert"), Lora(), seed=1, freeze_a=True)
    assert frozen_names(model) == sorted(name for name in named_adapter_parameters(model) if ".lora_A." in name)
    assert set(trainable_names(model)) == set(named_adapter_parameters(model)) - set(frozen_names(model))
    live = named_adapter_parameters(model)
    assert {id(live[name]) for name in trainable_names(model)} == {id(p) for p in model.parameters() if p.requires_grad}
    assert frozen_names(attach_lora(tiny("bert"), Lora(), seed=1, freeze_a=False)) == []


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        (Lora(layers_to_transform=[3]), {f"encoder.layer.3.{name}" for name in LAYER}),
        (
            Lora(target_modules=["query"], layers_to_transform=[1, 3]),
            {"encoder.layer.1.attention.self.query", "encoder.layer.3.attention.self.query"},
        ),
        (
            Lora(target_modules=["output.dense", "pooler.dense"]),
            {"pooler.dense"} | {f"encoder.layer.{i}.{name}" for i in range(4) for name in LAYER if name.endswith("output.dense")},
        ),
    ],
)
def test_chosen_modules_get_adapters(lora: Lora, expected: set[str], tiny: Build) -> None:
    model = attach_lora(tiny("bert"), lora, seed=1, freeze_a=False)
    adapted = {
        name.removeprefix("base_model.model.bert.").split(".lora_A")[0] for name in named_adapter_parameters(model) if "lora_A" in name
    }
    assert adapted == expected
    assert {name for name in trainable_names(model) if "lora" not in name} == {
        "base_model.model.classifier.bias",
        "base_model.model.classifier.weight",
    }


@pytest.mark.parametrize("name", ALL)
def test_all_linear_is_what_peft_takes_and_the_whole_head_trains(name: str, tiny: Build) -> None:
    base = tiny(name)
    body = getattr(base, base.base_model_prefix)
    linear = sum(isinstance(part, nn.Linear) or type(part).__name__ == "Conv1D" for part in body.modules())
    head = {n for n, _ in base.named_parameters() if not n.startswith(base.base_model_prefix)}
    model = attach_lora(base, Lora(), seed=1, freeze_a=False)
    assert sum(".lora_A." in name for name in trainable_names(model)) == linear
    assert {n.removeprefix("base_model.model.") for n in trainable_names(model) if "lora_" not in n} == head


@pytest.mark.parametrize(
    ("lora", "code"),
    [
        (Lora(target_modules=["query", "nonsense"]), "MODEL-451"),
        (Lora(target_modules=["word_embeddings"]), "MODEL-451"),
        (Lora(target_modules=["classifier"]), "MODEL-451"),
        (Lora(target_modules=[]), "MODEL-451"),
        (Lora(layers_to_transform=[]), "MODEL-451"),
        (Lora(layers_to_transform=[3, 4]), "MODEL-452"),
        (Lora(target_modules=["pooler.dense"], layers_to_transform=[3]), "MODEL-452"),
    ],
)
def test_choices_that_fit_nothing(lora: Lora, code: str, tiny: Build) -> None:
    with pytest.raises(FedethosError, match=code):
        attach_lora(tiny("bert"), lora, seed=1, freeze_a=False)


@pytest.mark.parametrize("name", ALL)
def test_train_mode_changes_nothing_but_loras_own_dropout(name: str, tiny: Build, shake: Shake) -> None:
    ids = torch.arange(2, 22).view(2, 10)
    still = shake(attach_lora(tiny(name), Lora(), seed=1, freeze_a=False))
    assert not still.training
    assert torch.allclose(still.train()(input_ids=ids).logits, still.eval()(input_ids=ids).logits, atol=1e-6)
    moving = shake(attach_lora(tiny(name), Lora(lora_dropout=0.5), seed=1, freeze_a=False))
    assert not torch.allclose(moving.train()(input_ids=ids).logits, moving.eval()(input_ids=ids).logits, atol=1e-3)


def test_a_base_that_cannot_be_stilled_is_refused(tiny: Build) -> None:
    class Shaky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(x, 0.5, self.training)

    base = tiny("bert")
    base.bert.pooler.activation = Shaky()
    with pytest.raises(FedethosError, match="MODEL-453"):
        attach_lora(base, Lora(), seed=1, freeze_a=False)


@pytest.mark.parametrize("freeze_a", [False, True])
def test_training_never_changes_the_base(tiny: Build, freeze_a: bool) -> None:
    base = tiny("bert")
    before = weights_hash(base)
    model = attach_lora(base, Lora(), seed=1, freeze_a=freeze_a).train()
    assert weights_hash(model) == before
    start = arrays_of(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(input_ids=torch.arange(2, 22).view(2, 10), labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
    assert weights_hash(model) == before
    moved = {name for name, array in arrays_of(model).items() if not np.array_equal(array, start[name])}
    assert moved == set(trainable_names(model))
    with torch.no_grad():
        model.get_base_model().bert.pooler.dense.base_layer.weight[0, 0] += 1e-3
    assert weights_hash(model) != before


def test_arrays_go_in_and_come_out(tiny: Build) -> None:
    model = attach_lora(tiny("bert"), Lora(), seed=1, freeze_a=True)
    for names in (trainable_names(model), frozen_names(model)):
        sent = {
            name: np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
            for name, array in read_arrays(named_adapter_parameters(model), names).items()
        }
        write_arrays(named_adapter_parameters(model), sent)
        received = read_arrays(named_adapter_parameters(model), names)
        assert list(received) == names
        assert all(np.array_equal(sent[name], received[name]) and received[name].dtype == np.float32 for name in names)
    received[names[0]][:] = 0
    assert np.array_equal(read_arrays(named_adapter_parameters(model), names)[names[0]], sent[names[0]]), "copies, not views"
    with pytest.raises(FedethosError, match="MODEL-454"):
        read_arrays(named_adapter_parameters(model), ["base_model.model.bert.pooler.dense.weight"])


def _refusals() -> list[tuple[str, Callable[[dict[str, np.ndarray], str], object]]]:
    return [
        ("MODEL-454", lambda arrays, name: arrays.pop(name)),
        ("MODEL-454", lambda arrays, name: arrays.update(extra=arrays[name])),
        ("MODEL-454", lambda arrays, name: arrays.clear()),
        ("MODEL-455", lambda arrays, name: arrays.update({name: arrays[name][..., None]})),
        ("MODEL-455", lambda arrays, name: arrays.update({name: arrays[name].reshape(-1)[:1]})),
        ("MODEL-456", lambda arrays, name: arrays.update({name: arrays[name].astype(np.float64)})),
        ("MODEL-456", lambda arrays, name: arrays.update({name: arrays[name].astype(np.float16)})),
        ("MODEL-457", lambda arrays, name: arrays[name].reshape(-1).__setitem__(0, np.nan)),
        ("MODEL-457", lambda arrays, name: arrays[name].reshape(-1).__setitem__(-1, -np.inf)),
    ]


@pytest.fixture(scope="module")
def adapted() -> PeftModel:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, pad_token_id=0)
    return attach_lora(LlamaForSequenceClassification(config), Lora(r=1), seed=1, freeze_a=False)


@given(which=st.integers(0, 100), case=st.sampled_from(_refusals()))
def test_wrong_arrays_are_refused_and_nothing_is_written(
    adapted: PeftModel, which: int, case: tuple[str, Callable[[dict[str, np.ndarray], str], object]]
) -> None:
    code, spoil = case
    before = arrays_of(adapted)
    arrays = {name: array + 1 for name, array in before.items()}
    spoil(arrays, sorted(arrays)[which % len(arrays)])
    with pytest.raises(FedethosError) as caught:
        write_arrays(named_adapter_parameters(adapted), arrays)
    assert caught.value.code == code
    assert all(np.array_equal(array, before[name]) for name, array in arrays_of(adapted).items())
