"""A node: one site's records, its privacy plan, and what it answers to each message.

The node trusts nothing in a message: job hash, contract, round and tensor shapes are checked before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import fedethos
from fedethos.aggregation import WITH_RESIDUAL, is_residual, trained_in
from fedethos.client.evaluator import score, tabulate
from fedethos.client.examples import Examples
from fedethos.client.model import NodeModel
from fedethos.client.release import paid_counts, paid_update, stored_counts, stored_update, unprotected_update
from fedethos.client.trainer import StepPlan, train_round
from fedethos.errors import FedethosError
from fedethos.fairness.layout import Layout
from fedethos.job import Job
from fedethos.messages import Basis, EvaluateReply, Request, SetupReply, SplitName, Tables, TrainReply
from fedethos.privacy.counts import purpose_of, release_counts
from fedethos.privacy.engine import ClippingEngine, PlainEngine
from fedethos.privacy.events import TrainingSteps
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.ledger_plan import CommittedPlan
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.plan import sampling_rate_of
from fedethos.privacy.planner import TRAIN
from fedethos.privacy.randomness import RandomSource

SourceOf = Callable[..., RandomSource]  # (round, step) for training, (purpose, round) for counts -> random numbers


@dataclass
class Node:
    """``ledger`` is the job's committed plan in the site's ledger, None under ``privacy.mode: none``.

    ``rank``: this site's own under flexlora, None: ``lora.r``.
    """

    job: Job
    model: NodeModel
    examples: Mapping[SplitName, Examples]
    declared_size: int
    ledger: CommittedPlan | None
    source_of: SourceOf
    rank: int | None = None

    def setup(self, request: Request) -> SetupReply:
        """Take the frozen adapter tensors (lora_A under ffa) and say which base model is here."""
        self._check(request, rounds=range(1))
        if set(request.arrays) != set(self.model.frozen_names):
            raise _not_negotiated()
        if request.arrays:
            self.model.load(request.arrays)
        return SetupReply(fedethos=fedethos.__version__, model_sha256=self.model.base_sha256)

    def train(self, request: Request) -> TrainReply:
        """One round of local training from the given adapter. A round that was answered before is answered with the stored bytes."""
        self._check(request, rounds=range(1, self.job.federation.rounds + 1))
        if self.ledger is None:
            self._load(request)
            self._train(request.round, PlainEngine(), noise_multiplier=0.0)
            return unprotected_update(self.model.read_trained(), self.job)
        if (stored := self.ledger.stored_reply(TRAIN, request.round)) is not None:
            return stored_update(stored)
        self._load(request)
        return self._train_privately(request.round, self.ledger)

    def evaluate(self, request: Request) -> EvaluateReply:
        """Counts of this site's validation or test people: noisy ones that the ledger paid for, exact ones under ``privacy.mode: none``."""
        self._check(request, rounds=range(self.job.federation.rounds + 1))
        if request.split is None:
            raise FedethosError("SEC-630", "An evaluate message names no split.")
        if self.ledger is None:
            return EvaluateReply(self._exact_counts(request, request.split), Basis.UNPROTECTED)
        if request.cuts is None and request.edge is None:
            raise FedethosError(
                "PRIV-330",
                "Exact counts were asked for, but the job is private.",
                why="A count without noise is not covered by the job's epsilon.",
            )
        return self._release_counts(request, request.split, Layout(request.cuts, request.edge), self.ledger)

    def _train_privately(self, round: int, ledger: CommittedPlan) -> TrainReply:
        """Pay, train with the noise that was paid for, record, and only then hand the update over."""
        training, privacy = self.job.training, self.job.privacy
        if ledger.lost(TRAIN, round):
            ledger.replan(TRAIN, self.job.federation.rounds - round + 1)
        receipt = ledger.reserve(TRAIN, round)
        if not isinstance(receipt.event, TrainingSteps):
            raise FedethosError("PRIV-336", "The ledger paid for another mechanism than training.", why="Nothing was computed.")
        noise_multiplier = receipt.event.noise_multiplier
        self._train(round, clipping_engine(self.job, privacy.max_grad_norm), noise_multiplier=noise_multiplier)
        rate = sampling_rate_of(self.job, self.declared_size)
        performed = TrainingSteps(noise_multiplier=noise_multiplier, sampling_rate=rate, steps=training.local_steps)
        return paid_update(receipt.release(self.model.read_trained(), event=performed), ledger)

    def _release_counts(self, request: Request, split: SplitName, layout: Layout, ledger: CommittedPlan) -> EvaluateReply:
        """Pay, count, add the noise that was paid for, record, and only then hand the counts over."""
        purpose = purpose_of(layout.wanted, split)
        if (stored := ledger.stored_reply(purpose, request.round)) is not None:
            return stored_counts(stored)
        if ledger.lost(purpose, request.round):
            ledger.replan(purpose, 1 if split == "test" else max(1, self.job.federation.rounds - request.round + 1))
        receipt = ledger.reserve(purpose, request.round)
        exact = layout.tables(self._exact_counts(request, split))
        return paid_counts(release_counts(exact, receipt, self.source_of(purpose, request.round)), ledger)

    def _exact_counts(self, request: Request, split: SplitName) -> Tables:
        self._load(request)
        examples = self.examples[split]
        return tabulate(score(self.model, examples, self.job.data.label.favorable_index), examples, self.job.data)

    def _train(self, round: int, engine: ClippingEngine, *, noise_multiplier: float) -> None:
        self.model.train_only(trained_in(self.job.aggregation, round, self.model.exchanged_names), rank=self.rank)
        plan = StepPlan.of(self.job, declared_size=self.declared_size, noise_multiplier=noise_multiplier)
        train_round(self.model, self.examples["train"], self.job.training, plan, engine, lambda step: self.source_of(round, step))

    def _load(self, request: Request) -> None:
        allowed = self.job.aggregation in WITH_RESIDUAL
        if {name for name in request.arrays if not (allowed and is_residual(name))} != set(self.model.exchanged_names):
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
