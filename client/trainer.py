"""Local training: private SGD steps on one site's records.

Each step samples whole units by Poisson at the public rate, lets the clipping engine sum their bounded gradients, adds
Gaussian noise once, and hands the mean to the optimizer. Without privacy the same loop runs on the plain sum. The optimizer
starts fresh each round. Next on the path: ``privacy/engine.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from fedethos.client.examples import Examples, Indices, micro_batches
from fedethos.client.iterates import IterateAverage
from fedethos.client.memory import TokenBudget
from fedethos.client.model import NodeModel
from fedethos.errors import FedethosError
from fedethos.fairness.losses import ExampleLoss, cross_entropy
from fedethos.job import Job, Training
from fedethos.job_clipping import AdaptiveClipping
from fedethos.messages import Arrays
from fedethos.privacy.adaptive import gradient_noise_multiplier, next_clipbound
from fedethos.privacy.engine import ClippingEngine, Gradients
from fedethos.privacy.plan import expected_batch_size_of, sampling_rate_of
from fedethos.privacy.randomness import RandomSource

SourceOfStep = Callable[[int], RandomSource]
Pull = Callable[[int], Gradients]
"""From the number of a step to a gradient, by name of what trains, that reads no record and is added after the noise."""


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """What one step does; all of it public.

    Attributes
    ----------
    noise_std : float
        noise_multiplier times max_grad_norm times the largest weight of a cell; 0 without privacy.
    adaptive : AdaptiveClipping, optional
        The clipping norm moves after each step, and the noise with it. ``noise_std`` is then that of the first step, with the noise
        multiplier of the gradient (``privacy/adaptive.py``).
    """

    sampling_rate: float
    expected_batch_size: float
    noise_std: float
    adaptive: AdaptiveClipping | None = None

    @classmethod
    def of(cls, job: Job, *, declared_size: int, noise_multiplier: float, largest_weight: float = 1.0) -> StepPlan:
        """The step of a site that declares ``declared_size`` training units. Errors as for ``gradient_noise_multiplier``."""
        adaptive = job.privacy.adaptive if job.privacy.clipping == "adaptive" and noise_multiplier > 0.0 else None
        if adaptive is not None:
            noise_multiplier = gradient_noise_multiplier(noise_multiplier, adaptive.unclipped_num_std)
        return cls(
            sampling_rate=sampling_rate_of(job, declared_size),
            expected_batch_size=expected_batch_size_of(job, declared_size),
            noise_std=noise_multiplier * job.privacy.max_grad_norm * largest_weight,
            adaptive=adaptive,
        )


def train_round(
    model: NodeModel,
    examples: Examples,
    training: Training,
    plan: StepPlan,
    engine: ClippingEngine,
    source_of: SourceOfStep,
    loss: ExampleLoss = cross_entropy,
    budget: TokenBudget | None = None,
    *,
    towards: Arrays | None = None,
    pull: Pull | None = None,
) -> int:
    """Run ``training.local_steps`` steps in place on ``model.parameters``, and leave there what ``training.iterate_average`` says.

    ``budget``: the micro-batch that fitted so far; None: ``training.micro_batch_tokens``. ``towards``: where the proximal term pulls to;
    default: where the round starts. ``pull``: a part of the loss that reads no record. Returns how often a sampled unit added nothing
    because a value of its gradient was not finite: for the site's own eyes.
    """
    budget = budget or TokenBudget(training.micro_batch_tokens)
    optimizer = _optimizer(model, training)
    start = _anchor(model, towards) if training.proximal_mu else {}
    average = IterateAverage(model.parameters, training.iterate_average, training.local_steps)
    model.forward.train()  # only the adapter's own dropout differs between the modes
    chances = examples.chances(plan.sampling_rate)
    left_out = 0
    engine.attach(model.forward, model.parameters)
    try:
        for step in range(training.local_steps):
            source = source_of(step)
            rows = examples.rows_of(np.flatnonzero(source.uniform(examples.units) < chances))
            _accumulate(model, examples, rows, engine, loss, budget, dropout_seed=int(source.uniform(1)[0] * 2**53))
            left_out += engine.nonfinite_units
            sums = _noisy(engine.clipped_sum(), plan.noise_std, source)
            if plan.adaptive is not None:
                plan = _adapt(engine, plan, plan.adaptive, source)
            sums = _with_proximal(sums, model, start, training.proximal_mu * plan.expected_batch_size)
            if pull is not None:
                sums = _with_pull(sums, model, engine, partial(pull, step), plan.expected_batch_size)
            _step(model, optimizer, sums, plan.expected_batch_size)
            average.add()
        average.write()
    finally:
        engine.detach()
        model.forward.eval()
    return left_out


def _accumulate(
    model: NodeModel,
    examples: Examples,
    rows: Indices,
    engine: ClippingEngine,
    loss: ExampleLoss,
    budget: TokenBudget,
    *,
    dropout_seed: int,
) -> None:
    """Leave the bounded gradients of the logical batch ``rows`` in ``engine``."""

    def accumulate(tokens: int) -> None:
        engine.reset()
        with _dropout_seeded_by(dropout_seed, model.device):
            for batch in micro_batches(rows, examples.unit, examples.inputs.lengths, tokens):
                losses = _losses(model, examples, batch, loss)
                engine.backward(losses, _to_device(examples.unit[batch], model), _weights(model, examples, batch))

    def forget_broken_pass() -> None:
        engine.detach()
        engine.attach(model.forward, model.parameters)

    budget.fitted(accumulate, forget_broken_pass)


def _losses(model: NodeModel, examples: Examples, batch: Indices, loss: ExampleLoss) -> torch.Tensor:
    outputs = model.outputs(examples.inputs.batch(batch))
    return loss(outputs, _to_device(examples.label[batch], model), _to_device(examples.originals_within(batch), model))


def _weights(model: NodeModel, examples: Examples, batch: Indices) -> torch.Tensor | None:
    return None if examples.weight is None else torch.from_numpy(examples.weight[batch]).to(model.device)


def _noisy(sums: Gradients, std: float, source: RandomSource) -> Gradients:
    """Add independent N(0, std²) to every coordinate, in the order of the sorted names."""
    if std == 0.0:
        return sums
    noise = torch.from_numpy(source.normal(sum(tensor.numel() for tensor in sums.values())) * std)
    noisy, start = {}, 0
    for name in sorted(sums):
        end = start + sums[name].numel()
        noisy[name] = sums[name] + noise[start:end].reshape(sums[name].shape).to(sums[name].device)
        start = end
    return noisy


def _adapt(engine: ClippingEngine, plan: StepPlan, adaptive: AdaptiveClipping, source: RandomSource) -> StepPlan:
    """Move the engine's clipping norm by the noisy count of this step; the noise of the next step moves in proportion."""
    before = engine.max_grad_norm
    balance = engine.unclipped_balance + adaptive.unclipped_num_std * float(source.normal(1)[0])
    engine.max_grad_norm = next_clipbound(before, balance, adaptive, expected_batch_size=plan.expected_batch_size)
    return replace(plan, noise_std=plan.noise_std * engine.max_grad_norm / before)


def _anchor(model: NodeModel, towards: Arrays | None) -> Gradients:
    """What the proximal term pulls towards, by name of what trains."""
    if towards is None:
        return {name: parameter.detach().clone() for name, parameter in model.parameters.items()}
    return {name: torch.tensor(towards[name]).to(parameter.device) for name, parameter in model.parameters.items()}


def _with_proximal(sums: Gradients, model: NodeModel, start: Gradients, strength: float) -> Gradients:
    """Add strength · (w - w_global), FedProx's gradient (Li et al. 2020, equation 2) and Ditto's; ``strength`` is mu times the batch size.

    Both are known already from noisy steps and the request, so it comes after clipping and noise and costs no privacy.
    """
    if not start:
        return sums
    return {name: total + strength * (model.parameters[name].detach() - start[name]) for name, total in sums.items()}


def _with_pull(
    sums: Gradients, model: NodeModel, engine: ClippingEngine, pull: Callable[[], Gradients], expected_batch_size: float
) -> Gradients:
    """Add the gradient of ``pull``, without dropout. The engine lets no other backward pass through while it is attached."""
    engine.detach()
    model.forward.eval()
    try:
        gradients = pull()
    finally:
        model.forward.train()
        engine.attach(model.forward, model.parameters)
    return {name: total + expected_batch_size * gradients[name].to(total) for name, total in sums.items()}


def _step(model: NodeModel, optimizer: torch.optim.Optimizer, sums: Gradients, expected_batch_size: float) -> None:
    for name, parameter in model.parameters.items():
        parameter.grad = (model.masked(name, sums[name]) / expected_batch_size).to(parameter.dtype)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters.values()):
        raise FedethosError("NODE-510", "Training diverged: an adapter value is not finite.", fix="Lower training.learning_rate.")


def _optimizer(model: NodeModel, training: Training) -> torch.optim.Optimizer:
    head = model.head_names()
    groups = [
        {
            "params": [parameter for name, parameter in model.parameters.items() if name in head],
            "lr": training.head_learning_rate or training.learning_rate,
        },
        {"params": [parameter for name, parameter in model.parameters.items() if name not in head], "lr": training.learning_rate},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, weight_decay=training.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=training.weight_decay)


def _to_device(values: Indices, model: NodeModel) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(model.device)


@contextmanager
def _dropout_seeded_by(seed: int, device: torch.device) -> Iterator[None]:
    """Adapter dropout draws from the step's own source, whatever ran before in this process."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed costs milliseconds: it asks every kind of device
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
