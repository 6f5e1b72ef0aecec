"""Loading a base model: offline, complete, the same everywhere."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import PreTrainedModel

from fedethos.errors import FedethosError
from fedethos.models.assets import ASSETS
from fedethos.models.base import load_base, weights_hash

Build = Callable[[str], PreTrainedModel]


@pytest.fixture
def folder(tiny: Build, minilm: Path, tmp_path: Path) -> Path:
    """A tiny random BERT without a head, saved with a real tokenizer."""
    folder = tmp_path / "tiny"
    tiny("bert").bert.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm / name, folder)
    return folder


def test_the_real_encoder(minilm: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("network"))
    loaded = load_base(minilm, num_labels=2, sha256=ASSETS["minilm"].sha256)
    assert loaded.model.config.num_labels == 2
    assert loaded.model.name_or_path == "asset:minilm"
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer("income")["input_ids"] == [101, 3318, 102]  # BERT's own vocabulary
    assert capfd.readouterr() == ("", ""), "no chatter about the new head"


def test_head_depends_on_the_seed_alone(folder: Path) -> None:
    torch.manual_seed(1)
    first = load_base(folder, num_labels=2, sha256=None, seed=5).model
    state = torch.get_rng_state()
    torch.rand(3)
    again = load_base(folder, num_labels=2, sha256=None, seed=5).model
    other = load_base(folder, num_labels=2, sha256=None, seed=6).model
    assert weights_hash(first) == weights_hash(again)
    assert weights_hash(first) != weights_hash(other)
    assert torch.equal(first.bert.pooler.dense.weight, other.bert.pooler.dense.weight)
    torch.set_rng_state(state)
    drawn = torch.rand(3)
    torch.set_rng_state(state)
    load_base(folder, num_labels=2, sha256=None)
    assert torch.equal(drawn, torch.rand(3)), "the caller's random numbers are left alone"


def test_another_hash_is_refused(folder: Path) -> None:
    with pytest.raises(FedethosError, match="SEC-601"):
        load_base(folder, num_labels=2, sha256="0" * 64)


def test_a_body_with_missing_weights_is_refused(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights.pop("pooler.dense.weight")
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FedethosError, match=r"MODEL-409 .*pooler.dense.weight"):
        load_base(folder, num_labels=2, sha256=None)


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["pooler.dense.bias"][3] = torch.nan
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FedethosError, match="MODEL-415"):
        load_base(folder, num_labels=2, sha256=None)


@pytest.mark.parametrize("damage", ["truncated", "architecture", "labels"])
def test_what_the_library_cannot_load(folder: Path, tiny: Build, damage: str) -> None:
    if damage == "truncated":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    elif damage == "architecture":
        (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    else:
        tiny("bert").save_pretrained(folder)  # has a head for two labels
    with pytest.raises(FedethosError, match="MODEL-408"):
        load_base(folder, num_labels=3, sha256=None)


def test_pickles_beside_the_weights_are_not_opened(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"would fail if opened")
    load_base(folder, num_labels=2, sha256=None)


def test_a_pretrained_head_is_kept(folder: Path, tiny: Build) -> None:
    whole = tiny("bert")
    whole.save_pretrained(folder)
    assert weights_hash(load_base(folder, num_labels=2, sha256=None).model) == weights_hash(whole)
