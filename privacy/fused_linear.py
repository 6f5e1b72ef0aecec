"""Linear layers whose one backward yields each example's own weight gradient, and no other.

For y = x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ with incoming gradient G, both [batch, positions, features], example i has

    grad A_i = (s·G_i·B)ᵀ · x_i        grad B_i = (s·x_i·Aᵀ)ᵀ · G_i   (stored transposed, [r, out])

Both factors are skinny, so this costs the FLOPs of the ordinary weight gradient and batch·r·(in + out) numbers. Nothing is
saved that the ordinary backward would not save, the frozen W gets no gradient, and the trainable parameters get None: the
only way out of here for a gradient is ``record``, which ``fedethos.privacy.fused`` clips.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedethos.privacy.coverage import CoveredLinear, CoveredLora

Record = Callable[[str, Tensor], None]
"""Takes a parameter's name and the gradient of each example, [batch, ...]; a name may come several times in one backward."""


class FusedLora:
    """Takes the place of a PEFT LoRA layer's ``forward``; computes the same."""

    def __init__(self, covered: CoveredLora, record: Record) -> None:
        self._covered = covered
        self._record = record

    def __call__(self, x: Tensor) -> Tensor:
        layer, adapter = self._covered.layer, self._covered.adapter
        if layer.disable_adapters or layer.merged:  # an evaluation without adapter, or with it folded in: nothing trains here
            unadapted: Tensor = type(layer).forward(layer, x)
            return unadapted
        lora_a, lora_b, dropout = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight, layer.lora_dropout[adapter]
        dropped = None if isinstance(dropout, nn.Identity) or not dropout.training else dropout(x.to(lora_a.dtype))
        out: Tensor = _LoraFunction.apply(x, dropped, lora_a, lora_b, self._covered, self._record)  # type: ignore[no-untyped-call]
        return out


class FusedLinear:
    """Takes the place of a trainable ``nn.Linear``'s ``forward``; computes the same."""

    def __init__(self, covered: CoveredLinear, record: Record) -> None:
        self._covered = covered
        self._record = record

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._covered.layer
        out: Tensor = _LinearFunction.apply(x, layer.weight, layer.bias, self._covered, self._record)  # type: ignore[no-untyped-call]
        return out


class _LoraFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, lora_a: Tensor, lora_b: Tensor, covered: CoveredLora, record: Record
    ) -> Tensor:
        base, scaling = covered.layer.base_layer, covered.layer.scaling[covered.adapter]
        base_dtype, adapter_dtype = _compute_dtype(x, x.dtype), _compute_dtype(x, lora_a.dtype)
        out = _linear(x.to(base_dtype), base.weight, base.bias)
        adapter_x = (x if dropped is None else dropped).to(adapter_dtype)
        low = _project(_rows(adapter_x), lora_a.to(adapter_dtype), scaling)
        _add_product_(_rows(out), low, lora_b.to(adapter_dtype).T)
        ctx.save_for_backward(adapter_x if covered.name_a else None, low if covered.name_b else None, base.weight, lora_a, lora_b)
        ctx.scaling, ctx.covered, ctx.record = scaling, covered, record
        ctx.x_shape, ctx.x_dtype, ctx.adapter_dtype = x.shape, x.dtype, adapter_dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        adapter_x, low, weight, lora_a, lora_b = ctx.saved_tensors
        needs_x, needs_dropped = ctx.needs_input_grad[:2]
        name_a, name_b, batch = ctx.covered.name_a, ctx.covered.name_b, ctx.x_shape[0]
        with _without_autocast(grad_out):
            grad = _rows(grad_out)
            adapter_grad = grad.to(ctx.adapter_dtype)
            if name_b:
                ctx.record(name_b, torch.bmm(_per_example(low, batch).mT, _per_example(adapter_grad, batch)))
            grad_x = grad_dropped = None
            if needs_x:
                grad_x = grad @ weight.to(grad.dtype)
            if name_a or needs_x or needs_dropped:
                grad_low = _project(adapter_grad, lora_b.to(ctx.adapter_dtype).T, ctx.scaling)
                if name_a:
                    ctx.record(name_a, torch.bmm(_per_example(grad_low, batch).mT, _per_example(_rows(adapter_x), batch)))
                if needs_dropped:
                    grad_dropped = (grad_low @ lora_a.to(ctx.adapter_dtype)).view(ctx.x_shape)
                elif grad_x is not None:
                    _add_product_(grad_x, grad_low, lora_a.to(ctx.adapter_dtype))
        if grad_x is not None:
            grad_x = grad_x.view(ctx.x_shape).to(ctx.x_dtype)
        return grad_x, grad_dropped, None, None, None, None


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, covered: CoveredLinear, record: Record) -> Tensor:
        typed_x = x.to(_compute_dtype(x, x.dtype))
        out = _linear(typed_x, weight, bias)
        ctx.save_for_backward(typed_x if covered.name_weight else None, weight)
        ctx.covered, ctx.record, ctx.x_shape, ctx.x_dtype = covered, record, x.shape, x.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        name_weight, name_bias, batch = ctx.covered.name_weight, ctx.covered.name_bias, ctx.x_shape[0]
        with _without_autocast(grad_out):
            grad = _per_example(_rows(grad_out), batch)
            if name_weight:
                ctx.record(name_weight, torch.bmm(grad.mT, _per_example(_rows(x), batch)))
            if name_bias:
                ctx.record(name_bias, grad.sum(1))
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = (_rows(grad_out) @ weight.to(grad.dtype)).view(ctx.x_shape).to(ctx.x_dtype)
        return grad_x, None, None, None, None


def _compute_dtype(x: Tensor, otherwise: torch.dtype) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else otherwise


def _without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """The backward keeps its forward's dtypes, also when it is called inside an autocast region that the forward was not in."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _rows(x: Tensor) -> Tensor:
    """[batch, ..., features] to [batch · positions, features]."""
    return x.reshape(-1, x.shape[-1])


def _per_example(rows: Tensor, batch: int) -> Tensor:
    """[batch · positions, features] to [batch, positions, features]."""
    return rows.reshape(batch, -1, rows.shape[-1])


def _project(rows: Tensor, factor: Tensor, scaling: float) -> Tensor:
    """scaling · rows · factorᵀ for a thin factor, computed transposed: up to three times faster on a CPU."""
    return (factor @ rows.T).mul_(scaling).T


def _add_product_(out: Tensor, left: Tensor, right: Tensor) -> None:
    """``out += left @ right`` in place; one kernel where the dtypes agree."""
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out.add_(left @ right)
