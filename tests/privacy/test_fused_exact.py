"""The fused engine against a loop over single examples, and against Opacus' hooks."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from fedethos.privacy.engine import PlainEngine
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine

ROWS = 8


def engine_sum(tiny, engine, unit_ids=None, micro_batch=ROWS, weights=None):
    unit_ids = torch.arange(ROWS) if unit_ids is None else torch.tensor(unit_ids)
    engine.attach(tiny.model, tiny.parameters)
    for rows in torch.arange(ROWS).split(micro_batch):
        engine.backward(tiny.loss(rows), unit_ids[rows], *(() if weights is None else (torch.tensor(weights)[rows],)))
    sums = engine.clipped_sum()
    engine.detach()
    return sums


def relative_error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    assert got.keys() == want.keys()
    return max(float((got[name] - want[name]).norm() / want[name].norm().clamp(min=1e-30)) for name in want if want[name].any())


def middle_norm(alone: list[dict[str, Tensor]]) -> float:
    """A bound that clips half of the records."""
    return float(torch.stack([torch.stack([part.square().sum() for part in one.values()]).sum().sqrt() for one in alone]).median())


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("r", [4, 8])
@pytest.mark.parametrize("kind", ["bert", "llama", "causal"])
def test_equals_a_loop_over_single_examples(tiny, clipped_truth, kind, r, freeze_a):
    model = tiny(kind, r=r, freeze_a=freeze_a)
    alone = model.alone()
    bound = middle_norm(alone)
    truth = clipped_truth(alone, list(range(ROWS)), bound)
    assert relative_error(engine_sum(model, FusedEngine(bound)), truth) <= 1e-5
    assert all(parameter.grad is None for parameter in model.model.parameters())


@pytest.mark.parametrize("kind", ["bert", "llama", "causal"])
def test_equals_opacus(tiny, kind):
    model = tiny(kind)
    bound = middle_norm(model.alone())
    assert relative_error(engine_sum(model, FusedEngine(bound)), engine_sum(model, OpacusEngine(bound), micro_batch=ROWS)) <= 1e-5


def test_only_a_trains(tiny, clipped_truth):
    model = tiny("bert")
    for name, parameter in model.model.named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(False)
    alone = model.alone()
    assert relative_error(engine_sum(model, FusedEngine(0.5)), clipped_truth(alone, list(range(ROWS)), 0.5)) <= 1e-5


def test_dimensions_of_the_answer(tiny):
    model = tiny("bert")
    sums = engine_sum(model, FusedEngine(1.0))
    assert {name: total.shape for name, total in sums.items()} == {name: value.shape for name, value in model.parameters.items()}
    assert {total.dtype for total in sums.values()} == {torch.float64}


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_do_not_change_the_sum(tiny, clipped_truth, micro_batch):
    model = tiny("bert")
    alone = model.alone()
    bound = middle_norm(alone)
    got = engine_sum(model, FusedEngine(bound), micro_batch=micro_batch)
    assert relative_error(got, clipped_truth(alone, list(range(ROWS)), bound)) <= 1e-5


@pytest.mark.parametrize("kind", ["bert", "causal"])
def test_rows_of_a_person_are_clipped_together(tiny, clipped_truth, kind):
    model, people = tiny(kind), [7, 2, 7, 7, 40, 2, 5, 40]
    alone = model.alone()
    bound = 1.3 * middle_norm(alone)
    assert relative_error(engine_sum(model, FusedEngine(bound), people), clipped_truth(alone, people, bound)) <= 1e-5


@pytest.mark.parametrize("engine", [FusedEngine, OpacusEngine])
def test_weights_act_after_clipping_and_a_person_takes_the_mean(tiny, clipped_truth, engine):
    model, people, weights = tiny("bert"), [0, 1, 1, 2, 3, 3, 3, 4], [0.0, 0.5, 1.5, 2.0, 1.0, 0.0, 0.5, 0.25]
    alone = model.alone()
    truth = clipped_truth(alone, people, 0.1, weights)
    assert relative_error(engine_sum(model, engine(0.1), people, weights=weights), truth) <= 1e-5


def test_without_privacy_a_weight_is_the_same_weight(tiny, clipped_truth):
    model, people, weights = tiny("bert"), [0, 1, 1, 2, 3, 3, 3, 4], [0.0, 0.5, 1.5, 2.0, 1.0, 0.0, 0.5, 0.25]
    truth = clipped_truth(model.alone(), people, float("inf"), weights)
    assert relative_error(engine_sum(model, PlainEngine(), people, weights=weights), truth) <= 1e-5


@pytest.mark.parametrize("engine", [FusedEngine, OpacusEngine])
def test_units_below_the_bound_are_counted(tiny, engine):
    model = tiny("bert")
    norms = sorted(float(torch.stack([part.square().sum() for part in one.values()]).sum().sqrt()) for one in model.alone())
    for below in (0, 3, ROWS):
        bound = norms[0] / 2 if below == 0 else norms[-1] * 2 if below == ROWS else (norms[below - 1] + norms[below]) / 2
        clipping = engine(bound)
        clipping.attach(model.model, model.parameters)
        for rows in torch.arange(ROWS).split(3):
            clipping.backward(model.loss(rows), rows)
        assert clipping.unclipped_balance == below - ROWS / 2
        clipping.reset()
        assert clipping.unclipped_balance == 0
        clipping.detach()


@pytest.mark.parametrize("engine", [FusedEngine, OpacusEngine])
def test_automatic_clipping_normalises(tiny, engine):
    model = tiny("bert")
    alone = model.alone()
    norms = [torch.stack([part.square().sum() for part in one.values()]).sum().sqrt() for one in alone]
    truth = {name: sum(one[name] * 2.0 / (norm + 0.01) for one, norm in zip(alone, norms, strict=True)) for name in alone[0]}
    assert relative_error(engine_sum(model, engine(2.0, "automatic")), truth) <= 1e-5


def test_dropout_draws_the_same_masks_as_peft(tiny):
    sums = []
    for engine in (FusedEngine(0.5), OpacusEngine(0.5)):
        model = tiny("bert", dropout=0.3)
        for module in model.model.modules():
            if isinstance(module, LoraLinear):
                module.lora_dropout.train()
        torch.manual_seed(3)
        sums.append(engine_sum(model, engine))
    assert relative_error(sums[0], sums[1]) <= 1e-5
    assert relative_error(sums[0], engine_sum(tiny("bert"), FusedEngine(0.5))) > 1e-2  # the masks were on


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradient_checkpointing(tiny, clipped_truth, kind, reentrant):
    model = tiny(kind)
    alone = model.alone()
    bound = middle_norm(alone)
    model.model.train()  # Hugging Face checkpoints in training mode only; the model has no dropout
    model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.model.enable_input_require_grads()
    adapted = next(module for module in model.model.modules() if isinstance(module, LoraLinear))
    calls = []
    adapted.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    got = engine_sum(model, FusedEngine(bound))
    assert len(calls) == 2  # in the forward pass and in its recomputation
    assert relative_error(got, clipped_truth(alone, list(range(ROWS)), bound)) <= 1e-5


def under_autocast(tiny):
    plain = tiny.loss_of

    def autocast_loss(network, rows):
        with torch.autocast("cpu", torch.bfloat16):
            return plain(network, rows)

    tiny.loss_of = autocast_loss
    return tiny


def joint_error(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    error = torch.stack([(got[name] - want[name]).norm() for name in want]).norm()
    return float(error / torch.stack([value.norm() for value in want.values()]).norm())


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_bfloat16_autocast_with_float32_adapters(tiny, clipped_truth, kind, freeze_a):
    exact = tiny(kind, freeze_a=freeze_a).alone()
    bound = middle_norm(exact)
    truth = clipped_truth(exact, list(range(ROWS)), bound)
    model = under_autocast(tiny(kind, freeze_a=freeze_a))
    peft_error = joint_error(clipped_truth(model.alone(), list(range(ROWS)), bound), truth)
    fused_error = joint_error(engine_sum(model, FusedEngine(bound)), truth)
    assert 1e-6 < fused_error <= peft_error + 4e-3  # autocast was on, and costs what it costs PEFT


def test_rows_of_a_person_add_in_float32_under_autocast(tiny):
    model = under_autocast(tiny("bert"))
    unclipped = FusedEngine(1e6)
    assert relative_error(engine_sum(model, unclipped, [0] * ROWS), engine_sum(model, unclipped)) <= 1e-5


def test_bfloat16_base_with_float32_adapters(tiny, clipped_truth):
    model = tiny("bert", freeze_a=False)
    for parameter in model.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    for parameter in model.model.base_model.model.classifier.modules_to_save.parameters():
        parameter.data = parameter.data.bfloat16()
    alone = model.alone()
    bound = middle_norm(alone)
    got, truth = engine_sum(model, FusedEngine(bound)), clipped_truth(alone, list(range(ROWS)), bound)
    assert relative_error(got, truth) <= 4e-2  # bfloat16 activations carry 8 bits


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x))))).mean(1)


def called_twice(tiny):
    model = tiny("bert")
    torch.manual_seed(1)
    model.model = get_peft_model(
        CalledTwice(), LoraConfig(r=2, target_modules=["shared"], modules_to_save=["head"], init_lora_weights=False)
    )
    x = torch.randn(ROWS, 5, 6)
    model.loss_of = lambda network, rows: network(x[rows]).square().sum(1)
    return model


def test_a_module_called_twice_adds_before_the_norm(tiny, clipped_truth):
    model = called_twice(tiny)
    alone = model.alone()
    bound = middle_norm(alone)
    assert relative_error(engine_sum(model, FusedEngine(bound)), clipped_truth(alone, list(range(ROWS)), bound)) <= 1e-5


def test_a_backward_inside_autocast_keeps_the_precision_of_its_forward(tiny):
    model, engine = called_twice(tiny), FusedEngine(0.5)
    truth = engine_sum(model, FusedEngine(0.5))
    engine.attach(model.model, model.parameters)
    loss = model.loss()
    with torch.autocast("cpu", torch.bfloat16):
        engine.backward(loss, torch.arange(ROWS))
    assert relative_error(engine.clipped_sum(), truth) <= 1e-6


def test_a_tail_that_shares_the_modules_is_covered(tiny, clipped_truth):
    model = tiny("bert")
    classifier = model.model.get_base_model()
    hidden = torch.randn(ROWS, 5, 24)

    def tail_loss(_, rows):
        last = classifier.bert.encoder.layer[1](hidden[rows])
        last = last[0] if isinstance(last, tuple) else last
        return classifier.classifier(classifier.bert.pooler(last)).square().sum(1)

    model.loss_of = tail_loss
    alone = model.alone()
    bound = middle_norm(alone)
    got = engine_sum(model, FusedEngine(bound))
    assert relative_error(got, clipped_truth(alone, list(range(ROWS)), bound)) <= 1e-5
    assert not any(total.any() for name, total in got.items() if "layer.0." in name)


def test_an_empty_step_is_all_zeros(tiny):
    model, engine = tiny("bert"), FusedEngine(1.0)
    engine.attach(model.model, model.parameters)
    engine.backward(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    sums = engine.clipped_sum()
    assert sums.keys() == model.parameters.keys()
    assert not any(total.any() for total in sums.values())


def test_reset_begins_anew(tiny):
    model, engine = tiny("bert"), FusedEngine(1.0)
    engine.attach(model.model, model.parameters)
    once = []
    for _ in range(2):
        engine.reset()
        engine.backward(model.loss(), torch.arange(ROWS))
        once.append(engine.clipped_sum())
    assert all(torch.equal(once[0][name], once[1][name]) for name in once[0])
