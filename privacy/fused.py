"""Exact per-unit clipping for LoRA in one backward pass: ``engine: fused``.

Usual per-example methods pay with a second backward pass, with Gram matrices, or with hooks that keep every layer's
inputs twice. LoRA needs none of that: its factors are so thin that each example's gradient costs what the ordinary weight
gradient costs. ``attach`` replaces the forward of each trainable linear layer (``fedethos.privacy.fused_linear``); ``backward``
runs one ordinary backward, which leaves each example's gradients here; ``fedethos.privacy.clipping`` clips and adds them.

``fedethos.privacy.self_check`` compares an attached engine with plain autograd on the model at hand before training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedethos.errors import FedethosError
from fedethos.privacy.clipping import Clipping, Units, clip_and_sum
from fedethos.privacy.coverage import CoveredLora, covered_modules
from fedethos.privacy.engine import Gradients, Parameters
from fedethos.privacy.fused_linear import FusedLinear, FusedLora


class FusedEngine:
    """``ClippingEngine`` for plain LoRA on linear layers and for linear heads.

    Right for padded batches, reduced-precision autocast, gradient checkpointing, adapter dropout, modules called several
    times, frozen A or B, and micro-batches of any size. A model that shares the attached modules, such as a tail behind a
    frozen prefix, works as the model itself does.

    Parameters
    ----------
    max_grad_norm : float
        C: the most that one unit adds to the sum, in joint L2 norm over all trainable parameters.
    clipping : "flat" or "automatic"
        See ``fedethos.privacy.clipping``.

    Attributes
    ----------
    max_grad_norm, unclipped_balance, nonfinite_units
        As for ``ClippingEngine``.
    """

    def __init__(self, max_grad_norm: float, clipping: Clipping = "flat") -> None:
        self.max_grad_norm = max_grad_norm
        self._clipping: Clipping = clipping
        self._parameters: Parameters = {}
        self._patched: list[nn.Module] = []
        self._hooks: list[RemovableHandle] = []
        self._transposed: set[str] = set()
        self._gradients = _PerExampleGradients()
        self.reset()

    def attach(self, model: nn.Module, parameters: Parameters) -> None:
        """Replace the forward of every module that holds one of ``parameters``.

        Raises
        ------
        FedethosError
            PRIV-322 when attached already; PRIV-318, PRIV-319, PRIV-320, PRIV-322 as in ``coverage.covered_modules``.
        """
        if self._parameters:
            raise FedethosError("PRIV-322", "This engine is attached already.", fix="Detach it first, or use one engine per model.")
        found = covered_modules(model, parameters)
        self._parameters = dict(parameters)
        for covered in found:
            if isinstance(covered, CoveredLora):
                covered.layer.forward = FusedLora(covered, self._gradients.record)
                self._transposed |= {covered.name_b} if covered.name_b else set()
            else:
                covered.layer.forward = FusedLinear(covered, self._gradients.record)  # type: ignore[method-assign, assignment]
            self._patched.append(covered.layer)
        self._hooks = [
            parameter.register_hook(partial(_refuse_ordinary_gradient, name))  # type: ignore[no-untyped-call]
            for name, parameter in parameters.items()
        ]
        self.reset()

    def reset(self) -> None:
        """Begin a logical step."""
        self.nonfinite_units = 0
        self.unclipped_balance = 0.0
        self._seen_units: set[int] = set()
        self._sums: Gradients = {
            name: torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device) for name, parameter in self._parameters.items()
        }

    def backward(self, per_example_loss: Tensor, unit_ids: Tensor, weights: Tensor | None = None) -> None:
        """Run the one backward pass of a micro-batch and add its units' clipped gradients to the sum.

        Parameters
        ----------
        per_example_loss : Tensor[b]
            Each example's loss, from its own quantities only (a batch mean, or a norm over the batch, bounds nothing).
        unit_ids : Tensor int64[b]
            All rows of a unit come in one micro-batch.
        weights : Tensor[b], optional
            Multiply the clipped gradients, see ``clipping.clip_and_sum``; the caller bounds them.

        Raises
        ------
        FedethosError
            PRIV-321 no gradient reached the engine, PRIV-323 a unit came in an earlier micro-batch of this step, PRIV-324 a module
            was not called with one row per example, PRIV-325 a parameter is also used outside the covered modules,
            PRIV-327 the arguments do not fit together. The sum is then as it was before the call.
        """
        _check_arguments(per_example_loss, unit_ids, weights)
        if len(per_example_loss) == 0:
            return
        ids = set(unit_ids.tolist())
        if ids & self._seen_units:
            raise FedethosError(
                "PRIV-323",
                "The rows of one unit came in two micro-batches of a step.",
                why="It would be clipped twice and could add twice the bound.",
                fix="Cut micro-batches between units.",
            )
        with self._gradients.of_micro_batch(len(per_example_loss)) as per_example:
            if per_example_loss.requires_grad:
                torch.autograd.backward(per_example_loss, torch.ones_like(per_example_loss))
        if not per_example:
            raise FedethosError(
                "PRIV-321",
                "No per-example gradient reached the clipping engine.",
                why="The loss does not depend on the adapters of the attached model.",
                fix="Compute the loss with the model that the engine was attached to, with gradients on.",
            )
        clipped = clip_and_sum(per_example, Units.of(unit_ids.to(per_example_loss.device)), self.max_grad_norm, self._clipping, weights)
        for name, total in clipped.sums.items():
            self._sums[name] += total.T if name in self._transposed else total
        self.nonfinite_units += clipped.nonfinite_units
        self.unclipped_balance += clipped.unclipped_balance
        self._seen_units |= ids

    def clipped_sum(self) -> Gradients:
        """Sum since ``reset`` of the units' clipped gradients, float64; zeros when no micro-batch came."""
        return {name: total.clone() for name, total in self._sums.items()}

    def detach(self) -> None:
        """Leave the model as it was before ``attach``."""
        for module in self._patched:
            del module.forward
        for hook in self._hooks:
            hook.remove()
        self._parameters, self._patched, self._hooks, self._transposed = {}, [], [], set()
        self.reset()


class _PerExampleGradients:
    """What the running backward pass has recorded, by parameter name. Closed between micro-batches."""

    def __init__(self) -> None:
        self._rows: int | None = None
        self._recorded: Gradients = {}

    @contextmanager
    def of_micro_batch(self, rows: int) -> Iterator[Gradients]:
        self._rows, self._recorded = rows, {}
        try:
            yield self._recorded
        finally:
            self._rows, self._recorded = None, {}

    def record(self, name: str, gradient: Tensor) -> None:
        """Add ``gradient`` [b, ...] to what the module's earlier calls left under ``name``."""
        if self._rows is None:
            raise FedethosError(
                "PRIV-326",
                "A backward pass ran outside the clipping engine.",
                where=name,
                why="Its gradients would not be clipped.",
                fix="Call the engine's backward instead of the loss's.",
            )
        if len(gradient) != self._rows:
            raise FedethosError(
                "PRIV-324",
                "A trained module was not called with one row per example.",
                where=name,
                why="Its gradients cannot be told apart by example.",
                fix="Do not adapt this module (lora.target_modules).",
            )
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        self._recorded[name] = self._recorded[name] + gradient if name in self._recorded else gradient


def _refuse_ordinary_gradient(name: str, gradient: Tensor | None) -> None:
    if gradient is None:  # all that the fused modules pass on
        return
    raise FedethosError(
        "PRIV-325",
        "A trainable parameter is also used outside the modules that the engine covers.",
        where=name,
        why="That part of its gradient would not be clipped.",
        fix="Untie the parameter, or freeze it.",
    )


def _check_arguments(per_example_loss: Tensor, unit_ids: Tensor, weights: Tensor | None) -> None:
    shape = per_example_loss.shape
    if len(shape) != 1 or unit_ids.shape != shape or unit_ids.dtype != torch.int64:
        raise FedethosError("PRIV-327", "Losses and unit ids are not two vectors of one length, the ids int64.", where="backward")
    if weights is not None and (weights.shape != shape or not bool((torch.isfinite(weights) & (weights >= 0)).all())):
        raise FedethosError("PRIV-327", "Weights are not one finite, non-negative number per example.", where="backward")
