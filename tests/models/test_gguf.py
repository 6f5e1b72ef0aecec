"""GGUF to safetensors: a small file written with llama.cpp's own writer must come out as the model that it holds."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fedethos.errors import FedethosError
from fedethos.job import Model
from fedethos.models import assets
from fedethos.models.content import content_hash
from fedethos.models.gguf import convert_gguf
from fedethos.models.language_base import load_language_base

HEADS, KEYS, WIDTH = 4, 2, 32
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def model(tiny_language_base: Path) -> LlamaForCausalLM:
    torch.manual_seed(3)
    size = len(AutoTokenizer.from_pretrained(tiny_language_base))
    config = LlamaConfig(
        vocab_size=size, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, num_key_value_heads=KEYS, intermediate_size=64,
        max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write(path: Path, model: LlamaForCausalLM, tokenizer_folder: Path, *, architecture: str = "llama", quantise: bool = False) -> None:
    """A GGUF file of ``model``: llama.cpp's names, its order of rotary rows, F32 or Q8_0 weights."""
    config, tokenizer = model.config, AutoTokenizer.from_pretrained(tokenizer_folder)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if place in special else 1 for _, place in vocabulary])
    merges = [" ".join(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        for part, heads in (("q_proj", HEADS), ("k_proj", KEYS)):
            if part in name:  # llama.cpp keeps the two halves of each rotary pair side by side
                array = array.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(array.shape)
        if name == "lm_head.weight":
            continue
        if quantise and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_gguf_name(name), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    plain = name.removesuffix(".weight").removeprefix("model.")
    if plain in ("embed_tokens", "norm"):
        return {"embed_tokens": "token_embd", "norm": "output_norm"}[plain] + ".weight"
    _, layer, rest = plain.split(".", 2)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(3, 23)[None]).logits


def test_the_converted_folder_is_the_model(model: LlamaForCausalLM, tiny_language_base: Path, tmp_path: Path) -> None:
    write(tmp_path / "tiny.gguf", model, tiny_language_base)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(model), atol=1e-5)
    ours, theirs = AutoTokenizer.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tiny_language_base)
    assert ours("Who was late: the nurse?")["input_ids"] == theirs("Who was late: the nurse?")["input_ids"]
    assert ours.chat_template == TEMPLATE
    loaded = load_language_base(tmp_path / "out", Model(path="x", max_length=64))
    assert loaded.sha256 == content_hash(tmp_path / "out")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "again")
    assert content_hash(tmp_path / "again") == content_hash(tmp_path / "out")
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "out").glob("*.json"))


def test_quantised_weights_come_out_as_the_numbers_that_they_stand_for(
    model: LlamaForCausalLM, tiny_language_base: Path, tmp_path: Path
) -> None:
    write(tmp_path / "tiny.gguf", model, tiny_language_base, quantise=True)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    want = model.state_dict()["model.layers.0.mlp.up_proj.weight"].numpy()
    kind = gguf.GGMLQuantizationType.Q8_0
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()["model.layers.0.mlp.up_proj.weight"].numpy()
    assert np.array_equal(got, gguf.quants.dequantize(gguf.quants.quantize(want, kind), kind))


def test_add_takes_a_gguf_file_or_its_folder(model: LlamaForCausalLM, tiny_language_base: Path, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "Models"
    folder.mkdir()
    write(folder / "Tiny-Q8.gguf", model, tiny_language_base, quantise=True)
    added = assets.add(folder / "Tiny-Q8.gguf")
    assert added == cache / "tiny-q8"
    assert assets.add(folder, "tiny-q8") == added
    assert assets.resolve("asset:tiny-q8", base=Path()) == added
    with pytest.raises(FedethosError, match="SEC-601"):
        assets.add(folder, "smollm2")
    assert [path.name for path in cache.iterdir()] == ["tiny-q8"], "nothing half done stays behind"


def test_an_unknown_architecture_is_named(model: LlamaForCausalLM, tiny_language_base: Path, tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "other.gguf", model, tiny_language_base, architecture="rwkv6")
    with pytest.raises(FedethosError, match=r"MODEL-486 .*rwkv6"):
        assets.add(tmp_path / "other.gguf")


def test_damaged_files_are_refused(model: LlamaForCausalLM, tiny_language_base: Path, tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "whole.gguf", model, tiny_language_base)
    whole = (tmp_path / "whole.gguf").read_bytes()
    for content in (b"", b"GGUF", whole[:200], whole[: len(whole) // 2], b"PK" + whole[2:]):
        (tmp_path / "cut.gguf").write_bytes(content)
        with pytest.raises(FedethosError, match="MODEL-487"):
            assets.add(tmp_path / "cut.gguf")
