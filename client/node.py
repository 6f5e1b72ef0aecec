"""A node: one site's records, its privacy plan, and what it answers to each message.

The node trusts nothing in a message: job hash, contract, round and tensor shapes are checked before anything is computed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fedethos
from fedethos.aggregation import WITH_RESIDUAL, is_residual, trained_in
from fedethos.client.asked_counts import check_layout, check_personal, layout_of
from fedethos.client.cell_weights import Floats, accepted_weights, weighed
from fedethos.client.evaluator import TOKENS_PER_PASS, lay_out, predict
from fedethos.client.examples import Examples
from fedethos.client.group_sampling import balanced
from fedethos.client.head_center import center_of
from fedethos.client.head_warmup import head_first
from fedethos.client.memory import TokenBudget
from fedethos.client.model import NodeModel
from fedethos.client.personal import PersonalAdapter, train_personal, unnoticed
from fedethos.client.release import paid_counts, paid_update, stored_counts, stored_update, unprotected_update
from fedethos.client.trainer import Pull, StepPlan, train_round
from fedethos.errors import FedethosError
from fedethos.fairness.layout import Layout
from fedethos.fairness.losses import example_loss
from fedethos.job import Job
from fedethos.messages import Arrays, Basis, EvaluateReply, Request, SetupReply, SplitName, Tables, TrainReply
from fedethos.privacy.clipping import Clipping
from fedethos.privacy.counts import release_counts
from fedethos.privacy.engine import ClippingEngine, PlainEngine
from fedethos.privacy.events import CENTER, TRAIN, TrainingSteps, purpose_of
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.ledger_plan import CommittedPlan
from fedethos.privacy.plan import sampling_rate_of
from fedethos.privacy.randomness import RandomSource

if TYPE_CHECKING:
    from fedethos.client.anchor import Anchor

local_log = logging.getLogger("fedethos.incidents.training")  # the site's own; nothing of it is sent

SourceOf = Callable[..., RandomSource]  # (round, step) for training, (purpose, round) for counts -> random numbers

NOT_FINITE = "round %d: %d times a %s added nothing, because a value of the gradient was not finite"


@dataclass
class Node:
    """``ledger`` is the job's committed plan in the site's ledger, None under ``privacy.mode: none``.

    ``rank``: this site's own under flexlora, None: ``lora.r``. ``personal``: where a job with ``training.personal`` keeps the site's own
    adapter. ``anchor``: of the task.
    """

    job: Job
    model: NodeModel
    examples: Mapping[SplitName, Examples]
    declared_size: int
    ledger: CommittedPlan | None
    source_of: SourceOf
    rank: int | None = None
    personal: PersonalAdapter | None = None
    anchor: Anchor | None = None

    def __post_init__(self) -> None:
        self._training_budget, self._counting_budget = TokenBudget(self.job.training.micro_batch_tokens), TokenBudget(TOKENS_PER_PASS)

    def setup(self, request: Request) -> SetupReply:
        """Take the frozen adapter tensors (lora_A under ffa) and say which base model is here."""
        self._check(request, rounds=range(1))
        if set(request.arrays) != set(self.model.frozen_names):
            raise _not_negotiated()
        if request.arrays:
            self.model.load(request.arrays)
        return SetupReply(fedethos=fedethos.__version__, model_sha256=self.model.base_sha256)

    def train(self, request: Request) -> TrainReply:
        """One round of local training from the given adapter. A round that was answered before is answered with the stored bytes.

        Round 0 is that of the head's centre, where the job has one.
        """
        self._check(request, rounds=range(0 if self.job.center_head else 1, self.job.federation.rounds + 1))
        if (self.personal is None) != (self.job.training.personal is None):
            raise FedethosError(
                "NODE-561",
                "The job keeps a personal adapter at each site, and this node has no folder for it, or the other way round.",
                where="training.personal",
                why="Nothing was computed.",
            )
        if request.round == 0:
            return self._release_center(request)
        weights = accepted_weights(request.cell_weights, self.job)
        if self.ledger is None:
            self._load(request)
            return unprotected_update(self._train(request.round, self._engine(noise=False), weights, noise_multiplier=0.0), self.job)
        if (stored := self.ledger.stored_reply(TRAIN, request.round)) is not None:
            return stored_update(stored)
        self._load(request)
        return self._train_privately(request.round, weights, self.ledger)

    def evaluate(self, request: Request) -> EvaluateReply:
        """Counts of this site's people: noisy ones that the ledger paid for, exact ones under ``privacy.mode: none``.

        Of training people only the score table by group is counted, for the thresholds per group that the job names.
        """
        self._check(request, rounds=range(self.job.federation.rounds + 1))
        if request.split is None:
            raise FedethosError("SEC-630", "An evaluate message names no split.")
        layout = layout_of(request)
        check_layout(request.split, layout, self.job)
        check_personal(request, self.job)
        if self.ledger is None:
            return EvaluateReply(self._exact_counts(request, request.split, layout), Basis.UNPROTECTED)
        if not layout.wanted:
            raise FedethosError(
                "PRIV-330",
                "Exact counts were asked for, but the job is private.",
                why="A count without noise is not covered by the job's epsilon.",
            )
        return self._release_counts(request, request.split, layout, self.ledger)

    def _train_privately(self, round: int, weights: Floats | None, ledger: CommittedPlan) -> TrainReply:
        """Pay, train with the noise that was paid for, record, and only then hand the update over."""
        if ledger.lost(TRAIN, round):
            ledger.replan(TRAIN, self.job.federation.rounds - round + 1)
        receipt = ledger.reserve(TRAIN, round)
        if not isinstance(receipt.event, TrainingSteps):
            raise FedethosError("PRIV-336", "The ledger paid for another mechanism than training.", why="Nothing was computed.")
        noise_multiplier = receipt.event.noise_multiplier
        update = self._train(round, self._engine(noise=True), weights, noise_multiplier=noise_multiplier)
        rate = sampling_rate_of(self.job, self.declared_size)
        performed = TrainingSteps(noise_multiplier=noise_multiplier, sampling_rate=rate, steps=self.job.charged_steps)
        return paid_update(receipt.release(update, event=performed), ledger)

    def _release_center(self, request: Request) -> TrainReply:
        """Pay, add up, add the noise that was paid for, record, and only then hand the mean over."""
        if self.ledger is None:
            raise FedethosError("PRIV-330", "A private mean was asked for, but the job is not private.", why="Nothing was computed.")
        if (stored := self.ledger.stored_reply(CENTER, 0)) is not None:
            return stored_update(stored)
        self._load(request)
        if self.ledger.lost(CENTER, 0):
            self.ledger.replan(CENTER, 1)
        center = center_of(
            self.model,
            self.examples["train"],
            declared_size=self.declared_size,
            tokens=self.job.training.micro_batch_tokens,
            receipt=self.ledger.reserve(CENTER, 0),
            source=self.source_of(CENTER, 0),
        )
        return paid_update(center, self.ledger)

    def _release_counts(self, request: Request, split: SplitName, layout: Layout, ledger: CommittedPlan) -> EvaluateReply:
        """Pay, count, add the noise that was paid for, record, and only then hand the counts over."""
        purpose = purpose_of(layout.wanted, split, personal=request.personal)
        if (stored := ledger.stored_reply(purpose, request.round)) is not None:
            return stored_counts(stored)
        if ledger.lost(purpose, request.round):
            ledger.replan(purpose, self._releases_from(request.round, split))
        receipt = ledger.reserve(purpose, request.round)
        exact = self._exact_counts(request, split, layout)
        return paid_counts(release_counts(exact, receipt, self.source_of(purpose, request.round)), ledger)

    def _releases_from(self, round: int, split: SplitName) -> int:
        """How many releases of this split's counts the plan needs from this round on, at least one."""
        of_baseline = int(self.job.privacy.metrics.baseline and round > 0)  # asked for last
        if split == "validation":
            return (max(1, self.job.federation.rounds - round + 1) if round else 1) + of_baseline
        if split == "train":
            return max(1, sum(due >= round for due in self.job.steering_rounds) + (self.job.fairness.group_constraint is not None))
        return 1 + of_baseline

    def _exact_counts(self, request: Request, split: SplitName, layout: Layout) -> Tables:
        self._load(request)
        if request.personal:
            self.model.load(self.personal_or(request.arrays, request.round))
        examples = self.examples[split]
        predictions = predict(self.model, examples, self.job.data.label.favorable_index, self._counting_budget)
        return lay_out(predictions, examples, self.job, layout, self.source_of(f"decisions/{split}", request.round))

    def personal_or(self, arrays: Arrays, round: int) -> Arrays:
        """This site's personal adapter as it was after ``round``; ``arrays`` where the site had not trained by then."""
        return (self.personal.at(round) if self.personal else None) or arrays

    def _train(self, round: int, engine: ClippingEngine, weights: Floats | None, *, noise_multiplier: float) -> Arrays:
        """Train; what the aggregation rule trains in this round (a head warm-up leaves the adapter in it as it came)."""
        sent = self.model.read()
        examples = balanced(weighed(self.examples["train"], weights, self.job), self.job, self.declared_size)
        loss = example_loss(self.job)
        rule_trains = trained_in(self.job.aggregation, round, self.model.exchanged_names)
        names = head_first(rule_trains, round, warmup_rounds=self.job.head_warmup_rounds)
        plan = self._plan(weights, noise_multiplier)
        with self.model.training(names, rank=self.rank):
            left_out = train_round(
                self.model,
                examples,
                self.job.training,
                plan,
                engine,
                lambda step: self.source_of(round, step),
                loss,
                self._training_budget,
                pull=self._pull(round),
            )
        if left_out:
            local_log.warning(NOT_FINITE, round, left_out, self.job.unit)
        update = self.model.read(rule_trains)
        if self.personal is not None:
            charged = self.job.personal_is_charged
            with nullcontext() if charged or self.ledger is None else unnoticed(round):
                train_personal(
                    self.personal,
                    self.model,
                    training=self.job.training,
                    round=round,
                    sent=sent,
                    names=names,
                    examples=examples,
                    plan=plan if charged else self._plan(weights, noise_multiplier=0.0),
                    engine=self._engine(noise=charged),
                    source_of=lambda step: self.source_of("personal", round, step),
                    loss=loss,
                    pull=self._pull(round),
                )
        return update

    def _pull(self, round: int) -> Pull | None:
        """Towards the base model, with other texts in each step of the run."""
        anchor, before = self.anchor, (round - 1) * self.job.training.local_steps
        return None if anchor is None else lambda step: anchor.gradient(before + step, self.model.parameters)

    def _plan(self, weights: Floats | None, noise_multiplier: float) -> StepPlan:
        largest = 1.0 if weights is None else float(weights.max())
        return StepPlan.of(self.job, declared_size=self.declared_size, noise_multiplier=noise_multiplier, largest_weight=largest)

    def _engine(self, *, noise: bool) -> ClippingEngine:
        return clipping_engine(self.job, self.job.privacy.max_grad_norm) if noise else PlainEngine()

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
    """The engine that the job names (``privacy.engine``, ``privacy.clipping``)."""
    if job.privacy.engine == "fused":
        return FusedEngine(max_grad_norm, clipping_rule(job))
    from fedethos.privacy.opacus_engine import OpacusEngine  # a second of imports, for private jobs that name it

    return OpacusEngine(max_grad_norm, clipping_rule(job))


def clipping_rule(job: Job) -> Clipping:
    """What a step does with a gradient; adaptive clipping is flat within a step."""
    return "automatic" if job.privacy.clipping == "automatic" else "flat"


def _not_negotiated() -> FedethosError:
    return FedethosError("SEC-632", "A message carries other tensors than the adapter of this job.", why="Nothing was computed.")
