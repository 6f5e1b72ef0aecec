"""LoRA adapters on a frozen base model, by PEFT: attach, name, save.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models": a linear layer W gets the update (lora_alpha / r) B A. With
``freeze_a`` only B and the head train (Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning", FFA-LoRA), so
that the average of the sites' B gives the average of their updates.

Tensors are named as in PEFT's adapter file everywhere; ``fedethos.models.tensors`` reads and writes them. Next:
``fedethos.models.prefix`` caches what lies below the first adapter.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import peft
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedethos.errors import FedethosError
from fedethos.job import Lora
from fedethos.models.base import head_modules
from fedethos.models.core import without_core
from fedethos.models.residual import whole_adapter
from fedethos.models.tensors import Arrays

_ADAPTER = "default"  # PEFT's name for the only adapter

Fold = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


def attach_lora(base_model: PreTrainedModel, lora: Lora, *, seed: int, freeze_a: bool, causal: bool = False) -> PeftModel:
    """Put LoRA adapters on ``base_model`` (in place) and make its head trainable; the output layer of a ``causal`` model stays frozen.

    A is drawn from ``seed`` alone (Kaiming-uniform, PEFT's default), B is zero: at the start the model computes what the base model
    computes. The base's dropouts are switched off for good, so that train and eval mode differ in LoRA's own dropout only and a
    frozen layer gives the same output every time.

    Raises
    ------
    FedethosError
        MODEL-451 no such target module, MODEL-452 no such layer, MODEL-453 the base is random in train mode.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM" if causal else "SEQ_CLS",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=_target_modules(base_model, lora),
        modules_to_save=None if causal else head_modules(base_model),
    )
    _switch_off_dropout(base_model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT calls names that transformers is renaming
        warnings.filterwarnings("ignore", message="fan_in_fan_out")  # PEFT corrects it by itself for GPT-2's layers
        torch.default_generator.manual_seed(seed)
        model: PeftModel = peft.get_peft_model(base_model, config)
    if freeze_a:
        for name, parameter in named_adapter_parameters(model).items():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
    _require_steady(model)
    return model.eval()


def named_adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """The adapter's live parameters (LoRA and head) by their names in PEFT's adapter file, sorted."""
    state = peft.get_peft_model_state_dict(model, state_dict=model.state_dict(keep_vars=True), save_embedding_layers=False)
    return dict(sorted(state.items()))


def trainable_names(model: PeftModel) -> list[str]:
    """Names of the adapter's tensors that train, sorted: what a train message carries."""
    return [name for name, parameter in named_adapter_parameters(model).items() if parameter.requires_grad]


def frozen_names(model: PeftModel) -> list[str]:
    """Names of the adapter's tensors that do not train (``lora_A`` with ``freeze_a``), sorted: sent once."""
    return [name for name, parameter in named_adapter_parameters(model).items() if not parameter.requires_grad]


def recompute_activations(model: PeftModel) -> None:
    """Turn on Hugging Face's gradient checkpointing (Chen et al. 2016): in training each layer's activations are computed twice.

    The non-reentrant kind, which lets gradients through frozen layers and keeps per-example gradients exact under the fused engine.
    MODEL-465 when the base model does not have it.
    """
    if not model.base_model.model.supports_gradient_checkpointing:
        raise FedethosError(
            "MODEL-465",
            "The base model has no gradient checkpointing.",
            where="training.gradient_checkpointing",
            fix="Set it to false; training.micro_batch_tokens bounds the memory as well.",
        )
    model.base_model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def save_adapter(folder: Path, model: PeftModel, residual: Arrays | None = None, *, fold: Fold = dict) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``: the same bytes for the same adapter, no path of this machine.

    Plain PEFT loads it: ``PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(BASE), folder)``, or with
    ``AutoModelForCausalLM``.
    With a ``residual`` each layer gets the rank that both need together (PEFT's ``rank_pattern``), at the same lora_alpha / r.
    ``fold`` writes into the tensors what the model computes beside them (``models/head_center.py``).
    """
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in named_adapter_parameters(model).items()}
    tensors, ranks = whole_adapter(without_core(fold(tensors)), residual or {})
    settings = model.peft_config[_ADAPTER].to_dict()
    scaling = settings["lora_alpha"] / settings["r"]
    settings |= {
        "rank_pattern": ranks,
        "alpha_pattern": {layer: scaling * rank for layer, rank in ranks.items()},
        "inference_mode": True,
        "modules_to_save": settings["modules_to_save"] and head_modules(model.get_base_model()),
        "target_modules": sorted(settings["target_modules"]),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


def _target_modules(model: PreTrainedModel, lora: Lora) -> list[str]:
    """Full names of the linear modules that get an adapter.

    Spelled out, because PEFT refuses ``all-linear`` together with ``layers_to_transform``. With chosen layers only modules inside
    them are taken (no pooler); the head never is, it trains whole.
    """
    heads = head_modules(model)
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and name.partition(".")[0] not in heads
    ]
    if lora.target_modules != "all-linear":
        unmatched = [target for target in lora.target_modules if not any(_is_called(name, target) for name in linear)]
        if unmatched:
            raise FedethosError(
                "MODEL-451",
                f"The base model has no linear layer called {', '.join(unmatched)}.",
                where="lora.target_modules",
                fix=f"Its linear layers are called {', '.join(sorted({name.rpartition('.')[2] for name in linear}))}.",
            )
        linear = [name for name in linear if any(_is_called(name, target) for target in lora.target_modules)]
    chosen = linear
    if lora.layers_to_transform is not None:
        layers = {layer for name in linear if (layer := _layer_of(name)) is not None}
        if not set(lora.layers_to_transform) <= layers:
            raise FedethosError(
                "MODEL-452",
                "The base model has no target module in one of these layers.",
                where="lora.layers_to_transform",
                fix=f"Layers are counted from 0; those with target modules: {sorted(layers)}.",
            )
        chosen = [name for name in linear if _layer_of(name) in lora.layers_to_transform]
    if not chosen:
        raise FedethosError(
            "MODEL-451",
            "No module of the base model would get an adapter.",
            where="lora.target_modules, lora.layers_to_transform",
            fix="Write target_modules: all-linear and layers_to_transform: null, or name some.",
        )
    return chosen


def _is_called(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _layer_of(name: str) -> int | None:
    """The transformer layer that a module lies in: the first number in its dotted name."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else None


def _switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0: modules, and the plain numbers that attention code reads (``attention_dropout``, ``layerdrop``)."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _require_steady(model: PeftModel) -> None:
    """Compare train with eval mode on one short input. B is zero, so LoRA's own dropout cannot show."""
    ids = torch.arange(1, 9, device=model.device).remainder(model.config.vocab_size)[None]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        in_train_mode = model.train()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        in_eval_mode = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    if not torch.allclose(in_train_mode, in_eval_mode, rtol=1e-4, atol=1e-5):
        raise FedethosError(
            "MODEL-453",
            "The base model computes something else in train mode than in eval mode.",
            why="A frozen base must give the same output every time: private gradients and cached layers rely on it.",
            fix="Use a model without built-in randomness or batch statistics, or with its dropout rates set to 0 in config.json.",
        )
