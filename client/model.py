"""The model on a node: a frozen base, the adapter that is trained, and the shortest forward pass that reaches it.

All virtual sites of a simulation share one ``NodeModel``; only the adapter's numbers are swapped.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedethos.messages import Arrays
from fedethos.models import adapter

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
    """

    def __init__(self, model: PeftModel, forward: nn.Module, base_sha256: str) -> None:
        self.model = model
        self.base_sha256 = base_sha256
        self.forward = forward
        self.device = next(model.parameters()).device
        self.trainable_names = adapter.trainable_names(model)
        self.frozen_names = adapter.frozen_names(model)
        named = adapter.named_adapter_parameters(model)
        self.parameters = {name: named[name] for name in self.trainable_names}

    def load(self, arrays: Arrays) -> None:
        """Write adapter tensors; the names must be exactly the trainable or exactly the frozen ones."""
        adapter.write_arrays(self.model, arrays)

    def read(self) -> Arrays:
        """The trainable tensors, float32."""
        arrays: Arrays = adapter.read_arrays(self.model, self.trainable_names)
        return arrays

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Class logits, float32[b, labels]."""
        output = self.forward(**{name: tensor.to(self.device) for name, tensor in batch.items()})
        logits: Tensor = output.logits if hasattr(output, "logits") else output
        return logits.float()

    def training_only(self, names: set[str]) -> NodeModel:
        """A view of this model, with the same tensors, whose ``parameters`` are only ``names``."""
        view = copy.copy(self)
        view.parameters = {name: parameter for name, parameter in self.parameters.items() if name in names}
        return view

    def head_names(self) -> set[str]:
        """Names of the classification head's tensors (they may have their own learning rate)."""
        return {name for name in self.trainable_names if "lora_" not in name}


def training_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def log_odds_of(logits: Tensor, favorable: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Log-odds of the favorable label against all others, float64[b]."""
    wide = logits.double()
    others = torch.cat([wide[:, :favorable], wide[:, favorable + 1 :]], dim=1)
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = (wide[:, favorable] - torch.logsumexp(others, dim=1)).cpu().numpy()
    return result
