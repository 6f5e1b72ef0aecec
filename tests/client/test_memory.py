"""Out of memory: smaller micro-batches, the same step."""

import numpy as np
import pytest
import torch
from tests.client.test_trainer import examples
from transformers import BertConfig, BertForSequenceClassification

from fedethos.client.evaluator import predict
from fedethos.client.memory import TokenBudget, is_out_of_memory
from fedethos.client.model import NodeModel
from fedethos.client.trainer import StepPlan, train_round
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.job import Lora, Training
from fedethos.messages import Request
from fedethos.models.adapter import attach_lora, recompute_activations
from fedethos.privacy.engine import PlainEngine
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.randomness import SeededSource
from fedethos.progress import Silent
from fedethos.simulations.virtual_sites import open_federation

PLAN = StepPlan(sampling_rate=0.9, expected_batch_size=10.0, noise_std=0.5)
TRAINING = Training(local_steps=3, batch_size=10, learning_rate=1.0, optimizer="sgd", micro_batch_tokens=64)


class Small(torch.nn.Module):
    """A machine whose memory ends at ``rows`` rows: in the forward pass, or after it in the backward pass."""

    def __init__(self, inner: torch.nn.Module, rows: int, *, backward: bool) -> None:
        super().__init__()
        self.inner, self.rows, self.backward_fails, self.largest = inner, rows, backward, 0

    def forward(self, **batch: torch.Tensor) -> object:
        count = len(batch["input_ids"])
        output = self.inner(**batch)
        if count > self.rows:
            if not self.backward_fails:
                raise torch.OutOfMemoryError("CUDA out of memory")
            output.logits.register_hook(_out_of_memory)
        else:
            self.largest = max(self.largest, count)
        return output


def _out_of_memory(gradient: torch.Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def node_model(rows: int | None, *, backward: bool = False) -> NodeModel:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=50, num_labels=2)
    adapted = attach_lora(BertForSequenceClassification(config), Lora(r=4, lora_dropout=0.1), seed=1, freeze_a=False)
    return NodeModel(adapted, adapted if rows is None else Small(adapted, rows, backward=backward), "0" * 64)


def trained(model: NodeModel, engine: FusedEngine | OpacusEngine | PlainEngine, budget: TokenBudget | None = None) -> dict[str, np.ndarray]:
    train_round(model, examples(), TRAINING, PLAN, engine, lambda step: SeededSource(5, "site", 1, step), budget=budget)
    return model.read()


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("make", [lambda: FusedEngine(1.0), lambda: OpacusEngine(1.0), PlainEngine], ids=["fused", "opacus", "plain"])
def test_a_round_with_too_little_memory_ends_like_one_with_enough(make, backward: bool) -> None:
    """Same sampled people, same noise; only dropout, which is drawn for each pass, is off here."""
    small, roomy = node_model(2, backward=backward), node_model(None)
    for model in (small, roomy):
        for module in model.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    budget = TokenBudget(64)
    cramped, plenty = trained(small, make(), budget), trained(roomy, make())
    assert all(np.allclose(cramped[name], plenty[name], atol=2e-6) for name in plenty)
    assert budget.tokens < 64 and small.forward.largest == 2


def test_what_fitted_is_kept_for_the_next_round() -> None:
    model, budget = node_model(3), TokenBudget(64)
    trained(model, FusedEngine(1.0), budget)
    tokens = budget.tokens
    trained(model, FusedEngine(1.0), budget)
    assert budget.tokens == tokens < 64


def test_one_unit_that_does_not_fit_is_refused() -> None:
    with pytest.raises(FedethosError, match="NODE-541"):
        trained(node_model(0), FusedEngine(1.0))


def test_predictions_with_too_little_memory_are_the_same() -> None:
    small, roomy = node_model(1).forward.eval(), node_model(None)
    cramped = node_model(1)
    cramped.forward = small
    assert np.allclose(predict(cramped, examples(), 1).log_odds, predict(roomy, examples(), 1).log_odds, atol=1e-6)


def test_the_allocators_of_both_kinds_of_device_are_understood() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(failure.value) and not isinstance(failure.value, torch.OutOfMemoryError)
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(ValueError("x"))


def test_another_failure_is_not_retried() -> None:
    calls = []

    def work(tokens: int) -> None:
        calls.append(tokens)
        raise ValueError("x")

    with pytest.raises(ValueError):
        TokenBudget(8).fitted(work)
    assert calls == [8]


@pytest.mark.parametrize("make", [lambda: FusedEngine(1.0), PlainEngine], ids=["fused", "plain"])
def test_gradient_checkpointing_gives_the_same_round_from_fewer_activations(make) -> None:
    plain, checkpointed = deep_model(), deep_model()
    recompute_activations(checkpointed.model)
    kept, recomputed = saved_bytes(plain), saved_bytes(checkpointed)
    assert recomputed < 0.6 * kept
    ours, theirs = trained(checkpointed, make()), trained(plain, make())
    assert all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def deep_model() -> NodeModel:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=64, vocab_size=50, num_labels=2)
    adapted = attach_lora(BertForSequenceClassification(config), Lora(r=4), seed=1, freeze_a=False)
    return NodeModel(adapted, adapted, "0" * 64)


def saved_bytes(model: NodeModel) -> int:
    """What autograd keeps from the forward pass for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    model.forward.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.logits(examples().inputs.batch(np.arange(12)))
    return sum(kept.values())


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_a_private_job_with_gradient_checkpointing_trains_the_same(write_job, tmp_path, cache: str) -> None:
    """The whole way: engine check before training, with and without cached layers below."""
    updates = []
    for checkpointing in (False, True):
        job = load_job(write_job(training={"gradient_checkpointing": checkpointing, "cache_frozen_prefix": cache}))
        ledger = tmp_path / f"{checkpointing}.sqlite"
        with open_federation(job, base=tmp_path, scratch=tmp_path, ledger=ledger, observer=Silent(), run="r", only=1) as federation:
            layers = [module for module in federation.model.forward.modules() if getattr(module, "gradient_checkpointing", False)]
            assert bool(layers) == checkpointing
            node = federation.nodes[1]
            asked = Request(job_sha256=job.sha256, run="r", round=1, attempt=0, arrays=node.model.read())
            updates.append(node.train(asked).arrays)
    assert all(np.allclose(updates[0][name], updates[1][name], atol=1e-6) for name in updates[0])


def test_opacus_hooks_are_refused_under_gradient_checkpointing(write_job) -> None:
    with pytest.raises(FedethosError, match="CFG-252"):
        load_job(write_job(training={"gradient_checkpointing": True}, privacy={"engine": "opacus"}))
