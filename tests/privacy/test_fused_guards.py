"""What the fused engine refuses, what it leaves out, and what no record may do to the sum."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from fedethos.errors import FedethosError
from fedethos.privacy.fused import FusedEngine

ROWS = 8


class Small(nn.Module):
    """Two linear layers and a head; ``variant`` breaks one rule of private training."""

    def __init__(self, variant: str = "plain") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.variant = variant
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(5) if variant == "batch norm" else nn.LayerNorm(5)
        self.table = nn.Embedding(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.variant == "flattened":
            return self.head(self.second(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(1))
        hidden = self.norm(torch.tanh(self.second(torch.tanh(self.first(x)))).mean(1))
        return self.head(hidden) + (F.linear(hidden, self.reused_weight()) if self.variant == "reused" else 0.0)

    def reused_weight(self) -> Tensor:
        return self.head.modules_to_save["default"].weight


def adapted(variant: str = "plain", **options: object) -> nn.Module:
    config = {"r": 2, "target_modules": ["first", "second"], "modules_to_save": ["head"], "init_lora_weights": False, **options}
    return get_peft_model(Small(variant), LoraConfig(**config))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def attached(model: nn.Module, bound: float = 1.0) -> FusedEngine:
    engine = FusedEngine(bound)
    engine.attach(model, trainable(model))
    return engine


def inputs(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, 4, 5, generator=torch.Generator().manual_seed(1))


def losses(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum(1)


def joint_norm(sums: dict[str, Tensor]) -> float:
    return float(torch.stack([total.norm() for total in sums.values()]).norm())


def refusal(call, *arguments) -> str:
    with pytest.raises(FedethosError) as error:
        call(*arguments)
    return error.value.code


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (lambda: adapted("batch norm"), "PRIV-318"),
        (lambda: adapted(use_dora=True), "PRIV-319"),
        (lambda: adapted(lora_bias=True), "PRIV-319"),
        (lambda: adapted(bias="lora_only"), "PRIV-320"),
        (lambda: adapted(modules_to_save=["head", "norm"]), "PRIV-320"),
        (lambda: adapted(target_modules=["first", "table"]), "PRIV-320"),
        (lambda: get_peft_model(GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=1)), LoraConfig(target_modules=["c_fc"])), "PRIV-319"),
    ],
    ids=["BatchNorm", "DoRA", "lora_bias", "bias of the base", "LayerNorm", "embedding", "Conv1D"],
)  # fmt: skip
def test_refuses_what_it_does_not_cover(model, code):
    assert refusal(attached, model()) == code


def test_refuses_several_active_adapters():
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first"]))
    model.base_model.set_adapter(["default", "other"])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora_A["default"].weight.requires_grad_(True)
    assert refusal(attached, model) == "PRIV-319"


def test_refuses_a_merged_adapter():
    model = adapted()
    model.merge_adapter()
    assert refusal(attached, model) == "PRIV-319"


def test_refuses_hooks_on_the_parts_it_bypasses():
    model = adapted()
    model.base_model.model.first.lora_A["default"].register_forward_hook(lambda *_: None)
    assert refusal(attached, model) == "PRIV-319"


def test_refuses_a_trainable_parameter_that_it_was_not_given():
    model = adapted()
    some = trainable(model)
    some.pop(next(iter(some)))
    assert refusal(FusedEngine(1.0).attach, model, some) == "PRIV-320"


def test_refuses_a_parameter_that_does_not_train():
    model = adapted()
    given_parameters = trainable(model)
    next(iter(given_parameters.values())).requires_grad_(False)
    assert refusal(FusedEngine(1.0).attach, model, given_parameters) == "PRIV-320"


def test_refuses_a_second_owner():
    model = adapted()
    engine = attached(model)
    assert refusal(attached, model) == "PRIV-322"
    assert refusal(engine.attach, adapted(), {}) == "PRIV-322"


def test_refuses_a_unit_in_two_micro_batches_until_reset():
    model = adapted()
    engine = attached(model)
    engine.backward(losses(model, inputs()), torch.arange(ROWS))
    before = engine.clipped_sum()
    assert refusal(engine.backward, losses(model, inputs()), torch.arange(ROWS) + ROWS - 1) == "PRIV-323"
    assert all(torch.equal(before[name], engine.clipped_sum()[name]) for name in before)
    engine.reset()
    engine.backward(losses(model, inputs()), torch.arange(ROWS))


def test_refuses_a_module_that_does_not_see_one_row_per_example():
    model = adapted("flattened", target_modules=["second"])
    engine = attached(model)
    assert refusal(engine.backward, losses(model, inputs()), torch.arange(ROWS)) == "PRIV-324"
    assert not any(total.any() for total in engine.clipped_sum().values())


def test_refuses_a_parameter_that_is_used_elsewhere_too():
    model = adapted("reused")
    assert refusal(attached(model).backward, losses(model, inputs()), torch.arange(ROWS)) == "PRIV-325"


def test_refuses_a_backward_outside_the_engine():
    model = adapted()
    attached(model)
    assert refusal(losses(model, inputs()).sum().backward) == "PRIV-326"


def test_refuses_a_loss_of_another_model():
    model = adapted()
    other = adapted()
    engine = attached(model)
    assert refusal(engine.backward, losses(other, inputs()), torch.arange(ROWS)) == "PRIV-321"


def test_refuses_a_loss_without_a_graph():
    model = adapted()
    engine = attached(model)
    with torch.no_grad():
        loss = losses(model, inputs())
    assert refusal(engine.backward, loss, torch.arange(ROWS)) == "PRIV-321"


@pytest.mark.parametrize(
    ("loss", "ids", "weights"),
    [
        (torch.zeros(()), torch.zeros((), dtype=torch.int64), None),
        (torch.zeros(2, 1), torch.arange(2), None),
        (torch.zeros(2), torch.arange(3), None),
        (torch.zeros(2), torch.zeros(2), None),
        (torch.zeros(2), torch.arange(2), torch.ones(3)),
        (torch.zeros(2), torch.arange(2), torch.tensor([1.0, -1.0])),
        (torch.zeros(2), torch.arange(2), torch.tensor([1.0, float("inf")])),
    ],
)
def test_refuses_arguments_that_do_not_fit(loss, ids, weights):
    assert refusal(attached(adapted()).backward, loss, ids, weights) == "PRIV-327"


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_unit_with_a_poisoned_row_adds_zero_as_a_whole(poison):
    model, people = adapted(), torch.tensor([0, 1, 2, 2, 3, 4, 5, 6])
    x = inputs()
    engine = attached(model, 0.5)
    clean = torch.tensor([0, 1, 4, 5, 6, 7])
    engine.backward(losses(model, x[clean]), people[clean])
    expected = engine.clipped_sum()
    engine.reset()
    x[3, 0, 0] = poison  # the second row of person 2
    engine.backward(losses(model, x), people)
    got = engine.clipped_sum()
    assert engine.nonfinite_units == 1
    assert all(torch.allclose(got[name], expected[name], rtol=1e-6, atol=1e-9) for name in got)
    engine.reset()
    assert engine.nonfinite_units == 0


def test_detach_gives_the_model_back():
    model, x = adapted(), inputs()
    before = model(x)
    engine = attached(model)
    assert torch.allclose(model(x), before, atol=1e-6)
    engine.detach()
    assert not any("forward" in vars(module) for module in model.modules())
    losses(model, x).sum().backward()
    assert all(parameter.grad is not None for parameter in trainable(model).values())
    attached(model)


def test_the_base_model_can_be_evaluated_while_attached():
    model, x = adapted(), inputs()
    with model.disable_adapter():
        base = model(x)
    attached(model)
    with model.disable_adapter():
        assert torch.equal(model(x), base)


def test_a_copy_of_an_attached_model_is_its_own_and_stays_closed():
    model, x = adapted(), inputs()
    engine = attached(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.zero_()
    assert not torch.allclose(twin(x), model(x))
    assert refusal(engine.backward, losses(twin, x), torch.arange(ROWS)) == "PRIV-326"


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    bound=st.floats(1e-3, 10.0),
    people=st.lists(st.integers(0, 5), min_size=ROWS, max_size=ROWS),
    scale=st.sampled_from([1e-3, 1.0, 1e6]),
    clipping=st.sampled_from(["flat", "automatic"]),
)
def test_removing_a_unit_moves_the_sum_by_at_most_c(seed, bound, people, scale, clipping):
    model, unit_ids = adapted(), torch.tensor(people)
    x = torch.randn(ROWS, 4, 5, generator=torch.Generator().manual_seed(seed))
    x[0] *= scale
    engine = FusedEngine(bound, clipping)
    engine.attach(model, trainable(model))
    engine.backward(losses(model, x), unit_ids)
    everybody = engine.clipped_sum()
    for unit in set(people):
        engine.reset()
        kept = unit_ids != unit
        if kept.any():
            engine.backward(losses(model, x[kept]), unit_ids[kept])
        without = engine.clipped_sum()
        assert joint_norm({name: everybody[name] - without[name] for name in without}) <= bound


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_record_adds_the_same_in_every_batch_and_at_most_c(tiny, kind):
    model = tiny(kind)
    engine = FusedEngine(0.5)
    engine.attach(model.model, model.parameters)

    def total(rows: list[int]) -> dict[str, Tensor]:
        engine.reset()
        if rows:
            engine.backward(model.loss(torch.tensor(rows)), torch.tensor(rows))
        return engine.clipped_sum()

    contributions = []
    for others in ([], [0], [1, 2, 4, 5, 6, 7], [7, 0]):
        with_it, without = total([*others, 3]), total(others)
        contributions.append({name: with_it[name] - without[name] for name in with_it})
    assert joint_norm(contributions[0]) > 0.0
    assert all(joint_norm(contribution) <= 0.5 for contribution in contributions)
    for other in contributions[1:]:
        assert joint_norm({name: other[name] - contributions[0][name] for name in other}) <= 1e-5


def test_a_loss_that_depends_on_the_batch_would_break_the_bound(tiny):
    """Why the engine takes per-example losses: with a batch-coupled loss the same check fails."""
    model = tiny("bert")
    engine = FusedEngine(1e6)  # nothing is clipped, so that the coupling shows
    engine.attach(model.model, model.parameters)
    sums = []
    for rows in (torch.arange(ROWS), torch.arange(ROWS - 1)):
        engine.reset()
        loss = model.loss(rows)
        engine.backward(loss * loss.mean(), rows)
        sums.append(engine.clipped_sum())
    contribution = {name: sums[0][name] - sums[1][name] for name in sums[0]}
    engine.reset()
    alone = model.loss(torch.tensor([ROWS - 1]))
    engine.backward(alone * alone.mean(), torch.tensor([ROWS - 1]))
    assert joint_norm({name: contribution[name] - value for name, value in engine.clipped_sum().items()}) > 1e-2
