"""What a private engine may train. Whatever is not known to be right is refused before the first gradient.

``fedethos.privacy.fused_linear`` then replaces the forward of the modules found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from fedethos.errors import FedethosError
from fedethos.models.peft_classes import is_lora_linear
from fedethos.privacy.engine import Parameters

if TYPE_CHECKING:
    from peft.tuners.lora.layer import Linear as LoraLinear

_NOT_BOUNDED = "Its gradient would not be clipped, so no bound on a person's influence would hold."


@dataclass(frozen=True)
class CoveredLora:
    """A PEFT LoRA layer; a name is None where that factor does not train."""

    layer: LoraLinear
    adapter: str
    name_a: str | None
    name_b: str | None


@dataclass(frozen=True)
class CoveredLinear:
    """A plain linear layer that trains itself, such as a classification head."""

    layer: nn.Linear
    name_weight: str | None
    name_bias: str | None


def covered_modules(model: nn.Module, parameters: Parameters) -> list[CoveredLora | CoveredLinear]:
    """Find the modules that hold ``parameters``, which must be exactly the trainable parameters of ``model``.

    Raises
    ------
    FedethosError
        PRIV-318 for a module that couples the examples of a batch, PRIV-319 for an adapter of another kind, PRIV-320 for a
        trainable parameter outside ``parameters`` or outside LoRA linears and linear heads, PRIV-322 for a module whose
        forward somebody has replaced already.
    """
    refuse_batch_coupling(model)
    names = {id(parameter): name for name, parameter in parameters.items()}
    _refuse_other_trainables(model, names)
    found = list(_find(model, names))
    _refuse_uncovered(parameters, found)
    return found


def refuse_batch_coupling(model: nn.Module) -> None:
    """Raise PRIV-318 when a module makes one example's output depend on the others of its batch."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise FedethosError(
                "PRIV-318",
                f"{type(module).__name__} mixes examples of different people.",
                where=path,
                why="Privacy per person cannot be counted with it.",
                fix="Choose a base model without batch normalisation.",
            )


def _refuse_other_trainables(model: nn.Module, names: dict[int, str]) -> None:
    for path, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in names:
            raise FedethosError(
                "PRIV-320",
                "A parameter of the model trains, but was not handed to the clipping engine.",
                where=path,
                why=_NOT_BOUNDED,
                fix="Freeze it, or hand it over.",
            )


def _find(model: nn.Module, names: dict[int, str]) -> Iterator[CoveredLora | CoveredLinear]:
    inner: set[int] = set()  # parts of a LoRA layer, which its replaced forward no longer calls
    for path, module in model.named_modules():
        if not any(id(parameter) in names for parameter in module.parameters()) or id(module) in inner:
            continue
        if is_lora_linear(module) and _trains_a_factor(module, names):
            adapter = _refuse_other_adapters(path, module)
            _refuse_replaced_forward(path, module)
            inner.update(id(part) for part in module.modules())
            name_a = names.get(id(module.lora_A[adapter].weight))
            name_b = names.get(id(module.lora_B[adapter].weight))
            yield CoveredLora(module, adapter, name_a, name_b)
        elif type(module) is nn.Linear:
            _refuse_replaced_forward(path, module)
            yield CoveredLinear(module, names.get(id(module.weight)), names.get(id(module.bias)))


def _trains_a_factor(layer: LoraLinear, names: dict[int, str]) -> bool:
    """Whether A or B itself trains. Else PEFT's own forward stays, and what trains inside is a plain linear layer or uncovered."""
    return any(id(part.weight) in names for factor in (layer.lora_A, layer.lora_B) for part in factor.values())


def _refuse_other_adapters(path: str, layer: LoraLinear) -> str:
    """The one adapter of ``layer``; PRIV-319 unless it is x·Wᵀ + bias + scaling · dropout(x)·Aᵀ·Bᵀ."""
    active: list[str] = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
    parts = [layer.base_layer, *(part for adapter in active for part in (layer.lora_A[adapter], layer.lora_B[adapter]))]
    reasons = {
        "several adapters are active": len(active) != 1,
        "the adapter is merged or switched off": layer.merged or layer.disable_adapters,
        "it is a variant such as DoRA": any(adapter in layer.lora_variant for adapter in active),
        "lora_bias is on": any(layer.lora_bias[adapter] for adapter in active),
        "it is not on a plain linear layer (GPT-2's Conv1D is none)": any(type(part) is not nn.Linear for part in parts),
        "its parts carry hooks, which would not run": any(part._forward_hooks or part._forward_pre_hooks for part in parts),
    }
    for reason, holds in reasons.items():
        if holds:
            raise FedethosError(
                "PRIV-319",
                f"The private engine does not know this adapter: {reason}.",
                where=path,
                why="Its per-person gradients would be wrong.",
                fix="Use one plain LoRA adapter on linear layers.",
            )
    return active[0]


def _refuse_replaced_forward(path: str, module: nn.Module) -> None:
    if "forward" in vars(module):
        raise FedethosError(
            "PRIV-322",
            "The forward of this module is already replaced.",
            where=path,
            why="Two owners of one module would each see half of its gradient.",
            fix="Detach the other engine first.",
        )


def _refuse_uncovered(parameters: Parameters, found: list[CoveredLora | CoveredLinear]) -> None:
    covered: set[str | None] = set()
    for module in found:
        covered |= {module.name_a, module.name_b} if isinstance(module, CoveredLora) else {module.name_weight, module.name_bias}
    for name, parameter in parameters.items():
        if name not in covered or not parameter.requires_grad:
            raise FedethosError(
                "PRIV-320",
                "A parameter is not a trainable part of a LoRA linear or of a linear head of this model.",
                where=name,
                why=_NOT_BOUNDED,
                fix="Adapt only linear layers (lora.target_modules) and use a linear head.",
            )
