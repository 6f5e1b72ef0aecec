"""Prompts and their answers as tokens: one row of tokens a record, in which all answers share the prompt.

    prompt | answer 1 | answer 2 | …

Each answer sees the prompt and itself, never another answer, and its positions go on where the prompt ends. So every answer's likelihood is
what it would be in a row of its own, and the prompt is computed once. Rows are never shared between records (no packing): a record's
loss has to depend on that record alone. Next: ``fedethos.models.language``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fedethos.data.answers import Answers, read_chat
from fedethos.errors import FedethosError

Integers = NDArray[np.int64]
Tokenized = list[int]
Tokenize = Callable[[str, Answers], tuple[Tokenized, list[Tokenized]]]
"""From a prompt and its answers to their tokens; no tokens for an answer that is None."""


@dataclass(frozen=True, eq=False)
class PromptTable:
    """n records end to end.

    Attributes
    ----------
    tokens : int32[T]
        All records, one after the other; in each the prompt and then its answers.
    prompt : int64[n]
        Tokens of each prompt, at least one.
    answers : int64[n, k]
        Tokens of each answer; 0 where a record has no such answer.
    pad_token_id : int
    """

    tokens: NDArray[np.int32]
    prompt: Integers
    answers: Integers
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def lengths(self) -> Integers:
        """Tokens of each row, int64[n]."""
        return np.asarray(self.prompt + self.answers.sum(axis=1), dtype=np.int64)

    def batch(self, indices: Integers) -> dict[str, torch.Tensor]:
        """Keyword arguments of ``models.language.LanguageModel`` for the records at ``indices``, padded on the right.

        Returns
        -------
        dict
            ``input_ids`` and ``position_ids`` int64[b, t]; ``attention_mask`` bool[b, 1, t, t] (query, key), or int64[b, t] where each
            record has one answer alone; ``answer_tokens`` int64[b, k]. For each of the m tokens of answers: ``source`` int64[m], the
            place in the flattened [b · t] that predicts it, ``target`` int64[m], the token, ``slot`` int64[m], its answer in [b · k].
        """
        prompt, answers = self.prompt[indices, None], self.answers[indices]
        ends = prompt + np.cumsum(answers, axis=1)
        width = int(self.lengths[indices].max(initial=0))
        column = np.arange(width)[None, :]
        # 0 in the prompt, j in answer j, k + 1 in the padding
        segment = (column >= prompt).astype(np.int64) + (column[:, None, :] >= ends[:, :, None]).sum(axis=1)
        starts = np.concatenate([np.zeros_like(prompt), prompt, ends], axis=1)
        within = column - np.take_along_axis(starts, segment, axis=1)
        position = np.where(segment == 0, within, prompt + within)
        present = segment <= answers.shape[1]
        ids = np.full(segment.shape, self.pad_token_id, dtype=np.int64)
        ids[present] = self._rows(indices)
        row, place = np.nonzero(present & (segment > 0))
        first = within[row, place] == 0
        arrays = {
            "input_ids": ids,
            "position_ids": np.where(present, position, 0),
            "answer_tokens": answers,
            "source": row * width + np.where(first, prompt[row, 0], place) - 1,
            "target": ids[row, place],
            "slot": row * answers.shape[1] + segment[row, place] - 1,
        }
        batch = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
        mask = present.astype(np.int64) if answers.shape[1] == 1 else _visible(segment)[:, None]
        return batch | {"attention_mask": torch.from_numpy(mask)}

    def _rows(self, indices: Integers) -> NDArray[np.int32]:
        ends = np.cumsum(self.lengths)
        starts = ends - self.lengths
        return np.concatenate([self.tokens[:0], *(self.tokens[starts[i] : ends[i]] for i in indices)])


def _visible(segment: Integers) -> NDArray[np.bool_]:
    """What each query may see, bool[b, t, t]: nothing behind it, and nothing of another answer. Padding sees itself."""
    width = segment.shape[1]
    causal = np.tril(np.ones((width, width), dtype=np.bool_))
    same = segment[:, :, None] == segment[:, None, :]
    return np.asarray(causal & (same | (segment[:, None, :] == 0)))


def tokenize_prompts(
    prompts: Sequence[str], answers: Sequence[Answers], tokenize: Tokenize, *, pad_token_id: int, max_length: int
) -> PromptTable:
    """Tokenize n prompts with their answers.

    Raises
    ------
    FedethosError
        DATA-184 rows whose prompt and longest answer are together longer than ``max_length`` tokens. Nothing is cut: a prompt without its
        end, or an answer without its own, would be another record.
    """
    rows = [tokenize(prompt, own) for prompt, own in zip(prompts, answers, strict=True)]
    longest = [len(prompt) + max(map(len, own)) for prompt, own in rows]
    if over := sum(length > max_length for length in longest):
        raise FedethosError(
            "DATA-184",
            f"{over} rows have a prompt and an answer of more than {max_length} tokens together.",
            where="model.max_length",
            why="Cut texts would teach something else than the record says.",
            fix="Raise model.max_length as far as the model reads, or shorten these records.",
        )
    return PromptTable(
        tokens=np.array([token for prompt, own in rows for part in (prompt, *own) for token in part], dtype=np.int32),
        prompt=np.array([len(prompt) for prompt, _ in rows], dtype=np.int64),
        answers=np.array([[len(part) for part in own] for _, own in rows], dtype=np.int64).reshape(len(rows), -1),
        pad_token_id=pad_token_id,
    )


@dataclass(frozen=True)
class PlainText:
    """Prompts as they are, the answer after a blank. ``end``: whether the end of the text is part of an answer (free text is learnt with
    it; options are compared without)."""

    tokenizer: PreTrainedTokenizerBase
    end: bool

    def __call__(self, prompt: str, answers: Answers) -> tuple[Tokenized, list[Tokenized]]:
        start = self.tokenizer(prompt.rstrip(), split_special_tokens=True)["input_ids"] or [_end_of(self.tokenizer)]
        after = [_end_of(self.tokenizer)] if self.end else []
        return list(start), [[] if text is None else [*content_tokens(self.tokenizer, f" {text}"), *after] for text in answers]


@dataclass(frozen=True)
class ChatTemplate:
    """Prompts in the tokenizer's chat template, as the user's message or as the chat that they are; answers are the assistant's.

    A record cannot write the template's own marks: what stands in a message is tokenised apart, with ``<|im_end|>`` as plain text.
    MODEL-482 when the template cannot render a record, or does not write an answer behind its prompt.
    """

    tokenizer: PreTrainedTokenizerBase
    end: bool
    chat: bool

    def __call__(self, prompt: str, answers: Answers) -> tuple[Tokenized, list[Tokenized]]:
        messages = read_chat(prompt) if self.chat else [{"role": "user", "content": prompt}]
        return self._tokens(self._render(messages, prompt=True), messages), [
            [] if text is None else self._answer(messages, text) for text in answers
        ]

    def _answer(self, messages: list[dict[str, str]], text: str) -> Tokenized:
        if not self.end:
            return content_tokens(self.tokenizer, text)
        start, answered = self._render(messages, prompt=True), [*messages, {"role": "assistant", "content": text}]
        whole = self._render(answered, prompt=False)
        if not whole.startswith(start):
            raise _cannot_render()
        return self._tokens(whole.removeprefix(start).rstrip(), answered)

    def _render(self, messages: list[dict[str, str]], *, prompt: bool) -> str:
        """The template with a mark in the place of each message's content."""
        marked = [{**message, "content": _MARK.format(place)} for place, message in enumerate(messages)]
        try:
            return str(self.tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=prompt))
        except (TemplateError, TypeError):
            raise _cannot_render() from None

    def _tokens(self, rendered: str, messages: list[dict[str, str]]) -> Tokenized:
        """Text of the template, and between it (every second part) the places of the contents."""
        tokens: Tokenized = []
        for number, part in enumerate(_MARKS.split(rendered)):
            if number % 2:
                tokens += content_tokens(self.tokenizer, messages[int(part)]["content"].strip())
            elif part:
                tokens += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return tokens


_MARK = "\ue000{}\ue001"  # of the private use area, so that no template changes it
_MARKS = re.compile("\ue000([0-9]+)\ue001")


def content_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokenized:
    """The tokens of text that a person wrote: marks of the tokenizer in it are text like any other."""
    tokens: Tokenized = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return tokens


def tokenize_for(tokenizer: PreTrainedTokenizerBase, *, template: bool, chat: bool, end: bool) -> Tokenize:
    """How prompts and answers become tokens: in the chat ``template`` or plain. ``chat``: prompts are chats. ``end``: see ``PlainText``."""
    return ChatTemplate(tokenizer, end, chat) if template else PlainText(tokenizer, end)


def _end_of(tokenizer: PreTrainedTokenizerBase) -> int:
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise FedethosError(
            "MODEL-483",
            "The tokenizer has no end-of-text token.",
            where="model.path",
            why="The model could not learn where an answer ends.",
            fix="Set eos_token in the model's tokenizer_config.json.",
        )
    return end


def _cannot_render() -> FedethosError:
    return FedethosError(
        "MODEL-482",
        "The tokenizer's chat template cannot render a record, or does not write the answer behind the prompt.",
        where="model.chat_template",
        why="The model would be trained on another text than it is used with.",
        fix="Check the roles in data.messages (user and assistant in turn), or set model.chat_template: off for plain prompts.",
    )
