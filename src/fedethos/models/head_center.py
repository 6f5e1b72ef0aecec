"""A centre μ of what the classification head reads: the head computes W z + b of z = 2 (x - μ) in place of W x + b.

Pooled states of an encoder share most of their length: of MiniLM's norm of 1.39 over short texts, 1.27 is a mean common to all. A
head's gradient is an outer product with its input, so clipping per unit then acts on what all records share, and noise is measured
against it. Subtracting a constant changes no function that the head can learn, only the coordinates that it is learnt in
(LeCun et al. 1998, "Efficient BackProp", section 4.3). μ is data: ``privacy/center.py`` releases it, once.

An exported adapter has μ and the factor folded into the head, so that plain PEFT computes the same logits. Next: ``client/model.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor, nn

from fedethos.aggregation import HEAD_CENTER
from fedethos.errors import FedethosError
from fedethos.models.adapter import named_adapter_parameters
from fedethos.models.base import head_modules
from fedethos.models.tensors import Arrays

FACTOR = 2.0  # from one seed (docs/benchmarks.md, "Small data"); a power of two, so that folding it in and out again is exact

_PROBES, _LONGEST_PROBE = 64, 32


class HeadCenter:
    """Sits before the first linear layer of a head, whichever copy of the model calls it.

    Attributes
    ----------
    value : nn.Parameter float32[h]
        μ. It never trains. At the start it is the mean over random token sequences: public, as ``bound`` is.
    bound : float
        The largest distance of such a sequence from their mean: what a person's part in the release of μ is clipped to.
    """

    def __init__(self, head: nn.Linear, reference: Tensor, bound: float, *, weight_name: str, bias_name: str) -> None:
        self.value = nn.Parameter(reference.clone(), requires_grad=False)
        self.bound = bound
        self._head = head
        self._weight_name, self._bias_name = weight_name, bias_name
        head.register_forward_pre_hook(self._centered)

    @contextmanager
    def watched(self) -> Iterator[list[Tensor]]:
        """Inside, the list collects what the head is given, float[b, h] a call, before it is centred."""
        seen: list[Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()), prepend=True)
        try:
            yield seen
        finally:
            hook.remove()

    def folded(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adapter tensors of a head that computes the same from x itself: 2 W and b - 2 W μ."""
        weight, bias = tensors[self._weight_name].double(), tensors[self._bias_name].double()
        shift = FACTOR * weight @ self.value.detach().cpu().double()
        return {**tensors, self._weight_name: (FACTOR * weight).float(), self._bias_name: (bias - shift).float()}

    def unfolded(self, exported: Arrays) -> dict[str, npt.NDArray[np.float32]]:
        """The reverse for tensors that ``folded`` gave: a head that computes the same around μ = 0."""
        own = {self._weight_name: exported[self._weight_name] / np.float32(FACTOR), HEAD_CENTER: np.zeros(self.value.shape, np.float32)}
        return {**exported, **own}

    def _centered(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (FACTOR * (inputs[0] - self.value), *inputs[1:])


def center_head(model: PeftModel) -> HeadCenter:
    """Put a centre before the head of ``model``, from random token sequences that are the same on every machine.

    Raises
    ------
    FedethosError
        MODEL-422 when the head does not begin with a linear layer that has a bias, such as that of decoders.
    """
    with torch.no_grad():
        head, inputs = _first_call(model)
    if head is None or head.bias is None or inputs.dim() != 2:
        raise FedethosError(
            "MODEL-422",
            "The head of this model does not begin with a linear layer that has a bias, so that its input cannot be centred.",
            where="training.center_head",
            why="An exported adapter could not hold the centre.",
            fix="Write training.center_head: off.",
        )
    names = {id(parameter): name for name, parameter in named_adapter_parameters(model).items()}
    reference = inputs.double().mean(0)
    bound = float((inputs.double() - reference).norm(dim=1).max())
    return HeadCenter(head, reference.to(inputs), bound, weight_name=names[id(head.weight)], bias_name=names[id(head.bias)])


def _first_call(model: PeftModel) -> tuple[nn.Linear | None, Tensor]:
    """The linear layer of the head that is called first, and what it is given for the random sequences, float32[64, h]."""
    seen: list[tuple[nn.Linear, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Linear):
            seen.append((module, inputs[0].detach()))

    base = model.get_base_model()
    linear = [part for name in head_modules(base) for part in base.get_submodule(name).modules() if isinstance(part, nn.Linear)]
    hooks = [part.register_forward_pre_hook(note) for part in linear]
    try:
        model(**_random_sequences(model))
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0] if seen else (None, torch.empty(0))


def _random_sequences(model: PeftModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    longest = min(_LONGEST_PROBE, model.config.max_position_embeddings // 2)
    tokens = torch.randint(model.config.vocab_size, (_PROBES, longest), generator=generator)
    lengths = torch.randint(longest // 8, longest + 1, (_PROBES, 1), generator=generator)
    mask = (torch.arange(longest) < lengths).long()
    return {"input_ids": tokens.to(model.device), "attention_mask": mask.to(model.device)}
