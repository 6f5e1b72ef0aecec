"""Canaries: made-up people whose gradients are the worst case of DP-SGD, trained by the trainer and engine under audit.

A canary is a copy of a real record that also lights one input of a *probe*, a linear layer beside the model that adds to its
logits. The input is so loud that the canary's gradient, clipped with all other parameters by the engine under audit, is C long and
lies in its own two probe weights. Canaries are therefore orthogonal, no real record touches their weights, and all they leave
in a released sum is 0 or 1 times C, plus noise. A canary of a job that protects persons is a person with two records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedethos.client.examples import Examples, Indices, Inputs
from fedethos.client.model import NodeModel
from fedethos.privacy.engine import ClippingEngine, Gradients, Parameters

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PROBE = "audit.probe"
_LABELS = 2  # the probe's two rows then get gradients of the same size and opposite sign, whatever the model predicts
_IMPOSSIBLE = -1e4  # logit of every further label of a canary: it has one of the first two, and the others no probability
_NONE = -1  # canary of a real record


class ProbedModel(NodeModel):
    """A node's model with a probe for ``canaries`` canaries, whose weight [2, canaries] is trained as ``audit.probe``."""

    def __init__(self, model: NodeModel, canaries: int) -> None:
        probe = nn.Linear(canaries, _LABELS, bias=False)
        nn.init.zeros_(probe.weight)
        super().__init__(model.model, nn.ModuleList([model.forward, probe]), model.base_sha256)
        self._inner, self._probe = model, probe.to(self.device)
        self.parameters = {**self.parameters, PROBE: next(self._probe.parameters())}

    def outputs(self, batch: dict[str, Tensor]) -> Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != PROBE}
        lit = batch[PROBE].to(self.device)
        added, logits = self._probe(lit), self._inner.outputs(inputs)
        others = logits[:, _LABELS:].masked_fill(lit.any(dim=1, keepdim=True), _IMPOSSIBLE)
        return torch.cat([logits[:, :_LABELS] + added, others], dim=1)


@dataclass(frozen=True)
class ProbedInputs:
    """Inputs of real records and canaries.

    Attributes
    ----------
    rows : int64[n]
        The real record whose input each record has.
    canary : int64[n]
        Which canary it belongs to, or -1.
    """

    inner: Inputs
    rows: Indices
    canary: Indices
    canaries: int
    loudness: float

    @property
    def lengths(self) -> Indices:
        return self.inner.lengths[self.rows]

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        lit = torch.zeros(len(indices), self.canaries)
        canary = self.canary[indices]
        (position,) = np.nonzero(canary != _NONE)
        lit[torch.from_numpy(position), torch.from_numpy(canary[position])] = self.loudness
        return {**self.inner.batch(self.rows[indices]), PROBE: lit}


@dataclass(frozen=True, kw_only=True)
class CanaryDesign:
    """How many canaries there are, of how many records each, and how loud: ``loudness`` is far above C and any real gradient.

    ``weight`` is theirs where records have weights: the largest of any cell, so that they are the worst case.
    """

    canaries: int
    records: int
    loudness: float
    weight: float = 1.0

    def insert(self, examples: Examples, real: Indices, canaries: Indices, label: Indices) -> Examples:
        """Records ``real`` of ``examples``, whose units must be whole, and all records of ``canaries`` with label[canary]."""
        members = np.repeat(canaries, self.records)
        unit, own = np.unique(examples.unit[real], return_inverse=True)
        first = np.arange(len(members)) // self.records + len(unit)
        rows = np.concatenate([real, np.arange(len(members)) % len(examples)])
        copied = real if examples.original is None else examples.original[real]
        return Examples(
            ProbedInputs(examples.inputs, rows, np.concatenate([np.full(len(real), _NONE), members]), self.canaries, self.loudness),
            np.concatenate([examples.label[real], label[members]]),
            {},
            np.concatenate([own, first]),
            None if examples.weight is None else np.concatenate([examples.weight[real], np.full(len(members), self.weight)]),
            np.concatenate([_positions(copied, real), len(real) + np.arange(len(members))]),
        )


def _positions(wanted: Indices, rows: Indices) -> Indices:
    order = np.argsort(rows)
    return order[np.searchsorted(rows, wanted, sorter=order)]


class WatchedEngine:
    """The engine under audit, and a record of what can be seen around it: iterates of the probe, clipping norms, who was sampled."""

    def __init__(self, engine: ClippingEngine) -> None:
        self._engine = engine
        self._norms: list[float] = []
        self._iterates: list[Floats] = []
        self._sampled: list[set[int]] = []

    def attach(self, model: nn.Module, parameters: Parameters) -> None:
        self._probe = parameters[PROBE]
        self._engine.attach(model, parameters)

    def reset(self) -> None:
        self._note_iterate()
        self._norms.append(self.max_grad_norm)
        self._sampled.append(set())
        self._engine.reset()

    def backward(self, per_example_loss: Tensor, unit_ids: Tensor, weights: Tensor | None = None) -> None:
        self._sampled[-1].update(unit_ids.tolist())
        self._engine.backward(per_example_loss, unit_ids, weights)

    def clipped_sum(self) -> Gradients:
        return self._engine.clipped_sum()

    def detach(self) -> None:
        self._note_iterate()
        self._engine.detach()

    @property
    def max_grad_norm(self) -> float:
        return self._engine.max_grad_norm

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        self._engine.max_grad_norm = value

    @property
    def unclipped_balance(self) -> float:
        return self._engine.unclipped_balance

    @property
    def nonfinite_units(self) -> int:
        return self._engine.nonfinite_units

    @property
    def moves(self) -> Floats:
        """What each step took from the probe's weights, in units of the step's clipping norm: float64[steps, 2, canaries]."""
        steps = np.stack(self._iterates[:-1]) - np.stack(self._iterates[1:])
        return steps / np.asarray(self._norms, dtype=np.float64)[:, None, None]

    def sampled(self, units: int) -> Bools:
        """bool[steps, units]"""
        table = np.zeros((len(self._sampled), units), dtype=np.bool_)
        for step, ids in enumerate(self._sampled):
            table[step, sorted(ids)] = True
        return table

    def _note_iterate(self) -> None:
        self._iterates.append(self._probe.detach().cpu().double().numpy().copy())


def towards_label_one(moves: Floats) -> Floats:
    """The part of each move along the gradient direction of a canary with label 1: [..., 2, m] to [..., m]."""
    part: Floats = (moves[..., 0, :] - moves[..., 1, :]) / np.sqrt(_LABELS)
    return part


def untouched(moves: Floats) -> Floats:
    """The part of each move along which no record has a gradient: cross-entropy's sums to zero over the labels."""
    part: Floats = moves.sum(axis=-2) / np.sqrt(_LABELS)
    return part


def joint_norm(tensors: Sequence[Floats]) -> float:
    """L2 norm over all entries of all tensors."""
    return float(np.sqrt(sum(float(np.square(tensor).sum()) for tensor in tensors)))
