"""The model on a node: a frozen base, the adapter that is trained, and the shortest forward pass that reaches it.

All virtual sites of a simulation share one ``NodeModel``; only the adapter's numbers are swapped.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedethos.aggregation import is_residual
from fedethos.messages import Arrays
from fedethos.models import adapter
from fedethos.models.residual import FoldedResidual, residual_of

if TYPE_CHECKING:
    from peft import PeftModel


class NodeModel:
    """Parameters
    ----------
    model : PeftModel
        Base model with its adapter attached.
    forward : nn.Module
        What computes logits: ``model`` itself, or its tail above the frozen prefix (same parameters).
    base_sha256 : str
        Content hash of the base model's folder.

    Attributes
    ----------
    exchanged_names, frozen_names : list of str
        Adapter tensors that travel in each request, and those that travel once.
    parameters : dict of str to nn.Parameter
        What trains now (``train_only``).
    """

    def __init__(self, model: PeftModel, forward: nn.Module, base_sha256: str) -> None:
        self.model = model
        self.base_sha256 = base_sha256
        self.forward = forward
        self.device = next(model.parameters()).device
        self.exchanged_names = adapter.trainable_names(model)
        self.frozen_names = adapter.frozen_names(model)
        named = adapter.named_adapter_parameters(model)
        self.parameters = {name: named[name] for name in self.exchanged_names}
        self._rank: int | None = None
        self._residual = FoldedResidual(model)

    @property
    def trainable_names(self) -> list[str]:
        """Names of what trains now, sorted."""
        return sorted(self.parameters)

    def train_only(self, names: Collection[str], *, rank: int | None = None) -> None:
        """Let exactly these tensors train, and only the first ``rank`` rows of A and columns of B (None: all). The rest becomes zero."""
        named = adapter.named_adapter_parameters(self.model)
        for name, parameter in named.items():
            parameter.requires_grad_(name in names)
        self.parameters = {name: named[name] for name in sorted(names)}
        self._rank = rank
        if rank is not None:
            with torch.no_grad():
                for name, parameter in named.items():
                    parameter.copy_(self.masked(name, parameter))

    def masked(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` (a parameter or its gradient) with zero in what lies beyond this site's rank."""
        if self._rank is None or "lora_" not in name:
            return tensor
        kept = torch.zeros_like(tensor)
        inside = (slice(self._rank), slice(None)) if ".lora_A." in name else (slice(None), slice(self._rank))
        kept[inside] = tensor[inside]
        return kept

    def load(self, arrays: Arrays) -> None:
        """Write adapter tensors: exactly those that travel in each request (and the residual, if any), or exactly the frozen ones."""
        self._residual.fold(residual_of(arrays))
        adapter.write_arrays(self.model, {name: array for name, array in arrays.items() if not is_residual(name)})

    def read(self) -> Arrays:
        """The tensors that travel in each request, without residual, float32."""
        arrays: Arrays = adapter.read_arrays(self.model, self.exchanged_names)
        return arrays

    def read_trained(self) -> Arrays:
        """The tensors that train now, float32."""
        arrays: Arrays = adapter.read_arrays(self.model, self.trainable_names)
        return arrays

    def restore_base(self) -> None:
        """Put the base model's own weights back where a residual is folded in."""
        self._residual.unfold()

    def save(self, arrays: Arrays, folder: Path) -> None:
        """Load ``arrays`` and write them in PEFT's format."""
        self.load(arrays)
        adapter.save_adapter(folder, self.model, residual_of(arrays))

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Class logits, float32[b, labels]."""
        output = self.forward(**{name: tensor.to(self.device) for name, tensor in batch.items()})
        logits: Tensor = output.logits if hasattr(output, "logits") else output
        return logits.float()

    def head_names(self) -> set[str]:
        """Names of the classification head's tensors (they may have their own learning rate)."""
        return {name for name in self.parameters if "lora_" not in name}


def training_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def log_odds_of(logits: Tensor, favorable: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Log-odds of the favorable label against all others, float64[b]."""
    wide = logits.double()
    others = torch.cat([wide[:, :favorable], wide[:, favorable + 1 :]], dim=1)
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = (wide[:, favorable] - torch.logsumexp(others, dim=1)).cpu().numpy()
    return result
