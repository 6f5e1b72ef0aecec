"""The privacy audit of a node's training: train once with canaries inserted, and see how well their presence can be guessed.

The real trainer and the real engine run all steps of the plan, in one go and with plain SGD: the optimizer and the averaging at
the coordinator work on what is released and cost no privacy. The auditor is the strongest that epsilon promises anything against:
he knows every record, chose the canaries (``simulations/canaries.py``) and sees the noisy sum of every step.

Next on the path: ``privacy/audit.py`` (what the guesses prove), ``privacy/conformance.py`` (the checks beside it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from torch import nn

from fedethos.client.examples import Examples
from fedethos.client.model import NodeModel
from fedethos.client.trainer import SourceOfStep, StepPlan, train_round
from fedethos.errors import FedethosError
from fedethos.job import Training
from fedethos.privacy.adaptive import gradient_noise_multiplier
from fedethos.privacy.audit import LARGEST_AUDIT, Evidence, Floats, log_likelihood_ratios, most_provable, weigh
from fedethos.privacy.conformance import Check, check_accounting, check_noise, check_sampling
from fedethos.privacy.engine import ClippingEngine
from fedethos.privacy.plan import PrivacyPlan
from fedethos.privacy.randomness import keyed_generator
from fedethos.simulations.canaries import CanaryDesign, ProbedModel, WatchedEngine, joint_norm, towards_label_one, untouched

FEWEST_CANARIES = 100

_LOUDNESS = 1e4  # of a canary's input, in units of C (or 1): its own weights then hold all but 1e-3 of its gradient
_NUDGE = 1e-3  # how far one canary moves its own logit, so that canaries stay as loud as they are to the last step
_COMPARED = 4  # real units, and canaries, in the check of single contributions
_UNCLIPPED = 1e6  # a clipping norm that no real gradient reaches
_TOLERANCE = 1e-3  # relative, for float32 and reduced-precision products on a GPU


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a node trains with.

    Attributes
    ----------
    plan : PrivacyPlan
        What is claimed: all its ``steps`` are trained.
    step : StepPlan
        What is done in a step.
    make_engine : callable
        From the clipping norm C to an engine that is not attached.
    largest_weight : float
        Of all declared cells; 1 where records have no weights.
    """

    model: NodeModel
    examples: Examples
    plan: PrivacyPlan
    step: StepPlan
    make_engine: Callable[[float], ClippingEngine]
    source_of: SourceOfStep
    largest_weight: float = 1.0

    @property
    def gradient_noise(self) -> float:
        """The planned noise on the gradients' sum, in units of the clipping norm times the largest weight."""
        if self.step.adaptive is None:
            return self.plan.noise_multiplier
        return gradient_noise_multiplier(self.plan.noise_multiplier, self.step.adaptive.unclipped_num_std)

    @property
    def largest_norm(self) -> float:
        """The largest clipping norm of any step."""
        return self.plan.max_grad_norm if self.step.adaptive is None else self.step.adaptive.max_clipbound


@dataclass(frozen=True, kw_only=True)
class Audit:
    """``claim``: epsilon under test, at ``plan.delta``. ``most_provable``: the bound if every guess had been right."""

    claim: float
    plan: PrivacyPlan
    evidence: Evidence
    most_provable: float
    checks: tuple[Check, ...]

    @property
    def refuted(self) -> bool:
        """Whether more privacy was lost than claimed, beyond the evidence's confidence."""
        return self.evidence.epsilon > self.claim

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.holds)


def audit(subject: Subject, *, claim: float, canaries: int, seed: int, confidence: float = 0.95) -> Audit:
    """Audit all steps of ``subject.plan`` against ``claim``. The subject's model is left as it was.

    Raises
    ------
    FedethosError
        PRIV-343 for too few or too many canaries.
    """
    if not FEWEST_CANARIES <= canaries <= LARGEST_AUDIT:
        raise FedethosError("PRIV-343", f"An audit takes {FEWEST_CANARIES} to {LARGEST_AUDIT} canaries.", where="--canaries")
    plan = subject.plan
    took_part = keyed_generator(seed, "canaries").random(canaries) < 0.5
    watched, units = _train_with(subject, took_part)
    scale = subject.step.expected_batch_size / (_learning_rate(subject) * subject.largest_weight)
    released = watched.moves * scale  # noisy sums, in units of what one unit may add
    scores = log_likelihood_ratios(
        towards_label_one(released),
        noise_multiplier=subject.gradient_noise,
        sampling_rate=plan.sampling_rate,
        adjacency=plan.adjacency,
    )
    return Audit(
        claim=claim,
        plan=plan,
        evidence=weigh(scores, took_part, delta=plan.delta, confidence=confidence),
        most_provable=most_provable(canaries, delta=plan.delta, confidence=confidence),
        checks=(
            check_accounting(plan, steps=len(released), claim=claim),
            check_contributions(subject),
            check_noise(untouched(released), noise_multiplier=subject.gradient_noise),
            check_sampling(watched.sampled(units), sampling_rate=plan.sampling_rate),
        ),
    )


def check_contributions(subject: Subject) -> Check:
    """Whether a step without noise adds up what each unit gives when it is alone, at most C each, or C times the largest weight.

    It holds for no trainer that lets a unit's part depend on the others of its batch: by a loss averaged over the batch, by
    clipping several units together, or by dividing by the number of units that happened to be there.
    """
    bound = subject.plan.max_grad_norm
    most = bound * subject.largest_weight
    with _dropout_off(subject.model.model):
        unclipped, _ = _adds_up(subject, _UNCLIPPED, canaries=0)
        clipped, largest = _adds_up(subject, bound, canaries=_COMPARED)
    says = f"units add up without seeing each other, and none adds more than {most:g}"
    return Check("contributions", unclipped and clipped and largest <= most * (1 + _TOLERANCE), says)


def _train_with(subject: Subject, took_part: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[WatchedEngine, int]:
    """All steps of the plan, with those canaries that take part; and the number of units that were there."""
    everybody = np.arange(len(took_part))
    replaced = subject.plan.adjacency == "replace-one"  # by a canary with label 0, whose gradient is the opposite
    examples = _design(subject, len(took_part)).insert(
        subject.examples,
        np.arange(len(subject.examples)),
        everybody if replaced else np.flatnonzero(took_part),
        took_part.astype(np.int64) if replaced else np.ones_like(everybody),
    )
    watched = WatchedEngine(subject.make_engine(subject.plan.max_grad_norm))
    model, before = ProbedModel(subject.model, len(took_part)), subject.model.read()
    try:
        train_round(model, examples, _plain_sgd(subject.plan.steps, _learning_rate(subject)), subject.step, watched, subject.source_of)
    finally:
        subject.model.load(before)
    return watched, examples.units


def _adds_up(subject: Subject, bound: float, *, canaries: int) -> tuple[bool, float]:
    """Whether the step of all compared units is the sum of their own steps, and the norm of the largest of these."""
    units = np.unique(subject.examples.unit)[:_COMPARED]
    single = [(np.flatnonzero(subject.examples.unit == unit), np.arange(0)) for unit in units]
    single += [(np.arange(0), np.array([canary])) for canary in range(canaries)]
    alone = [_noiseless_step(subject, bound, *members) for members in single]
    together = _noiseless_step(subject, bound, np.concatenate([real for real, _ in single]), np.arange(canaries))
    difference = [whole - sum(parts) for whole, *parts in zip(together, *alone, strict=True)]
    norms = [joint_norm(step) for step in alone]
    return joint_norm(difference) <= _TOLERANCE * sum(norms), max(norms)


def _noiseless_step(subject: Subject, bound: float, real: np.ndarray, canaries: np.ndarray) -> list[Floats]:
    """What one step of these records, all sampled, takes from each trainable tensor: their clipped sum, and nothing else."""
    examples = _design(subject, _COMPARED).insert(subject.examples, real, canaries, np.ones(_COMPARED, dtype=np.int64))
    model, before = ProbedModel(subject.model, _COMPARED), subject.model.read()
    everybody = StepPlan(sampling_rate=1.0, expected_batch_size=1.0, noise_std=0.0)
    start = _values(model)
    try:
        engine = subject.make_engine(bound)
        train_round(model, examples, _plain_sgd(1, 1.0), everybody, engine, subject.source_of)
        return [old - new for old, new in zip(start, _values(model), strict=True)]
    finally:
        subject.model.load(before)


@contextmanager
def _dropout_off(model: nn.Module) -> Iterator[None]:
    """A batch draws other masks than its records do one by one; each unit's part stays bounded whatever the mask."""
    rates = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout)]
    for module, _ in rates:
        module.p = 0.0
    try:
        yield
    finally:
        for module, rate in rates:
            module.p = rate


def _values(model: NodeModel) -> list[Floats]:
    return [model.parameters[name].detach().cpu().double().numpy().copy() for name in sorted(model.parameters)]


def _design(subject: Subject, canaries: int) -> CanaryDesign:
    records = 2 if subject.plan.unit == "person" else 1
    return CanaryDesign(canaries=canaries, records=records, loudness=_loudness(subject), weight=subject.largest_weight)


def _loudness(subject: Subject) -> float:
    return _LOUDNESS * max(1.0, subject.largest_norm)


def _learning_rate(subject: Subject) -> float:
    return _NUDGE * subject.step.expected_batch_size / (_loudness(subject) * subject.largest_norm * subject.largest_weight)


def _plain_sgd(steps: int, learning_rate: float) -> Training:
    return Training(local_steps=steps, optimizer="sgd", learning_rate=learning_rate)
