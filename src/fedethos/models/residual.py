"""The frozen residual that fedex and flora leave beside the adapter: folded into the base's weights for the work, written out at the end.

A layer computes x · (W + s (B A + residual_B residual_A))ᵀ with s = lora_alpha / r. While arrays with a residual are loaded,
W + s residual_B residual_A stands in the place of W; ``unfold`` puts the very bytes of W back. An adapter file holds one pair a layer:
the product of both, at the rank that it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedethos.aggregation import is_residual, layers_of, lora_names, residual_names
from fedethos.errors import FedethosError
from fedethos.models.lowrank import Product, added, compressed
from fedethos.models.peft_classes import is_lora_layer
from fedethos.models.tensors import Arrays

if TYPE_CHECKING:
    from peft.tuners.lora.layer import LoraLayer

_ADAPTER = "default"


class FoldedResidual:
    """Keeps the base's own weights while a residual is folded into them. A model without LoRA has no place for any.

    Attributes
    ----------
    arrays : dict of str to float32 array
        What is folded in now.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.arrays: dict[str, npt.NDArray[np.float32]] = {}
        self._own: dict[str, Tensor] = {}  # layer -> W as loaded

    def fold(self, residual: Arrays) -> None:
        """Replace whatever is folded by ``residual``. Nothing changes on an error.

        Raises
        ------
        FedethosError
            SEC-645 when it does not fit the adapted layers: names, shapes, float32, finite, rank at most the layer's.
        """
        layers = layers_of(_adapter_names(self._model))
        _check(residual, {layer: _weight(self._model, layer).shape for layer in layers}, self._model)
        self.unfold()
        with torch.no_grad():
            for layer in layers:
                name_b, name_a = residual_names(layer)
                if name_b in residual:
                    weight, module = _weight(self._model, layer), _module(self._model, layer)
                    self._own[layer] = weight.detach().clone()
                    update = module.scaling[_ADAPTER] * (torch.tensor(residual[name_b]) @ torch.tensor(residual[name_a]))
                    weight.add_((update.T if _is_transposed(module) else update).to(weight))
        self.arrays = dict(residual)

    def unfold(self) -> None:
        """Put the base's own weights back, bit by bit."""
        with torch.no_grad():
            for layer, own in self._own.items():
                _weight(self._model, layer).copy_(own)
        self._own, self.arrays = {}, {}


def whole_adapter(tensors: Mapping[str, Tensor], residual: Arrays) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Adapter tensors that hold the residual too, and each adapted layer's rank by its name in the base model."""
    whole, ranks = dict(tensors), {}
    for layer in layers_of(tensors):
        pair, names = lora_names(layer), residual_names(layer)
        if names[0] in residual:
            parts = [Product.of(tensors[pair[0]].numpy(), tensors[pair[1]].numpy()), Product.of(residual[names[0]], residual[names[1]])]
            product = compressed(added(parts))
            whole[pair[0]] = torch.from_numpy(product.b.astype(np.float32)).contiguous()
            whole[pair[1]] = torch.from_numpy(product.a.astype(np.float32)).contiguous()
            ranks[layer.removeprefix("base_model.model.")] = product.rank
    return whole, ranks


def beside_idle_adapter(exported: Arrays, exchanged: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """What a node loads to compute an exported adapter (``whole_adapter``): each layer's pair as its residual, and a zero adapter.

    ``exchanged``: the tensors that the node's rule exchanges; their own values do not matter.
    """
    arrays = {name: exported[name] if "lora_" not in name else np.zeros_like(array) for name, array in exchanged.items()}
    for layer in layers_of(exported):
        arrays |= {residual: exported[name] for residual, name in zip(residual_names(layer), lora_names(layer), strict=True)}
    return arrays


def residual_of(arrays: Arrays) -> dict[str, npt.NDArray[np.float32]]:
    """The residual's tensors among ``arrays``."""
    return {name: array for name, array in arrays.items() if is_residual(name)}


def _check(residual: Arrays, shapes: Mapping[str, tuple[int, ...]], model: nn.Module) -> None:
    known: set[str] = set()
    for layer, stored in shapes.items():
        name_b, name_a = residual_names(layer)
        if not {name_b, name_a} <= set(residual):
            continue
        known |= {name_b, name_a}
        d_out, d_in = reversed(stored) if _is_transposed(_module(model, layer)) else stored
        b, a = residual[name_b], residual[name_a]
        rank = b.shape[-1] if b.ndim == 2 else 0
        fits = (b.shape, a.shape) == ((d_out, rank), (rank, d_in)) and 1 <= rank <= min(d_out, d_in)
        if not (fits and b.dtype == a.dtype == np.float32 and np.isfinite(b).all() and np.isfinite(a).all()):
            raise _misfit()
    if known != set(residual):
        raise _misfit()


def _misfit() -> FedethosError:
    return FedethosError(
        "SEC-645", "A residual does not fit the adapted layers of this job.", why="It would change other weights than the job says."
    )


def _adapter_names(model: nn.Module) -> list[str]:
    return [f"{path}.{part}.weight" for path, module in model.named_modules() if is_lora_layer(module) for part in ("lora_A", "lora_B")]


def _module(model: nn.Module, layer: str) -> LoraLayer:
    module = model.get_submodule(layer)
    if not is_lora_layer(module):
        raise _misfit()
    return module


def _weight(model: nn.Module, layer: str) -> torch.nn.Parameter:
    weight: torch.nn.Parameter = _module(model, layer).get_base_layer().weight
    return weight


def _is_transposed(module: LoraLayer) -> bool:
    """GPT-2's Conv1D keeps its weight as [in, out]."""
    return bool(getattr(module, "fan_in_fan_out", False))
