"""Cached lower layers: the same logits and gradients as the whole model, and no trace on the disk."""

from __future__ import annotations

import os
import shutil
import stat
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from fedethos.data.tokens import TokenTable, tokenize
from fedethos.errors import FedethosError
from fedethos.job import Lora
from fedethos.models import prefix as prefix_module
from fedethos.models.adapter import attach_lora, named_adapter_parameters
from fedethos.models.base import load_base
from fedethos.models.prefix import build_cache, tail, tail_start

Build = Callable[[str], PreTrainedModel]
Shake = Callable[[PeftModel], PeftModel]
CUT = ("bert", "roberta", "distilbert", "llama")


def loss_and_gradients(model: PeftModel, module: nn.Module, **batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits and the gradients of all trainable parameters, by adapter name."""
    output = module(**batch)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    labels = torch.arange(len(logits)) % 2
    named = {name: p for name, p in named_adapter_parameters(model).items() if p.requires_grad}
    gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), list(named.values()))
    return logits, dict(zip(named, gradients, strict=True))


def assert_same(model: PeftModel, table: TokenTable, folder: Path) -> None:
    indices = np.random.default_rng(1).permutation(len(table))[:9]
    input_ids, mask = table.batch(indices)
    with build_cache(model, table, folder=folder, batch_tokens=64) as cache:
        hidden, cached_mask = cache.batch(indices)
        assert torch.equal(mask, cached_mask)
        assert np.array_equal(cache.lengths, table.lengths)
        assert hidden.dtype == torch.float32
        assert not hidden[mask == 0].any()
        logits, gradients = loss_and_gradients(model, tail(model), inputs_embeds=hidden, attention_mask=cached_mask)
    whole_logits, whole_gradients = loss_and_gradients(model, model, input_ids=input_ids, attention_mask=mask)
    torch.testing.assert_close(logits, whole_logits, rtol=1e-5, atol=1e-5)
    for name, gradient in whole_gradients.items():
        assert gradient.any()
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [[1], [2, 3], [3]])
@pytest.mark.parametrize("name", CUT)
def test_same_logits_and_gradients(name: str, layers: list[int], tiny: Build, shake: Shake, table: TokenTable, tmp_path: Path) -> None:
    model = shake(attach_lora(tiny(name), Lora(layers_to_transform=layers), seed=1, freeze_a=False))
    assert tail_start(model) == layers[0]
    assert_same(model, table, tmp_path)


@pytest.mark.parametrize("freeze_a", [False, True])
def test_same_on_the_real_encoder(minilm: Path, freeze_a: bool, shake: Shake, tmp_path: Path) -> None:
    loaded = load_base(minilm, num_labels=2, sha256=None)
    model = shake(attach_lora(loaded.model, Lora(layers_to_transform=[5]), seed=1, freeze_a=freeze_a))
    texts = [" ".join(["39 years old, private, bachelors"] * (1 + n % 3)) + ", sales" * n for n in range(11)]
    assert_same(model, tokenize(texts, loaded.tokenizer, 64), tmp_path)


def test_only_the_head_trains_when_only_the_pooler_is_adapted(tiny: Build, shake: Shake, table: TokenTable, tmp_path: Path) -> None:
    model = shake(attach_lora(tiny("bert"), Lora(target_modules=["pooler.dense"]), seed=1, freeze_a=False))
    assert tail_start(model) == 4
    assert_same(model, table, tmp_path)


def test_tail_shares_the_parameters_and_keeps_its_changes_to_itself(tiny: Build, table: TokenTable) -> None:
    model = attach_lora(tiny("bert"), Lora(layers_to_transform=[3]), seed=1, freeze_a=True)
    names = list(model.state_dict())
    part = tail(model)
    assert {id(p) for p in part.parameters()} <= {id(p) for p in model.parameters()}
    assert {id(p) for p in part.parameters() if p.requires_grad} == {id(p) for p in model.parameters() if p.requires_grad}
    for module in part.modules():
        if not isinstance(module, PreTrainedModel) and not list(module.children()):
            assert module in list(model.modules()) or not list(module.parameters())
    part.classifier.register_forward_hook(lambda *_: pytest.fail("a hook on the tail ran in the whole model"))
    input_ids, mask = table.batch(np.arange(2))
    model(input_ids=input_ids, attention_mask=mask)
    assert list(model.state_dict()) == names


def test_a_written_adapter_shows_in_an_older_tail(tiny: Build, shake: Shake, table: TokenTable, tmp_path: Path) -> None:
    model = attach_lora(tiny("llama"), Lora(layers_to_transform=[3]), seed=1, freeze_a=False)
    part, cache = tail(model), build_cache(model, table, folder=tmp_path)
    shake(model)
    hidden, mask = cache.batch(np.arange(5))
    input_ids, _ = table.batch(np.arange(5))
    whole = model(input_ids=input_ids, attention_mask=mask).logits
    torch.testing.assert_close(part(inputs_embeds=hidden, attention_mask=mask), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "lora"),
    [("bert", Lora()), ("bert", Lora(layers_to_transform=[0, 3])), ("gpt2", Lora(layers_to_transform=[3]))],
)
def test_nothing_to_cache(name: str, lora: Lora, tiny: Build, table: TokenTable, tmp_path: Path) -> None:
    model = attach_lora(tiny(name), lora, seed=1, freeze_a=False)
    assert tail_start(model) == 0
    with pytest.raises(FedethosError, match="MODEL-461"):
        tail(model)
    with pytest.raises(FedethosError, match="MODEL-461"):
        build_cache(model, table, folder=tmp_path)


def test_trainable_or_loaded_parts_below_are_never_cached(tiny: Build) -> None:
    model = attach_lora(tiny("bert"), Lora(layers_to_transform=[3]), seed=1, freeze_a=False)
    model.requires_grad_(False)
    assert tail_start(model) == 3, "an adapter that does not train now is still no part of the base"
    model.get_base_model().bert.encoder.layer[1].output.LayerNorm.weight.requires_grad_(True)
    assert tail_start(model) == 1
    model.get_base_model().bert.embeddings.word_embeddings.weight.requires_grad_(True)
    assert tail_start(model) == 0


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_batch_size_does_not_change_the_cache(batch_tokens: int, tiny: Build, table: TokenTable, tmp_path: Path) -> None:
    model = attach_lora(tiny("bert"), Lora(layers_to_transform=[3]), seed=1, freeze_a=False)
    everything = np.arange(len(table))
    reference, _ = build_cache(model, table, folder=tmp_path).batch(everything)
    cached, _ = build_cache(model, table, folder=tmp_path, batch_tokens=batch_tokens).batch(everything)
    torch.testing.assert_close(cached, reference, rtol=1e-5, atol=1e-5)


def test_float16_is_near_and_half_the_size(tiny: Build, table: TokenTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach_lora(tiny("bert"), Lora(layers_to_transform=[3]), seed=1, freeze_a=False)
    sizes = []
    monkeypatch.setattr(prefix_module, "_reserve", lambda descriptor, size: (sizes.append(size), os.ftruncate(descriptor, size)))
    full, _ = build_cache(model, table, folder=tmp_path).batch(np.arange(4))
    half, _ = build_cache(model, table, folder=tmp_path, dtype=np.dtype("float16")).batch(np.arange(4))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=1e-3, atol=1e-3)
    assert sizes == [int(table.offsets[-1]) * 32 * 4, int(table.offsets[-1]) * 32 * 2]


def test_values_beyond_float16_are_refused(tiny: Build, table: TokenTable, tmp_path: Path) -> None:
    base = tiny("llama")
    with torch.no_grad():
        base.model.embed_tokens.weight.mul_(1e8)
    model = attach_lora(base, Lora(layers_to_transform=[3]), seed=1, freeze_a=False)
    build_cache(model, table, folder=tmp_path)
    with pytest.raises(FedethosError, match="MODEL-463"):
        build_cache(model, table, folder=tmp_path, dtype=np.float16)


def test_a_cut_that_computes_something_else_is_refused(
    tiny: Build, shake: Shake, table: TokenTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shake(attach_lora(tiny("bert"), Lora(layers_to_transform=[2]), seed=1, freeze_a=False))
    whole = prefix_module.FrozenPrefix.forward
    monkeypatch.setattr(prefix_module.FrozenPrefix, "forward", lambda self, ids, mask: whole(self, ids, torch.ones_like(mask)))
    with pytest.raises(FedethosError, match="MODEL-464"):
        build_cache(model, table, folder=tmp_path)


def test_no_file_has_a_name_while_the_cache_is_open(
    tiny: Build, table: TokenTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attach_lora(tiny("bert"), Lora(layers_to_transform=[3]), seed=1, freeze_a=False)
    modes, mapped = [], torch.from_file

    def watch(path: str, **options: object) -> torch.Tensor:
        modes.extend(stat.S_IMODE(place.stat().st_mode) for place in (Path(path), Path(path).parent))
        assert Path(path).read_bytes().strip(b"\0") == b"", "nothing is written before the name is gone"
        return mapped(path, **options)

    monkeypatch.setattr(torch, "from_file", watch)
    folder = tmp_path / "scratch"
    cache = build_cache(model, table, folder=folder)
    assert modes == [0o600, 0o700]
    assert list(folder.iterdir()) == []
    cache.batch(np.arange(3))
    cache.close()
    cache.close()
    with pytest.raises(AttributeError):
        cache.batch(np.arange(3))


def test_full_disk_is_seen_before_computing(tiny: Build, table: TokenTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attach_lora(tiny("bert"), Lora(layers_to_transform=[3]), seed=1, freeze_a=False)
    monkeypatch.setattr(prefix_module.FrozenPrefix, "forward", lambda *_: pytest.fail("computed"))

    def full(descriptor: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as reserved:
        reserved.setattr(prefix_module, "_reserve", full)
        with pytest.raises(FedethosError, match="MODEL-462"):
            build_cache(model, table, folder=tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    with pytest.raises(FedethosError, match="MODEL-462"):
        build_cache(model, table, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_records_and_empty_batches(tiny: Build, table: TokenTable, tmp_path: Path) -> None:
    model = attach_lora(tiny("bert"), Lora(layers_to_transform=[3]), seed=1, freeze_a=False)
    nobody = np.array([], dtype=np.int64)
    for records in (table, TokenTable(table.tokens[:0], table.offsets[:1], 0)):
        hidden, mask = build_cache(model, records, folder=tmp_path).batch(nobody)
        assert hidden.shape == (0, 0, 32)
        assert mask.shape == (0, 0)
