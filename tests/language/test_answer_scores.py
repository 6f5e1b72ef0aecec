"""Likelihoods of answers that share a prompt: compared with each answer in a forward pass of its own, gradients too."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from fedethos.data.prompts import PromptTable
from fedethos.errors import FedethosError
from fedethos.job import Lora, Model
from fedethos.models.adapter import attach_lora, named_adapter_parameters
from fedethos.models.language import ABSENT, require_plain_head, score_answers, without_adapter
from fedethos.models.language_base import load_language_base

K = 3


@pytest.fixture
def table() -> PromptTable:
    """Five records with up to three answers of 1 to 5 tokens; the second record lacks an answer, the third has two."""
    rng = np.random.default_rng(0)
    prompt, answers = rng.integers(1, 12, 5), rng.integers(1, 6, (5, K))
    answers[1, 1] = answers[2, 2] = 0
    return PromptTable(rng.integers(3, 250, prompt.sum() + answers.sum(), dtype=np.int32), prompt, answers, 0)


@pytest.fixture
def base(tiny_language_base: Path) -> PreTrainedModel:
    return load_language_base(tiny_language_base, Model(path="x", max_length=64)).model


@pytest.fixture
def adapted(base: PreTrainedModel) -> PeftModel:
    model = attach_lora(base, Lora(r=2), seed=0, freeze_a=False, causal=True)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in named_adapter_parameters(model).values():
            parameter.normal_(0.0, 0.1)
    return model


def record(table: PromptTable, row: int) -> tuple[list[int], list[list[int]]]:
    start = int(table.lengths[:row].sum())
    tokens = table.tokens[start : start + int(table.lengths[row])].tolist()
    cuts = np.cumsum([table.prompt[row], *table.answers[row]])
    return tokens[: cuts[0]], [tokens[a:b] for a, b in pairwise(cuts)]


def alone(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> tuple[torch.Tensor, float]:
    """The truth: log-likelihood and weakest margin of one answer in a forward pass of its own."""
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
    own = logits[torch.arange(len(answer)), answer]
    others = logits.detach().clone()
    others[torch.arange(len(answer)), answer] = -torch.inf
    likelihood = logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum()
    return likelihood, float((own.detach() - others.amax(1)).min())


def test_shared_prompts_change_nothing(adapted: PeftModel, table: PromptTable) -> None:
    with torch.no_grad():
        scores = score_answers(adapted, **table.batch(np.arange(5)))
        for row in range(5):
            prompt, answers = record(table, row)
            for option, answer in enumerate(answers):
                if answer:
                    likelihood, margin = alone(adapted, prompt, answer)
                    assert scores.log_likelihood[row, option].item() == pytest.approx(likelihood.item(), abs=1e-4)
                    assert scores.margin[row, option].item() == pytest.approx(margin, abs=1e-4)
                    assert scores.mean[row, option].item() == pytest.approx(likelihood.item() / len(answer), abs=1e-4)
    assert scores.mean[1, 1] == scores.mean[2, 2] == ABSENT


def test_a_record_does_not_depend_on_its_batch(adapted: PeftModel, table: PromptTable) -> None:
    with torch.no_grad():
        together = score_answers(adapted, **table.batch(np.arange(5))).log_likelihood
        for row in range(5):
            assert torch.allclose(score_answers(adapted, **table.batch(np.array([row]))).log_likelihood[0], together[row], atol=1e-4)


def test_gradients_are_those_of_separate_rows(adapted: PeftModel, table: PromptTable) -> None:
    parameters = list(named_adapter_parameters(adapted).values())
    shared = torch.autograd.grad(score_answers(adapted, **table.batch(np.arange(5))).log_likelihood.sum(), parameters)
    truth = [torch.zeros_like(parameter) for parameter in parameters]
    for row in range(5):
        prompt, answers = record(table, row)
        for answer in filter(None, answers):
            parts = torch.autograd.grad(alone(adapted, prompt, answer)[0], parameters)
            truth = [total + part for total, part in zip(truth, parts, strict=True)]
    for got, want in zip(shared, truth, strict=True):
        assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max()) + 1e-6)


def test_one_answer_alone_needs_no_wide_mask(adapted: PeftModel, table: PromptTable) -> None:
    starts = np.cumsum(table.lengths) - table.lengths
    kept = np.concatenate([start + np.arange(size) for start, size in zip(starts, table.prompt + table.answers[:, 0], strict=True)])
    first = PromptTable(table.tokens[kept], table.prompt, table.answers[:, :1], 0)
    batch = first.batch(np.arange(5))
    assert batch["attention_mask"].dim() == 2
    with torch.no_grad():
        whole = score_answers(adapted, **table.batch(np.arange(5))).log_likelihood[:, :1]
        assert torch.allclose(score_answers(adapted, **batch).log_likelihood, whole, atol=1e-4)


def test_an_empty_batch_has_no_rows(table: PromptTable) -> None:
    batch = table.batch(np.array([], dtype=np.int64))
    assert batch["input_ids"].shape == (0, 0)
    assert batch["answer_tokens"].shape == (0, K)


def test_without_adapter_is_the_base_and_keeps_what_is_frozen(adapted: PeftModel, table: PromptTable) -> None:
    frozen = [p for name, p in named_adapter_parameters(adapted).items() if ".lora_A." in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    prompt, answers = record(table, 0)
    with torch.no_grad():
        before = alone(adapted, prompt, answers[0])[0]
        with without_adapter(adapted):
            inside = score_answers(adapted, **table.batch(np.array([0]))).log_likelihood[0, 0]
        after = alone(adapted, prompt, answers[0])[0]
        plain = adapted.unload()
        truth = alone(plain, prompt, answers[0])[0]
    assert inside.item() == pytest.approx(truth.item(), abs=1e-4)
    assert before == after
    assert abs(before - truth) > 1e-2
    assert not any(parameter.requires_grad for parameter in frozen)


def test_a_model_with_other_logits_is_refused(base: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    require_plain_head(base)
    whole: Callable[..., object] = type(base).forward

    def capped(self: PreTrainedModel, **inputs: object) -> object:
        output = whole(self, **inputs)
        output.logits = torch.tanh(output.logits) * 0.1  # type: ignore[attr-defined]
        return output

    monkeypatch.setattr(type(base), "forward", capped)
    with pytest.raises(FedethosError, match="MODEL-484"):
        require_plain_head(base)
