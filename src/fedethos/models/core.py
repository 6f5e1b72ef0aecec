"""An r x r core between fixed orthonormal factors: the adapter of fedsb (Ponkshe et al. 2024, "LoRA-SB"; Singhal et al. 2025, "Fed-SB").

A layer gets the update (lora_alpha / r) B R A, in which R alone trains. The papers take B and A from an SVD of the first gradient on
training records, which would need its own share of the budget; here they are random orthonormal ones drawn from the seed, and R starts
at zero, so that the model starts as the base model. Use a larger ``lora.r`` than elsewhere.

R is a plain linear layer inside PEFT's A, so that every clipping engine covers it as it covers a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from fedethos.aggregation import core_name, layers_of, lora_names
from fedethos.errors import FedethosError

_ADAPTER = "default"


class _FixedThenCore(nn.Linear):
    """x to R A x: the weight is A, fixed; ``core`` is R."""

    def __init__(self, a: Tensor) -> None:
        rank, width = a.shape
        super().__init__(width, rank, bias=False)
        self.weight = nn.Parameter(a, requires_grad=False)
        self.core = nn.Linear(rank, rank, bias=False)
        nn.init.zeros_(self.core.weight)

    def forward(self, input: Tensor) -> Tensor:
        cored: Tensor = self.core(super().forward(input))
        return cored


def put_core_between(model: PeftModel, *, seed: int) -> None:
    """Give every LoRA layer of ``model`` fixed orthonormal A and B, drawn from ``seed``, and a core of zeros that trains.

    Raises
    ------
    FedethosError
        CFG-293 when a layer has fewer dimensions than the rank.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
            if a.shape[0] > min(a.shape[1], b.shape[0]):
                raise FedethosError(
                    "CFG-293", "lora.r is larger than an adapted layer, which has no so many orthonormal directions.", where="lora.r"
                )
            layer.lora_A[_ADAPTER] = _FixedThenCore(_orthonormal(a.shape[1], a.shape[0], generator).T.contiguous())
            layer.lora_B[_ADAPTER].weight = nn.Parameter(_orthonormal(b.shape[0], b.shape[1], generator), requires_grad=False)
    model.eval()


def without_core(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same adapter as a plain pair, B R and A. Other adapters as they are."""
    plain = dict(tensors)
    for layer in layers_of(tensors):
        core = plain.pop(core_name(layer), None)
        if core is not None:
            name_b, _ = lora_names(layer)
            plain[name_b] = (plain[name_b].double() @ core.double()).float()
    return plain


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random [rows, columns] with orthonormal columns, float32."""
    q, _ = torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator))
    orthonormal: Tensor = q.float()
    return orthonormal
