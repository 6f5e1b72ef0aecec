"""Token losses in parts against plain autograd over all logits at once."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from fedethos.token_loss import TOKENS_AT_ONCE, token_cross_entropy, token_kl_divergence

TOKENS, WIDTH, WORDS = 2 * TOKENS_AT_ONCE + 5, 16, 50


@pytest.fixture
def output_layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, WORDS).requires_grad_(False)


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, targets, and what each loss is multiplied by, as by a mean over an example's own targets."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).requires_grad_()
    return hidden, torch.randint(WORDS, (TOKENS,), generator=generator), torch.rand(TOKENS, generator=generator)


def losses_and_gradient(losses: Tensor, hidden: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad((losses * factors).sum(), hidden)
    return losses.detach(), gradient


@pytest.mark.parametrize("autocast", [False, True])
def test_equals_all_logits_at_once(output_layer: nn.Module, autocast: bool) -> None:
    hidden, targets, factors = drawn()
    with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
        found = losses_and_gradient(token_cross_entropy(hidden, output_layer, targets), hidden, factors)
        truth = losses_and_gradient(F.cross_entropy(output_layer(hidden).float(), targets, reduction="none"), hidden, factors)
    for ours, theirs in zip(found, truth, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < (1e-2 if autocast else 1e-6)


def test_never_holds_the_logits_of_more_tokens_than_it_says(output_layer: nn.Module) -> None:
    seen: list[int] = []
    output_layer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    hidden, targets, _ = drawn()
    token_cross_entropy(hidden, output_layer, targets)
    token_cross_entropy(hidden.detach(), output_layer, targets)
    assert seen == 2 * [TOKENS_AT_ONCE, TOKENS_AT_ONCE, 5]


def test_an_output_layer_that_trains_gets_its_gradient(output_layer: nn.Linear) -> None:
    hidden, targets, factors = drawn()
    output_layer.requires_grad_()
    token_cross_entropy(hidden, output_layer, targets).mul(factors).sum().backward()
    weight = output_layer.weight.detach().clone().requires_grad_()
    F.cross_entropy(F.linear(hidden.detach(), weight, output_layer.bias.detach()), targets, reduction="none").mul(factors).sum().backward()
    assert torch.allclose(output_layer.weight.grad, weight.grad, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scores_without_gradients_and_of_nothing(output_layer: nn.Module, mode: type) -> None:
    hidden, targets, _ = drawn()
    with mode():
        losses = token_cross_entropy(hidden, output_layer, targets)
        assert torch.allclose(losses, F.cross_entropy(output_layer(hidden), targets, reduction="none"), atol=1e-6)
        assert token_cross_entropy(hidden[:0], output_layer, targets[:0]).shape == (0,)


def test_divergences_equal_all_logits_at_once(output_layer: nn.Module) -> None:
    hidden, _, factors = drawn()
    reference = torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))
    found = losses_and_gradient(token_kl_divergence(hidden, output_layer, reference), hidden, factors)
    plain = kl_divergence(Categorical(logits=output_layer(reference)), Categorical(logits=output_layer(hidden)))
    for ours, theirs in zip(found, losses_and_gradient(plain, hidden, factors), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
