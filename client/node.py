"""A node: one site's records, its privacy plan, and what it answers to each message.

The node trusts nothing in a message: job hash, contract, round and tensor shapes are checked before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import fedethos
from fedethos.client.evaluator import score, tabulate
from fedethos.client.examples import Examples
from fedethos.client.model import NodeModel
from fedethos.client.trainer import StepPlan, train_round
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import Basis, EvaluateReply, Request, SetupReply, SplitName, TrainReply
from fedethos.privacy.engine import ClippingEngine, PlainEngine
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.plan import PrivacyPlan, sampling_rate_of
from fedethos.privacy.randomness import RandomSource

SourceOf = Callable[[int, int], RandomSource]  # (round, step) -> random numbers


@dataclass
class Node:
    """``plan`` is None under ``privacy.mode: none``. ``rounds_trained`` is what the cost so far is computed from."""

    job: Job
    model: NodeModel
    examples: Mapping[SplitName, Examples]
    declared_size: int
    plan: PrivacyPlan | None
    source_of: SourceOf
    rounds_trained: set[int] = field(default_factory=set)

    def setup(self, request: Request) -> SetupReply:
        """Take the frozen adapter tensors (lora_A under ffa) and say which base model is here."""
        self._check(request, rounds=range(1))
        if set(request.arrays) != set(self.model.frozen_names):
            raise _not_negotiated()
        if request.arrays:
            self.model.load(request.arrays)
        return SetupReply(fedethos=fedethos.__version__, model_sha256=self.model.base_sha256)

    def train(self, request: Request) -> TrainReply:
        """One round of local training from the given adapter."""
        self._check(request, rounds=range(1, self.job.federation.rounds + 1))
        self._load(request)
        train_round(
            self.model,
            self.examples["train"],
            self.job.training,
            self._step_plan(),
            self._engine(),
            lambda step: self.source_of(request.round, step),
        )
        self.rounds_trained.add(request.round)
        steps = len(self.rounds_trained) * self.job.training.local_steps
        return TrainReply(
            arrays=self.model.read(),
            basis=Basis.UNPROTECTED if self.plan is None else Basis.CHARGED,
            unit=self.job.unit,
            adjacency=self.job.privacy.adjacency,
            epsilon=None if self.plan is None else self.plan.epsilon_after(steps),
            delta=None if self.plan is None else self.plan.delta,
            steps=steps,
        )

    def evaluate(self, request: Request) -> EvaluateReply:
        """Exact counts, which may leave only when the job says ``privacy.mode: none``."""
        self._check(request, rounds=range(self.job.federation.rounds + 1))
        if self.plan is not None:
            raise FedethosError(
                "PRIV-330",
                "Exact counts were asked for, but the job is private.",
                why="A count without noise is not covered by the job's epsilon.",
            )
        if request.split is None:
            raise FedethosError("SEC-630", "An evaluate message names no split.")
        self._load(request)
        examples = self.examples[request.split]
        return EvaluateReply(tabulate(score(self.model, examples, self._favorable), examples, self.job.data), Basis.UNPROTECTED)

    @property
    def _favorable(self) -> int:
        return self.job.data.label.values.index(self.job.data.label.favorable)

    def _engine(self) -> ClippingEngine:
        return PlainEngine() if self.plan is None else clipping_engine(self.job, self.plan.max_grad_norm)

    def _step_plan(self) -> StepPlan:
        rate = sampling_rate_of(self.job, self.declared_size)
        std = 0.0 if self.plan is None else self.plan.noise_multiplier * self.plan.max_grad_norm
        return StepPlan(sampling_rate=rate, expected_batch_size=rate * self.declared_size, noise_std=std)

    def _load(self, request: Request) -> None:
        if set(request.arrays) != set(self.model.trainable_names):
            raise _not_negotiated()
        self.model.load(request.arrays)

    def _check(self, request: Request, *, rounds: range) -> None:
        if request.job_sha256 != self.job.sha256:
            raise FedethosError(
                "SEC-610",
                "The coordinator asked for another job than the one approved here.",
                why="Nothing was computed.",
                fix="Ask the coordinator for the job file and review it again.",
            )
        if request.round not in rounds:
            raise FedethosError("SEC-631", "A message names a round that the job does not have.", why="Nothing was computed.")


def clipping_engine(job: Job, max_grad_norm: float) -> ClippingEngine:
    """The engine that the job names (``privacy.engine``)."""
    return FusedEngine(max_grad_norm) if job.privacy.engine == "fused" else OpacusEngine(max_grad_norm)


def _not_negotiated() -> FedethosError:
    return FedethosError("SEC-632", "A message carries other tensors than the adapter of this job.", why="Nothing was computed.")
