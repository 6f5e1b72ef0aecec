"""What a language model is asked about each record: a prompt, and the answers whose likelihood counts. Next: ``fedethos.data.prompts``.

causal-lm has one answer, the response; multiple-choice one for each of ``data.label.values``; preference two, the chosen one first.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from fedethos import job_data
from fedethos.data.template import Template, parse_template
from fedethos.errors import FedethosError

Table = Mapping[str, Sequence[str | None]]
Answers = tuple[str | None, ...]
"""One record's answers; None where it has no such option."""


class ChatMessage(BaseModel):
    """One turn of a chat, with the names that Hugging Face's chat templates read. Other roles could smuggle marks of the template in."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)

    role: Literal["system", "user", "assistant"]
    content: str


_CHAT, _TEXTS = TypeAdapter(list[ChatMessage]), TypeAdapter(list[str])


def answer_templates(data: job_data.Data) -> list[tuple[str, Template]]:
    """The templates of all answers by their key in the job, without a column that lists choices. Raises DATA-112."""
    named = [(f"data.{key}", text) for key in ("response", "chosen", "rejected") if (text := getattr(data, key)) is not None]
    if data.choices is not None and _listing(data) is None:
        named += [(f"data.choices.{value}", data.choices[value]) for value in data.label.values]
    return [(key, parse_template(text, constant=key.startswith("data.choices"), where=key)) for key, text in named]


def answer_columns(data: job_data.Data) -> dict[str, list[str]]:
    """The columns that prompts and answers need beside ``data.text``, by key."""
    listing = _listing(data)
    return {
        "data.messages": [data.messages] if data.messages is not None else [],
        "data.choices": [listing] if listing is not None else [],
        **{key: list(template.columns) for key, template in answer_templates(data)},
    }


def prompts_and_answers(
    table: Table, text: Sequence[str], label: Sequence[int], data: job_data.Data
) -> tuple[tuple[str, ...], tuple[Answers, ...]]:
    """The prompts (a text, or the JSON of a chat) and the answers of n records.

    Parameters
    ----------
    text : sequence of str, n
        ``data.text`` as it reads for each record; not used where ``data.messages`` names a chat.
    label : sequence of int, n
        The right option of multiple-choice, where the job says which that is.

    Raises
    ------
    FedethosError
        DATA-180 rows without an answer, DATA-181 rows whose chat is none, DATA-182 rows with fewer than two choices or with too many,
        DATA-183 rows whose right choice has no text. Rows are counted, their texts never shown.
    """
    prompts, answers = tuple(text), _answers(table, data, len(label))
    if data.messages is not None:
        chats = _chats(table[data.messages])
        if not answers:
            return _without_last(chats)
        prompts = tuple(dump_chat(chat) for chat in chats)
    if data.choices is None:
        _require_all(answers)
        return prompts, answers
    _require_choices(answers, label if data.label.column is not None else None)
    if data.choice_style == "letter":
        prompts = tuple(_with_options(prompt, one, chat=data.messages is not None) for prompt, one in zip(prompts, answers, strict=True))
        answers = tuple(tuple(None if text is None else letter for letter, text in zip(_LETTERS, one, strict=False)) for one in answers)
    return prompts, answers


_LETTERS = string.ascii_uppercase


def read_chat(prompt: str) -> list[dict[str, str]]:
    """A chat from its JSON, as chat templates read it."""
    return [message.model_dump() for message in _CHAT.validate_json(prompt)]


def open_chats(cells: Sequence[str | None]) -> tuple[str, ...]:
    """Chats that the assistant is to answer next: an answer that stands there already is left out. Raises DATA-181."""
    return tuple(dump_chat(chat[:-1] if chat[-1].role == "assistant" else chat) for chat in _chats(cells))


def _answers(table: Table, data: job_data.Data, rows: int) -> tuple[Answers, ...]:
    listing = _listing(data)
    if listing is not None:
        return tuple(_listed(cell, len(data.label.values)) for cell in table[listing])
    columns = [_render(template, table, rows) for _, template in answer_templates(data)]
    return tuple(zip(*columns, strict=True))


def _listing(data: job_data.Data) -> str | None:
    """The column that lists the choices."""
    if data.choices is None or set(data.choices) != {"column"} or "column" in data.label.values:
        return None
    return data.choices["column"]


def _listed(cell: str | None, options: int) -> Answers:
    """Choices of one record, None at the end where it has fewer than there are labels; none at all where the cell lists too many."""
    try:
        texts = [text.strip() or None for text in _TEXTS.validate_json(cell or "[]")]
    except ValidationError:
        texts = []
    return (*texts, *[None] * (options - len(texts))) if len(texts) <= options else (None,) * options


def _render(template: Template, table: Table, rows: int) -> list[str | None]:
    """The texts of an answer; None where a column that it shows is missing."""
    if not template.columns:
        return [template.tail] * rows
    missing = [any(cell is None for cell in cells) for cells in zip(*(table[column] for column in template.columns), strict=True)]
    return [None if gone else text for gone, text in zip(missing, template.render(table), strict=True)]


def _chats(cells: Sequence[str | None]) -> list[list[ChatMessage]]:
    chats = []
    for cell in cells:
        try:
            chats.append(_CHAT.validate_json(cell or ""))
        except ValidationError:
            chats.append([])
    if wrong := sum(not chat for chat in chats):
        raise FedethosError(
            "DATA-181",
            f"{wrong} rows have no chat where the job names one.",
            where="data.messages",
            fix='Write a JSON list such as [{"role": "user", "content": "…"}], one a record.',
        )
    return chats


def _without_last(chats: list[list[ChatMessage]]) -> tuple[tuple[str, ...], tuple[Answers, ...]]:
    _require_all([(chat[-1].content.strip() or None if chat[-1].role == "assistant" and len(chat) > 1 else None,) for chat in chats])
    return tuple(dump_chat(chat[:-1]) for chat in chats), tuple((chat[-1].content.strip(),) for chat in chats)


def dump_chat(chat: Sequence[ChatMessage]) -> str:
    """The JSON of a chat, as ``Records.text`` holds it."""
    return json.dumps([message.model_dump() for message in chat], ensure_ascii=False)


def _require_all(answers: Sequence[Answers]) -> None:
    if missing := sum(None in one for one in answers):
        raise FedethosError(
            "DATA-180",
            f"{missing} rows have no answer to learn from.",
            where="data.response, data.chosen, data.rejected, or the assistant's last message in data.messages",
            why="A language model learns from the answer alone.",
            fix="Take these rows out of the export, or map the column that holds the answer.",
        )


def _require_choices(answers: Sequence[Answers], label: Sequence[int] | None) -> None:
    if few := sum(sum(text is not None for text in one) < 2 for one in answers):
        raise FedethosError(
            "DATA-182",
            f"{few} rows have fewer than two choices, or more than there are labels.",
            where="data.choices",
            why="Without a choice there is nothing to score.",
            fix="Give each record a text for at least two of data.label.values, in their order.",
        )
    if label is not None and (absent := sum(one[right] is None for one, right in zip(answers, label, strict=True))):
        raise FedethosError(
            "DATA-183",
            f"{absent} rows have no text for the choice that their label calls right.",
            where="data.choices",
            fix="Check that labels and choices stand in the same order.",
        )


def _with_options(prompt: str, answers: Answers, *, chat: bool) -> str:
    """The prompt with its options listed under letters."""
    listed = "".join(f"\n{letter}. {text}" for letter, text in zip(_LETTERS, answers, strict=False) if text is not None)
    if not chat:
        return f"{prompt}{listed}\nAnswer:"
    messages = _CHAT.validate_json(prompt)
    last = messages[-1]
    return dump_chat([*messages[:-1], ChatMessage(role=last.role, content=f"{last.content}{listed}\nAnswer:")])
