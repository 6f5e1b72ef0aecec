"""The model on a node: its named parameters, those that train, and the shortest forward pass that reaches them.

All virtual sites of a simulation share one ``NodeModel``; only the adapter's numbers are swapped.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from fedethos.messages import Arrays
from fedethos.models.adapter import named_adapter_parameters
from fedethos.models.base import weights_hash
from fedethos.models.tensors import read_arrays, write_arrays


class NodeModel:
    """Parameters
    ----------
    model : PeftModel or nn.Module
        A base model with its adapter attached, whose adapter trains; or a model of its own, which trains whole.
    forward : nn.Module
        What computes logits: ``model`` itself, or its tail above the frozen prefix (same parameters).
    base_sha256 : str
        Content hash of the base model's folder, or of a tabular model's architecture.
    """

    def __init__(self, model: PeftModel | nn.Module, forward: nn.Module, base_sha256: str) -> None:
        self.model = model
        self.base_sha256 = base_sha256
        self.forward = forward
        self.device = next(model.parameters()).device
        self._named = named_adapter_parameters(model) if isinstance(model, PeftModel) else dict(sorted(model.named_parameters()))
        self.trainable_names = [name for name, parameter in self._named.items() if parameter.requires_grad]
        self.frozen_names = [name for name, parameter in self._named.items() if not parameter.requires_grad]
        self.parameters = {name: self._named[name] for name in self.trainable_names}

    def load(self, arrays: Arrays) -> None:
        """Write tensors; the names must be exactly the trainable or exactly the frozen ones."""
        write_arrays(self._named, arrays)

    def read(self) -> Arrays:
        """The trainable tensors, float32."""
        return read_arrays(self._named, self.trainable_names)

    def read_frozen(self) -> Arrays:
        """The tensors that travel once and do not train, float32."""
        return read_arrays(self._named, self.frozen_names)

    def base_weights(self) -> str | None:
        """Hash of the weights below the adapter, which training may not change; None where the whole model trains."""
        return weights_hash(self.model) if isinstance(self.model, PeftModel) else None

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
        """Names of the tensors outside LoRA: the classification head, which may have its own learning rate; or a whole model."""
        return {name for name in self.trainable_names if "lora_" not in name}


def training_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def margin_of(logits: Tensor, favorable: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Log-odds of the favorable label against the likeliest other, float64[b]: above 0 where it is predicted."""
    wide = logits.double()
    others = torch.cat([wide[:, :favorable], wide[:, favorable + 1 :]], dim=1)
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = (wide[:, favorable] - others.amax(dim=1)).cpu().numpy()
    return result


def log_odds_of(logits: Tensor, favorable: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Log-odds of the favorable label against all others, float64[b]."""
    wide = logits.double()
    others = torch.cat([wide[:, :favorable], wide[:, favorable + 1 :]], dim=1)
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = (wide[:, favorable] - torch.logsumexp(others, dim=1)).cpu().numpy()
    return result
