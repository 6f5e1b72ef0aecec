"""Per-unit clipping from Opacus' per-example gradients (hooks; Yousefpour et al. 2021).

Opacus supplies the gradient of each example's own loss; ``fedethos.privacy.clipping`` bounds and sums them.
Opacus' hooks fail on an empty batch, so an empty step never reaches them.
"""

from __future__ import annotations

import warnings

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import Tensor, nn

from fedethos.errors import FedethosError
from fedethos.privacy.clipping import Clipping, Units, clip_and_sum
from fedethos.privacy.coverage import refuse_batch_coupling
from fedethos.privacy.engine import Gradients, Parameters


class OpacusEngine:
    """``engine: opacus``. Parameters as for ``FusedEngine``."""

    def __init__(self, max_grad_norm: float, clipping: Clipping = "flat") -> None:
        self.max_grad_norm = max_grad_norm
        self._clipping: Clipping = clipping

    def attach(self, model: nn.Module, parameters: Parameters) -> None:
        """Hook every module that holds a trainable parameter.

        Raises
        ------
        FedethosError
            PRIV-318 for a module that mixes examples of a batch; PRIV-320 for a trainable parameter outside ``parameters``.
        """
        refuse_batch_coupling(model)
        covered = {id(parameter) for parameter in parameters.values()}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) not in covered:
                raise FedethosError("PRIV-320", "A trainable parameter is not covered by the clipping engine.", where=name)
        self._parameters = dict(parameters)
        self._was_training = {module: module.training for module in model.modules()}
        for module in model.modules():  # Opacus' hooks skip modules in eval mode; a Linear behaves the same in both
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                module.training = True
        self._hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=False)
        self.reset()

    def reset(self) -> None:
        self.unclipped_balance, self.nonfinite_units = 0.0, 0
        self._sums: Gradients = {
            name: torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device) for name, parameter in self._parameters.items()
        }
        self._clear()

    def backward(self, per_example_loss: Tensor, unit_ids: Tensor, weights: Tensor | None = None) -> None:
        if len(per_example_loss) == 0:
            return
        with warnings.catch_warnings():  # the first hooked layer has no input gradient, which is as it should be
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            torch.autograd.backward(per_example_loss.sum())
        per_example = {name: self._grad_sample(name, parameter) for name, parameter in self._parameters.items()}
        clipped = clip_and_sum(per_example, Units.of(unit_ids), self.max_grad_norm, self._clipping, weights)
        for name, total in clipped.sums.items():
            self._sums[name] += total
        self.unclipped_balance += clipped.unclipped_balance
        self.nonfinite_units += clipped.nonfinite_units
        self._clear()

    def clipped_sum(self) -> Gradients:
        return self._sums

    def detach(self) -> None:
        self._clear()
        self._hooks.cleanup()
        for module, training in self._was_training.items():
            module.training = training
            for left in ("activations", "max_batch_len"):  # of a pass that ended early, which the next one would be mixed with
                vars(module).pop(left, None)

    def _grad_sample(self, name: str, parameter: nn.Parameter) -> Tensor:
        gradient = getattr(parameter, "grad_sample", None)
        if not isinstance(gradient, Tensor):
            raise FedethosError(
                "PRIV-321",
                "A trainable parameter has no per-example gradient.",
                where=name,
                why="Its gradient could not be clipped, so no bound holds.",
                fix="Adapt only layers that the model uses for this task (lora.target_modules).",
            )
        return gradient

    def _clear(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]
