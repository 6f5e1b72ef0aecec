"""Whether a module is PEFT's, asked without importing PEFT: a job with a model of its own is spared its seconds, and transformers' too.

An object exists only where its class was imported, so a class that nobody has imported has no objects.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

from torch import nn

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora.layer import Linear, LoraLayer


def is_peft_model(model: nn.Module) -> TypeGuard[PeftModel]:
    """Whether ``model`` is a base model with an adapter."""
    found = _imported("peft.peft_model", "PeftModel")
    return found is not None and isinstance(model, found)


def is_lora_layer(module: nn.Module) -> TypeGuard[LoraLayer]:
    """Whether ``module`` is adapted by LoRA, whatever kind of layer it was."""
    found = _imported("peft.tuners.lora.layer", "LoraLayer")
    return found is not None and isinstance(module, found)


def is_lora_linear(module: nn.Module) -> TypeGuard[Linear]:
    """Whether ``module`` is LoRA on a linear layer, and of no class derived from that."""
    return type(module) is _imported("peft.tuners.lora.layer", "Linear")


def _imported(module: str, name: str) -> type | None:
    found: type | None = getattr(sys.modules.get(module), name, None)
    return found
