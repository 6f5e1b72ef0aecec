"""Does the clipping engine tell the truth on this model? Asked once, before the first private gradient is paid for.

On a copy, with synthetic records and without noise: the engine's sum must equal the sum that plain autograd gives when every
record is alone in its batch, unclipped and clipped, and every trained tensor must move. The copy's zero factors are drawn at
random first: while B is zero, A's gradient is zero whatever the engine does, and with noise on everything moves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedethos.errors import FedethosError
from fedethos.losses import per_example_cross_entropy
from fedethos.privacy.clipping import AUTOMATIC_GAMMA, Clipping
from fedethos.privacy.engine import ClippingEngine, Gradients, Parameters

SyntheticLoss = Callable[[nn.Module, Tensor], Tensor]
"""``loss(model, rows)``: the losses, float[len(rows)], of the synthetic records with these row numbers."""

_ROWS = 4
_ZERO_FACTOR_STD = 0.05


def synthetic_classification(vocabulary: int, labels: int, *, length: int = 12, seed: int = 0) -> SyntheticLoss:
    """Random token sequences of different lengths with random labels, for a model called as Hugging Face classifiers are."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (_ROWS, length), generator=generator)
    mask = (torch.arange(length) < torch.randint(2, length + 1, (_ROWS, 1), generator=generator)).long()
    targets = torch.randint(labels, (_ROWS,), generator=generator)

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        device = next(model.parameters()).device
        logits = model(input_ids=tokens[rows].to(device), attention_mask=mask[rows].to(device)).logits
        return per_example_cross_entropy(logits, targets[rows].to(device))

    return loss


def synthetic_features(features: int, labels: int, *, seed: int = 0) -> SyntheticLoss:
    """Normal features with random labels, for a model called with ``features=``."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(_ROWS, features, generator=generator)
    targets = torch.randint(labels, (_ROWS,), generator=generator)

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        device = next(model.parameters()).device
        return per_example_cross_entropy(model(features=inputs[rows].to(device)), targets[rows].to(device))

    return loss


def check_engine(
    make_engine: Callable[[float], ClippingEngine],
    model: nn.Module,
    parameters: Parameters,
    loss: SyntheticLoss,
    *,
    clipping: Clipping = "flat",
    seed: int = 0,
) -> None:
    """Compare an engine with plain autograd on a copy of ``model`` that shares the frozen weights.

    Parameters
    ----------
    make_engine : callable
        From the clipping norm C to an engine that is not attached.
    model, parameters
        As for ``ClippingEngine.attach``; neither is changed.
    loss : SyntheticLoss
        Losses of at least four synthetic records, see ``synthetic_classification`` and ``synthetic_features``.
    clipping : "flat" or "automatic"
        What the engine is expected to do.

    Raises
    ------
    FedethosError
        PRIV-328 when a trained tensor has no gradient or a sum differs; what ``attach`` and ``backward`` raise.
    """
    twin, trained = _twin(model, parameters, seed)
    alone = [_gradient(twin, trained, loss, row) for row in range(_ROWS)]
    for name in trained:
        if not all(bool(gradient[name].any()) for gradient in alone):
            raise _failed(name, "a record gives it no gradient, so it does not train")
    norms = [float(torch.stack([part.square().sum() for part in gradient.values()]).sum().sqrt()) for gradient in alone]
    tolerance = 1e-3 if all(parameter.dtype == torch.float32 for parameter in model.parameters()) else 5e-2
    for bound in (1e3 * max(norms), 0.5 * min(norms)):  # nothing is clipped, everything is clipped
        factors = [bound / (norm + AUTOMATIC_GAMMA) if clipping == "automatic" else min(1.0, bound / norm) for norm in norms]
        truth = {name: _weighted_sum([gradient[name] for gradient in alone], factors) for name in trained}
        _compare(_engine_sum(make_engine(bound), twin, trained, loss), truth, tolerance)


def _twin(model: nn.Module, parameters: Parameters, seed: int) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    frozen = [parameter for path, parameter in model.named_parameters() if not parameter.requires_grad and "lora_" not in path]
    twin = copy.deepcopy(model, memo={id(tensor): tensor for tensor in (*frozen, *model.buffers())}).eval()
    paths = {id(parameter): path for path, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    shared = {id(parameter) for parameter in frozen}
    for parameter in twin.parameters():
        if id(parameter) not in shared and not bool(parameter.any()):
            with torch.no_grad():
                parameter.copy_(_ZERO_FACTOR_STD * torch.randn(parameter.shape, generator=generator))
    return twin, {name: twin.get_parameter(paths[id(parameter)]) for name, parameter in parameters.items()}


def _gradient(twin: nn.Module, trained: dict[str, nn.Parameter], loss: SyntheticLoss, row: int) -> Gradients:
    """Plain autograd's gradient of one record that is alone in its batch, float64."""
    record = loss(twin, torch.tensor([row])).sum()
    gradients = torch.autograd.grad(record, list(trained.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter).double() if gradient is None else gradient.double()
        for (name, parameter), gradient in zip(trained.items(), gradients, strict=True)
    }


def _engine_sum(engine: ClippingEngine, twin: nn.Module, trained: dict[str, nn.Parameter], loss: SyntheticLoss) -> Gradients:
    engine.attach(twin, trained)
    try:
        engine.reset()
        rows = torch.arange(_ROWS)
        engine.backward(loss(twin, rows), rows)
        return {name: total.clone() for name, total in engine.clipped_sum().items()}
    finally:
        engine.detach()


def _weighted_sum(gradients: list[Tensor], factors: list[float]) -> Tensor:
    return torch.stack([gradient * factor for gradient, factor in zip(gradients, factors, strict=True)]).sum(0)


def _compare(sums: Gradients, truth: Gradients, tolerance: float) -> None:
    joint = torch.stack([want.norm() for want in truth.values()]).norm()
    for name, want in truth.items():
        error = (sums[name] - want).norm()
        if not bool(error <= tolerance * want.norm() + 1e-6 * joint):
            raise _failed(name, "the engine's sum differs from plain autograd's, record by record")


def _failed(name: str, reason: str) -> FedethosError:
    return FedethosError(
        "PRIV-328",
        f"The clipping engine failed its self-check: {reason}.",
        where=name,
        why="Its privacy bound would not hold on this model.",
        fix="Adapt other layers (lora.target_modules), or use another engine or base model.",
    )
