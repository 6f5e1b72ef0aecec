"""The model on a node: its named parameters, those that train, and the shortest forward pass that reaches them.

All virtual sites of a simulation share one ``NodeModel``; only the adapter's numbers are swapped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from fedethos.aggregation import HEAD_CENTER, is_residual
from fedethos.messages import Arrays
from fedethos.models.peft_classes import is_peft_model
from fedethos.models.residual import FoldedResidual, residual_of
from fedethos.models.tensors import read_arrays, write_arrays

if TYPE_CHECKING:
    from peft import PeftModel

    from fedethos.models.head_center import HeadCenter


class NodeModel:
    """Parameters
    ----------
    model : PeftModel or nn.Module
        A base model with its adapter attached, whose adapter trains; or a model of its own, which trains whole.
    forward : nn.Module
        What computes logits: ``model`` itself, or its tail above the frozen prefix (same parameters).
    base_sha256 : str
        Content hash of the base model's folder, or of a tabular model's architecture.
    classes : callable, optional
        From what ``forward`` gives to logits of the job's labels; None: it gives these.
    response_nats : callable, optional
        From what ``forward`` gives to the nats per token of a record's response, where its losses are counted.
    center : HeadCenter, optional
        Of the head's input. Its value travels in each request and does not train.

    Attributes
    ----------
    exchanged_names, frozen_names : list of str
        Tensors that travel in each request, and those that travel once.
    parameters : dict of str to nn.Parameter
        What trains now (``training``): the exchanged tensors, or some of them.
    """

    def __init__(
        self,
        model: PeftModel | nn.Module,
        forward: nn.Module,
        base_sha256: str,
        classes: Callable[[Tensor], Tensor] | None = None,
        center: HeadCenter | None = None,
        response_nats: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.base_sha256 = base_sha256
        self.forward = forward
        self._classes, self.response_nats = classes, response_nats
        self.device = next(model.parameters()).device
        self._named = _named_parameters(model)
        trainable = [name for name, parameter in self._named.items() if parameter.requires_grad]
        self.center = center
        self._centers = {} if center is None else {HEAD_CENTER: center.value}
        self.exchanged_names = [*trainable, *self._centers]
        self.frozen_names = [name for name, parameter in self._named.items() if not parameter.requires_grad]
        self.parameters = {name: self._named[name] for name in trainable}
        self._rank: int | None = None
        self._residual = FoldedResidual(model)

    @contextmanager
    def training(self, names: Collection[str], *, rank: int | None = None) -> Iterator[None]:
        """Inside, exactly these of the exchanged tensors train, so that a clipping engine has them and no others to cover.

        ``rank``: only the first rows of A and columns of B train (None: all). Beyond them everything becomes zero, and stays so.
        """
        whole = self.parameters
        for name, parameter in whole.items():
            parameter.requires_grad_(name in names)
        self.parameters, self._rank = {name: whole[name] for name in sorted(names)}, rank
        try:
            with torch.no_grad():
                for name, parameter in whole.items() if rank is not None else ():
                    parameter.copy_(self.masked(name, parameter))
            yield
        finally:
            for parameter in whole.values():
                parameter.requires_grad_(True)
            self.parameters, self._rank = whole, None

    def masked(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` (a parameter or its gradient) with zero in what lies beyond this site's rank."""
        if self._rank is None or "lora_" not in name:
            return tensor
        kept = torch.zeros_like(tensor)
        inside = (slice(self._rank), slice(None)) if ".lora_A." in name else (slice(None), slice(self._rank))
        kept[inside] = tensor[inside]
        return kept

    def load(self, arrays: Arrays) -> None:
        """Write tensors: exactly those that travel in each request (and the residual, if any), or exactly the frozen ones."""
        self._residual.fold(residual_of(arrays))
        own = {name: array for name, array in arrays.items() if not is_residual(name)}
        centers = {name: own.pop(name) for name in self._centers if name in own}
        write_arrays(self._named, own)
        if centers:
            write_arrays(self._centers, centers)

    def read(self, names: Collection[str] | None = None) -> Arrays:
        """Tensors by name, float32; None: those that travel in each request. Without the residual."""
        return read_arrays({**self._named, **self._centers}, self.exchanged_names if names is None else names)

    @property
    def residual(self) -> Arrays:
        """The residual that was loaded; empty for most aggregation rules."""
        return self._residual.arrays

    def restore_base(self) -> None:
        """Put the base model's own weights back where a residual is folded in."""
        self._residual.unfold()

    def read_frozen(self) -> Arrays:
        """The tensors that travel once and do not train, float32."""
        return read_arrays(self._named, self.frozen_names)

    def base_weights(self) -> str | None:
        """Hash of the weights below the adapter, which training may not change; None where the whole model trains."""
        if not is_peft_model(self.model):
            return None
        from fedethos.models.base import weights_hash

        return weights_hash(self.model)

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Class logits, float32[b, labels]."""
        return self.classes(self.outputs(batch))

    def classes(self, outputs: Tensor) -> Tensor:
        """Class logits, float32[b, labels], from ``outputs``."""
        return outputs if self._classes is None else self._classes(outputs)

    def outputs(self, batch: dict[str, Tensor]) -> Tensor:
        """What the loss is computed from, float32[b, columns]: class logits, or what the task has in their place."""
        output = self.forward(**{name: tensor.to(self.device) for name, tensor in batch.items()})
        logits: Tensor = output.logits if hasattr(output, "logits") else output
        return logits.float()

    def head_names(self) -> set[str]:
        """Names of the tensors outside LoRA: the classification head, which may have its own learning rate; or a whole model."""
        return {name for name in self.exchanged_names if "lora_" not in name and name != HEAD_CENTER}


def _named_parameters(model: PeftModel | nn.Module) -> dict[str, nn.Parameter]:
    if not is_peft_model(model):
        return dict(sorted(model.named_parameters()))
    from fedethos.models.adapter import named_adapter_parameters

    return named_adapter_parameters(model)


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
