"""Likelihoods of a benchmark's answers (``fairness/suites``) under a language model, in batches of similar length.

All answers to a question share the row of tokens of their prompt, and variants of a text that of their common beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedethos.data.batching import by_length
from fedethos.data.prompts import Integers, PromptTable, tokenize_for, tokenize_prompts
from fedethos.data.whole_texts import WholeTexts, tokenize_whole_texts
from fedethos.errors import FedethosError
from fedethos.fairness.suites.suite import Likelihoods, Question, Suite
from fedethos.models.language import AnswerScores, score_answers

_TOKENS_AT_ONCE = 4096
_UNLIMITED = 1 << 31


@dataclass(frozen=True)
class Asked:
    """A suite as tokens. ``tables``: each with the places of its questions."""

    questions: int
    options: int
    tables: Sequence[tuple[Integers, PromptTable | WholeTexts]]


def ask(suite: Suite, tokenizer: PreTrainedTokenizerBase, *, template: bool, longest: int) -> Asked:
    """Tokenize the questions of ``suite``, as instructions in the chat template where ``template`` and the suite say so.

    Raises
    ------
    FedethosError
        DATA-192 when questions with their answers are longer than ``longest`` tokens, what the model reads.
    """
    whole = [row for row, question in enumerate(suite.questions) if question.prompt is None]
    asked = [row for row, question in enumerate(suite.questions) if question.prompt is not None]
    options = max(len(question.answers) for question in suite.questions)
    tables: list[tuple[Integers, PromptTable | WholeTexts]] = []
    if whole:
        tables.append((np.array(whole), tokenize_whole_texts([suite.questions[row].answers for row in whole], tokenizer)))
    if asked:
        tokenize = tokenize_for(tokenizer, template=template and suite.instruct, chat=False, end=False)
        own = [suite.questions[row] for row in asked]
        table = tokenize_prompts(
            [question.prompt or "" for question in own],
            [_filled(question, options) for question in own],
            tokenize,
            pad_token_id=int(tokenizer.pad_token_id),
            max_length=_UNLIMITED,
        )
        tables.append((np.array(asked), table))
    if over := sum(int((table.longest > longest).sum()) for _, table in tables):
        raise _too_long(suite, over, longest)
    return Asked(len(suite.questions), options, tables)


def likelihoods(model: PeftModel | PreTrainedModel, asked: Asked) -> Likelihoods:
    """Score all answers; the model's own device and dtype, sums in float32."""
    found = np.full((asked.questions, asked.options), -np.inf)
    tokens = np.zeros((asked.questions, asked.options), dtype=np.int64)
    with torch.inference_mode():
        for places, table in asked.tables:
            for rows in by_length(table.lengths, tokens=_TOKENS_AT_ONCE):
                batch = {name: tensor.to(model.device) for name, tensor in table.batch(rows).items()}
                scores = score_answers(model, **batch)
                likelihood, count = _whole(scores) if isinstance(table, WholeTexts) else (scores.log_likelihood, scores.tokens)
                own = places[rows], slice(likelihood.shape[1])
                found[own] = torch.where(count > 0, likelihood.double(), -torch.inf).cpu().numpy()
                tokens[own] = count.cpu().numpy()
    return Likelihoods(found, tokens)


def _whole(scores: AnswerScores) -> tuple[torch.Tensor, torch.Tensor]:
    """Of whole texts: the rest of each variant with the common beginning, which is the last answer."""
    rest, begun = scores.tokens[:, :-1], scores.tokens[:, -1:]
    return scores.log_likelihood[:, :-1] + scores.log_likelihood[:, -1:], torch.where(rest > 0, rest + begun, 0)


def _filled(question: Question, options: int) -> tuple[str | None, ...]:
    return (*question.answers, *[None] * (options - len(question.answers)))


def _too_long(suite: Suite, over: int, longest: int) -> FedethosError:
    return FedethosError(
        "DATA-192",
        f"{over} questions of {suite.name} have more than the {longest:,} tokens that the model reads.",
        where="--suite",
        why="Half a question is another question.",
        fix="Give a file without them, or a base model that reads more.",
    )
