"""Classic mistakes in private training, each seeded through the objects that the real trainer is given: what catches them?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from fedethos.client import trainer
from fedethos.client.examples import Examples, TokenInputs
from fedethos.client.model import NodeModel
from fedethos.client.trainer import StepPlan
from fedethos.data.tokens import TokenTable
from fedethos.errors import FedethosError
from fedethos.job import Lora
from fedethos.job_clipping import AdaptiveClipping
from fedethos.models.adapter import attach_lora
from fedethos.privacy.accounting import Adjacency, noise_multiplier_for
from fedethos.privacy.adaptive import gradient_noise_multiplier
from fedethos.privacy.audit import LARGEST_AUDIT
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.plan import PrivacyPlan
from fedethos.privacy.randomness import SeededSource
from fedethos.privacy.self_check import check_engine, synthetic_classification
from fedethos.simulations.audit import FEWEST_CANARIES, Subject, audit, check_contributions

RECORDS, CANARIES, RATE, CLAIM, DELTA = 60, 1000, 0.2, 2.0, 1e-5
STEPS, STEPS_A_ROUND = 60, 10


@pytest.fixture(scope="module")
def model() -> NodeModel:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=50, num_labels=2)
    adapted = attach_lora(BertForSequenceClassification(config), Lora(r=2, lora_alpha=4), seed=1, freeze_a=True)
    return NodeModel(adapted, adapted, "0" * 64)


def plan_for(adjacency: Adjacency = "add-remove", unit: str = "record") -> PrivacyPlan:
    noise = noise_multiplier_for(epsilon=CLAIM, delta=DELTA, sampling_rate=RATE, steps=STEPS, adjacency=adjacency)
    return PrivacyPlan(
        unit=unit, adjacency=adjacency, delta=DELTA, max_grad_norm=0.5, sampling_rate=RATE,
        expected_batch_size=RATE * RECORDS, steps=STEPS, noise_multiplier=noise,
    )  # fmt: skip


@pytest.fixture
def subject(model: NodeModel) -> Subject:
    """A node that does everything right."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 7, RECORDS)
    table = TokenTable(rng.integers(1, 50, lengths.sum(), dtype=np.int32), np.r_[0, np.cumsum(lengths)], 0)
    plan = plan_for()
    return Subject(
        model=model,
        examples=Examples(TokenInputs(table), rng.integers(0, 2, RECORDS), {}, np.arange(RECORDS)),
        plan=plan,
        step=StepPlan(
            sampling_rate=RATE, expected_batch_size=plan.expected_batch_size, noise_std=plan.noise_multiplier * plan.max_grad_norm
        ),
        make_engine=FusedEngine,
        source_of=lambda step: SeededSource(3, "site", step),
    )


def caught_by(subject: Subject, claim: float = CLAIM) -> set[str]:
    """Names of everything that protests: the engine's self-check at start-up, the audit's bound and its checks."""
    found = audit(subject, claim=claim, canaries=CANARIES, seed=1)
    return ({"bound"} if found.refuted else set()) | {check.name for check in found.failed} | self_check(subject)


def self_check(subject: Subject) -> set[str]:
    try:
        check_engine(subject.make_engine, subject.model.forward, subject.model.parameters, synthetic_classification(50, 2))
    except FedethosError as error:
        return {error.code}
    return set()


# --- the mistakes ---


class OneSource:
    """Passes on a good source; a mistake overrides one method."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._good = SeededSource(3, "site", step)

    def uniform(self, count: int) -> np.ndarray:
        return self._good.uniform(count)

    def normal(self, count: int) -> np.ndarray:
        return self._good.normal(count)

    def random_bytes(self, count: int) -> bytes:
        return self._good.random_bytes(count)


class NoiseInTheFirstStep(OneSource):
    def normal(self, count: int) -> np.ndarray:
        return super().normal(count) if self.step == 0 else np.zeros(count)


class SameNoiseInEachStep(OneSource):
    def normal(self, count: int) -> np.ndarray:
        return SeededSource(3, "site").normal(count)


class Shuffled(OneSource):
    """Deals everybody into batches once an epoch."""

    def uniform(self, count: int) -> np.ndarray:
        batches = round(1 / RATE)
        epoch, batch = divmod(self.step, batches)
        dealt = SeededSource(3, "epoch", epoch).uniform(count).argsort() % batches
        return np.where(dealt == batch, 0.0, 0.999)


class ClipsTheMicroBatch(FusedEngine):
    micro_batch = 0

    def backward(self, per_example_loss, unit_ids, weights=None):
        self.micro_batch += 1
        super().backward(per_example_loss, torch.full_like(unit_ids, self.micro_batch), weights)


class AveragesTheLoss(FusedEngine):
    def backward(self, per_example_loss, unit_ids, weights=None):
        super().backward(per_example_loss / len(per_example_loss), unit_ids, weights)


class WeighsAfterClipping(FusedEngine):
    """Weights of 4, with noise for weights of 1."""

    def backward(self, per_example_loss, unit_ids, weights=None):
        super().backward(per_example_loss, unit_ids, torch.full_like(per_example_loss, 4.0))


class CountsItsUnits(FusedEngine):
    last = 0

    def clipped_sum(self):
        type(self).last = len(self._seen_units)
        return super().clipped_sum()


def right(subject: Subject) -> Subject:
    return subject


def noise_off(subject: Subject) -> Subject:
    return replace(subject, step=replace(subject.step, noise_std=0.0))


def noise_once(subject: Subject) -> Subject:
    return replace(subject, source_of=NoiseInTheFirstStep)


def noise_repeated(subject: Subject) -> Subject:
    return replace(subject, source_of=SameNoiseInEachStep)


def shuffled(subject: Subject) -> Subject:
    return replace(subject, source_of=Shuffled)


def clipping_per_micro_batch(subject: Subject) -> Subject:
    return replace(subject, make_engine=ClipsTheMicroBatch)


def batch_normalised_loss(subject: Subject) -> Subject:
    return replace(subject, make_engine=AveragesTheLoss)


def weights_before_noise_scaling(subject: Subject) -> Subject:
    return replace(subject, make_engine=WeighsAfterClipping)


def noise_divided_twice(subject: Subject) -> Subject:
    return replace(subject, step=replace(subject.step, noise_std=subject.step.noise_std / subject.step.expected_batch_size))


CATCHES: dict[Callable[[Subject], Subject], set[str]] = {
    right: set(),
    noise_off: {"bound", "noise"},
    noise_once: {"bound", "noise"},
    noise_repeated: {"noise"},
    shuffled: {"sampling"},
    clipping_per_micro_batch: {"PRIV-328", "contributions"},
    batch_normalised_loss: {"PRIV-328", "contributions"},
    weights_before_noise_scaling: {"bound", "PRIV-328", "contributions"},
    noise_divided_twice: {"bound", "noise"},
}


@pytest.mark.parametrize("mistake", CATCHES, ids=lambda mistake: mistake.__name__)
def test_each_mistake_is_caught_and_a_right_node_is_not(subject: Subject, mistake: Callable[[Subject], Subject]) -> None:
    assert caught_by(mistake(subject)) == CATCHES[mistake]


def test_a_ledger_that_starts_again_each_round_is_caught(subject: Subject) -> None:
    """What it claims is the epsilon of one round."""
    assert caught_by(subject, claim=subject.plan.epsilon_after(STEPS_A_ROUND)) == {"accounting"}


def test_a_trainer_that_forgets_the_noise_is_caught(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audit goes through the real trainer: a mistake inside of it shows."""
    monkeypatch.setattr(trainer, "_noisy", lambda sums, std, source: sums)
    assert caught_by(subject) == {"bound", "noise"}


def test_a_trainer_that_divides_by_the_real_batch_is_caught(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    step = trainer._step
    monkeypatch.setattr(trainer, "_step", lambda model, optimizer, sums, expected: step(model, optimizer, sums, CountsItsUnits.last or 1))
    assert "contributions" in caught_by(replace(subject, make_engine=CountsItsUnits))


# --- right nodes of other kinds ---


def test_a_right_node_with_opacus_is_not_suspected(subject: Subject) -> None:
    assert caught_by(replace(subject, make_engine=OpacusEngine)) == set()


def test_replacing_one_is_audited_with_opposite_canaries(subject: Subject) -> None:
    plan = plan_for(adjacency="replace-one")
    step = replace(subject.step, noise_std=plan.noise_multiplier * plan.max_grad_norm)
    assert caught_by(replace(subject, plan=plan, step=step)) == set()
    assert "bound" in caught_by(noise_off(replace(subject, plan=plan)))


def test_noise_for_add_remove_does_not_pass_for_replace_one(subject: Subject) -> None:
    assert "noise" in caught_by(replace(subject, plan=plan_for(adjacency="replace-one")))


def weighted(subject: Subject) -> Subject:
    """Cells of weights 0.5 and 3, and a declared one of weight 4 with nobody in it."""
    weight = np.where(np.arange(RECORDS) % 2, 3.0, 0.5)
    step = replace(subject.step, noise_std=4.0 * subject.step.noise_std)
    return replace(subject, examples=replace(subject.examples, weight=weight), step=step, largest_weight=4.0)


def test_weights_after_clipping_are_no_mistake_if_the_noise_follows(subject: Subject) -> None:
    assert caught_by(weighted(subject)) == set()
    assert caught_by(replace(weighted(subject), step=subject.step)) == {"bound", "noise"}


def adaptive(subject: Subject) -> Subject:
    learned = AdaptiveClipping(unclipped_num_std=subject.plan.noise_multiplier)
    noise = gradient_noise_multiplier(subject.plan.noise_multiplier, learned.unclipped_num_std)
    return replace(subject, step=replace(subject.step, noise_std=noise * subject.plan.max_grad_norm, adaptive=learned))


def test_adaptive_clipping_is_no_mistake_if_the_gradient_gets_what_the_count_leaves(subject: Subject) -> None:
    right = adaptive(subject)
    assert caught_by(right) == set()
    assert "noise" in caught_by(replace(right, step=replace(subject.step, adaptive=right.step.adaptive)))


class ClipsEachRecord(FusedEngine):
    rows = 0

    def backward(self, per_example_loss, unit_ids, weights=None):
        own = torch.arange(len(unit_ids)) + self.rows
        self.rows += len(unit_ids)
        super().backward(per_example_loss, own, weights)


def test_a_person_is_a_canary_with_two_records(subject: Subject) -> None:
    """Clipping each record of a person by itself, under a promise about persons, lets a person add twice as much."""
    persons = replace(subject, plan=plan_for(unit="person"), examples=replace(subject.examples, unit=np.arange(RECORDS) // 2))
    assert caught_by(persons) == set()
    assert "contributions" in caught_by(replace(persons, make_engine=ClipsEachRecord))


def test_dropout_is_no_mistake(subject: Subject) -> None:
    lora = Lora(r=2, lora_alpha=4, lora_dropout=0.5)
    torch.manual_seed(0)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=50)
    adapted = attach_lora(BertForSequenceClassification(config), lora, seed=1, freeze_a=False)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.train()
    assert check_contributions(replace(subject, model=NodeModel(adapted, adapted, "0" * 64))).holds
    assert any(module.p == 0.5 for module in adapted.modules() if isinstance(module, torch.nn.Dropout))


def test_an_audit_leaves_the_model_as_it_was(subject: Subject) -> None:
    before = subject.model.read()
    audit(subject, claim=CLAIM, canaries=FEWEST_CANARIES, seed=1)
    for name, values in subject.model.read().items():
        np.testing.assert_array_equal(values, before[name])


@pytest.mark.parametrize("canaries", [FEWEST_CANARIES - 1, LARGEST_AUDIT + 1])
def test_too_few_or_too_many_canaries_are_refused(subject: Subject, canaries: int) -> None:
    with pytest.raises(FedethosError, match="PRIV-343"):
        audit(subject, claim=CLAIM, canaries=canaries, seed=1)
