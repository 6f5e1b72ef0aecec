"""Loading a frozen language model from a local folder, in float32, bfloat16 or 4 bits. Next: ``fedethos.models.adapter`` attaches LoRA.

The rules are those of ``fedethos.models.base``: safetensors only, nothing is downloaded, no code of the model runs.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from fedethos.errors import FedethosError
from fedethos.job import Model
from fedethos.models.assets import public_name
from fedethos.models.base import LoadedBase, approved_hash, load_tokenizer, load_weights, quiet, require_complete
from fedethos.models.language import require_plain_head


def load_language_base(folder: Path, settings: Model) -> LoadedBase:
    """Load ``folder`` as a causal language model.

    Parameters
    ----------
    settings : Model
        ``sha256``, ``max_length``, ``dtype`` and ``load_in_4bit`` are used. 4-bit weights are on the GPU, others on the CPU.

    Raises
    ------
    FedethosError
        As ``load_base``; DATA-141 the tokenizer has neither a padding nor an end token, MODEL-421 ``max_length`` is longer than the model
        reads, MODEL-484 logits of an unknown kind, MODEL-485 4 bits without a GPU or without bitsandbytes.
    """
    digest = approved_hash(folder, settings.sha256)
    if settings.load_in_4bit:
        _require_4bit()
    with quiet():
        model, missing = _causal(folder, settings)
        tokenizer = load_tokenizer(folder)
    require_complete(folder, model, missing)
    longest = model.config.max_position_embeddings
    if settings.max_length > longest:
        raise FedethosError(
            "MODEL-421",
            f"model.max_length is {settings.max_length}, and the base model reads at most {longest} tokens.",
            where="model.max_length",
            fix="Lower it.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise FedethosError(
            "DATA-141",
            "The tokenizer has no padding token, and no end-of-text token to use as one.",
            where="model.path",
            why="Records of different length could not share a batch.",
            fix="Set pad_token in the model's tokenizer_config.json.",
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.name_or_path = public_name(digest)  # PEFT copies it into adapter_config.json, where a machine's path has no place
    model = model.eval().requires_grad_(False)
    require_plain_head(model)
    return LoadedBase(model, tokenizer, digest)


def _causal(folder: Path, settings: Model) -> tuple[PreTrainedModel, set[str]]:
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    quantization = four_bits if settings.load_in_4bit else None
    load = partial(AutoModelForCausalLM.from_pretrained, dtype=dtype, quantization_config=quantization)
    return load_weights(load, folder, as_what="a language model")


def _require_4bit() -> None:
    if not torch.cuda.is_available() or find_spec("bitsandbytes") is None:
        raise FedethosError(
            "MODEL-485",
            "model.load_in_4bit needs a GPU and the package bitsandbytes.",
            where="model.load_in_4bit",
            fix="Install bitsandbytes on a machine with a GPU, or use model.dtype: bfloat16.",
        )
