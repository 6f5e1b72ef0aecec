"""The tasks ``causal-lm``, ``multiple-choice`` and ``preference``: LoRA adapters on a frozen language model that scores answers.

All three are what they make of an answer's log-likelihood; trainer and evaluator are those of every task.

=================  =================================================  ==========================================
task               trains on                                          predicts
=================  =================================================  ==========================================
causal-lm          the response's mean log-likelihood per token       ``right``: greedy decoding writes the response
multiple-choice    cross-entropy over the options' log-likelihoods    the option that is likeliest, per token
preference         DPO: cross-entropy over beta times how much        ``right``: the chosen answer is likelier,
                   likelier each answer is than to the base model     per token
=================  =================================================  ==========================================

DPO: Rafailov et al. 2023, "Direct Preference Optimization" (arXiv:2305.18290), equation 7. The base model is the reference, so it is
the same model with its adapter switched off, computed once a record.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from fedethos.client.examples import Indices, Inputs
from fedethos.client.frozen_prefix import caches_prefix
from fedethos.client.model import NodeModel, training_device
from fedethos.client.task import Task
from fedethos.client.writer import TextWriter
from fedethos.data.batching import by_length
from fedethos.data.prompts import PromptTable, tokenize_for, tokenize_prompts
from fedethos.data.records import Records
from fedethos.errors import FedethosError
from fedethos.fairness.losses import example_loss
from fedethos.job import Job
from fedethos.models.adapter import attach_lora, recompute_activations, save_adapter
from fedethos.models.assets import resolve
from fedethos.models.core import put_core_between
from fedethos.models.cut import causal_tail
from fedethos.models.language import AnswerScores, LanguageModel, score_answers, without_adapter
from fedethos.models.language_base import load_language_base
from fedethos.models.language_prefix import CachedPrompts, cache_prompts
from fedethos.privacy.self_check import SyntheticLoss

Outputs = Callable[[AnswerScores, Tensor | None], Tensor]

_TOKENS_AT_ONCE = 4096


@dataclass(frozen=True)
class PromptInputs:
    """``table``: tokens, or hidden states. ``reference`` float32[n, k]: log-likelihoods under the base model, where the task compares
    with it."""

    table: PromptTable | CachedPrompts
    reference: Tensor | None = None

    @property
    def lengths(self) -> Indices:
        return self.table.lengths

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        batch = self.table.batch(indices)
        return batch if self.reference is None else batch | {"reference": self.reference[torch.from_numpy(indices)]}


def language_model(job: Job, *, base: Path, scratch: Path, resources: ExitStack) -> Task:
    """Load the base model of ``job``, attach its adapter, tokenise prompts and answers or cache what lies below it. See
    ``prepare_task``."""
    loaded = load_language_base(resolve(job.model.path, base=base), job.model)
    template = uses_chat_template(job, loaded.tokenizer)
    adapted = attach_lora(loaded.model, job.lora, seed=job.simulation.seed, freeze_a=job.aggregation == "ffa", causal=True)
    if job.aggregation == "fedsb":
        put_core_between(adapted, seed=job.simulation.seed)
    if job.training.gradient_checkpointing:
        recompute_activations(adapted)
    if not job.model.load_in_4bit:  # is where it was loaded
        adapted.to(training_device())
    cached = caches_prefix(job, adapted)
    tokenize = tokenize_for(loaded.tokenizer, template=template, chat=job.data.messages is not None, end=job.task != "multiple-choice")
    outputs = outputs_of(job)

    def inputs(records: Records) -> Inputs:
        table = tokenize_prompts(
            records.text, records.answers, tokenize, pad_token_id=int(loaded.tokenizer.pad_token_id), max_length=job.model.max_length
        )
        reference = reference_of(adapted, table) if job.task == "preference" else None
        if not cached:
            return PromptInputs(table, reference)
        prompts = cache_prompts(adapted, table, folder=scratch, dtype=np.dtype(job.training.cache_dtype))
        resources.enter_context(prompts.hidden)
        return PromptInputs(prompts, reference)

    forward = LanguageModel(causal_tail(adapted) if cached else adapted, outputs)
    nats = _nats if job.counts_responses else None
    model = NodeModel(adapted, forward, loaded.sha256, classes_of(job), response_nats=nats)
    return Task(
        model=model,
        inputs=inputs,
        synthetic_loss=synthetic_answers(job, loaded.model.config.vocab_size),
        save=lambda folder: save_adapter(folder, adapted, model.residual),
        writer=TextWriter(adapted, loaded.tokenizer, tokenize),
    )


def outputs_of(job: Job) -> Outputs:
    """What the task trains on, from the scores of a batch's answers."""
    if job.task == "causal-lm":
        return _response
    return _options if job.task == "multiple-choice" else partial(_preferences, beta=job.training.dpo_beta)


def classes_of(job: Job) -> Callable[[Tensor], Tensor] | None:
    """From the outputs to logits of the job's labels; where there is one label, ``right``, that one against wrong."""
    return {"causal-lm": _greedy, "preference": _likelier}.get(job.task)


def _response(scores: AnswerScores, reference: Tensor | None) -> Tensor:
    return torch.cat([scores.mean, scores.margin], dim=1)


def _greedy(outputs: Tensor) -> Tensor:
    """The response against anything else that greedy decoding could write, by the margin of its weakest token."""
    return torch.stack([outputs[:, 1], torch.zeros_like(outputs[:, 1])], dim=1)


def _nats(outputs: Tensor) -> Tensor:
    """Per token of the response, float32[b]."""
    return -outputs[:, 0]


def _options(scores: AnswerScores, reference: Tensor | None) -> Tensor:
    return scores.mean


def _preferences(scores: AnswerScores, reference: Tensor | None, *, beta: float) -> Tensor:
    if reference is None:
        raise ValueError("a batch of preferences has no reference")
    return torch.cat([beta * (scores.log_likelihood - reference), scores.mean], dim=1)


def _likelier(outputs: Tensor) -> Tensor:
    """Chosen against rejected. Not by what they gained: to the untouched base model every pair is a tie, and a gain need not make the
    better answer the likelier one (Chen et al. 2024, arXiv:2405.19534)."""
    return outputs[:, 2:]


def reference_of(model: PeftModel, table: PromptTable) -> Tensor:
    """Log-likelihoods of all answers under the base model, float32[n, k] on the CPU."""
    found = torch.zeros(table.answers.shape, dtype=torch.float32)
    with torch.no_grad(), without_adapter(model):
        for rows in by_length(table.lengths, tokens=_TOKENS_AT_ONCE):
            batch = {name: tensor.to(model.device) for name, tensor in table.batch(rows).items()}
            found[torch.from_numpy(rows)] = score_answers(model, **batch).log_likelihood.cpu()
    return found


def synthetic_answers(job: Job, vocabulary: int, *, rows: int = 4, length: int | None = None, seed: int = 0) -> SyntheticLoss:
    """Random prompts with as many random answers as the job's records have, and the job's own loss of them.

    ``length``: tokens of each prompt with one of its answers, one half each; none: of a few tokens, all different.
    """
    rng = np.random.default_rng(seed)
    options = {"causal-lm": 1, "preference": 2}.get(job.task, len(job.data.label.values))
    prompt, answers = rng.integers(1, 8, rows), rng.integers(1, 5, (rows, options))
    if length is not None:
        prompt, answers = np.full_like(prompt, length - length // 2), np.full_like(answers, length // 2)
    tokens = rng.integers(vocabulary, size=prompt.sum() + answers.sum(), dtype=np.int32)
    table, label = PromptTable(tokens, prompt, answers, 0), torch.from_numpy(rng.integers(len(job.data.label.values), size=rows))
    outputs, loss_of = outputs_of(job), example_loss(job)

    def loss(model: nn.Module, chosen: Tensor) -> Tensor:
        device = next(model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in table.batch(chosen.numpy()).items()}
        if not isinstance(model, PeftModel):
            raise TypeError("a language model without adapter")
        scores = score_answers(model, **batch)
        reference = torch.zeros_like(scores.log_likelihood)
        return loss_of(outputs(scores, reference), label[chosen].to(device), torch.arange(len(chosen), device=device))

    return loss


def uses_chat_template(job: Job, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts are put into the tokenizer's chat template. MODEL-481 when the job needs one and there is none."""
    needed = job.model.chat_template == "on" or job.data.messages is not None
    if needed and not tokenizer.chat_template:
        raise FedethosError(
            "MODEL-481",
            "The tokenizer has no chat template.",
            where="model.chat_template, data.messages",
            why="A chat could only be guessed into a text.",
            fix="Use an instruction model with a template in its tokenizer_config.json, or data.text and chat_template: off.",
        )
    return needed or (job.model.chat_template == "auto" and bool(tokenizer.chat_template))
