"""BBQ (Parrish et al. 2022, "BBQ: A Hand-Built Bias Benchmark for Question Answering") as records for the task multiple-choice.

Options are named by their role instead of their place: ``biased`` goes along with the stereotype, ``counter`` against it, ``unknown`` says
that it cannot be known. The role depends on the question's polarity: in "Who is bad with phones?" the biased answer is the stereotyped
group, in "Who is good with them?" the other. So tables (group, label, prediction) of a run tell accuracy and bias scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fedethos.errors import FedethosError

Role = Literal["biased", "counter", "unknown"]

_OPTIONS = ("ans0", "ans1", "ans2")
_GENDERS = {"woman": "f", "girl": "f", "man": "m", "boy": "m"}  # in answers, where the metadata say F and M


class _Metadata(BaseModel):
    stereotyped_groups: list[str]


class _Line(BaseModel):
    """One line of a BBQ file, as far as it is read."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    category: str
    question_index: str
    question_polarity: Literal["neg", "nonneg"]
    context_condition: Literal["ambig", "disambig"]
    context: str
    question: str
    ans0: str
    ans1: str
    ans2: str
    answer_info: dict[str, list[str]]
    additional_metadata: _Metadata
    label: Literal[0, 1, 2]


@dataclass(frozen=True)
class BbqItem:
    """``template`` names the hand-written question that an item was filled from: items of one template belong to one split.

    Templates that share a question ("Who was the secretary?" is asked about groups and about first names) are one, named after the first:
    else a model would be tested on questions that it was trained on. Of 275, 228 are left.
    """

    category: str
    template: str
    condition: Literal["ambig", "disambig"]
    polarity: Literal["neg", "nonneg"]
    context: str
    question: str
    biased: str
    counter: str
    unknown: str
    answer: Role


def read_bbq(folder: Path) -> list[BbqItem]:
    """The items of the ``*.jsonl`` files in ``folder``, by file name and line.

    An item whose answers do not tell which of the two groups the stereotype is about is left out: 16 of 31,372 (a boy and a man,
    where the stereotype is about women). Raises DATA-190 when there is no file, or a line is no BBQ item.
    """
    files = sorted(folder.glob("*.jsonl"))
    items = [item for file in files for item in _items(file)]
    if not items:
        raise _no_bbq(folder, "The folder holds no BBQ file.")
    return _with_shared_templates(items)


def _with_shared_templates(items: list[BbqItem]) -> list[BbqItem]:
    templates, template = np.unique([item.template for item in items], return_inverse=True)
    questions, question = np.unique([item.question for item in items], return_inverse=True)
    edges = coo_array((np.ones(len(items)), (template, len(templates) + question)), shape=(len(templates) + len(questions),) * 2)
    part = connected_components(edges, directed=False)[1][: len(templates)]
    first = [str(templates[np.argmax(part == one)]) for one in part]
    return [replace(item, template=first[place]) for item, place in zip(items, template, strict=True)]


def write_table(items: list[BbqItem], path: Path, *, count: int, seed: int) -> int:
    """Write at most ``count`` items as JSONL, about as many of each category, chosen by ``seed`` alone; how many were written.

    Beside an item's own fields: ``chosen``, the text of the right answer, and ``rejected``, that of the biased one, or of the counter where
    the biased one is right.
    """
    rng = np.random.default_rng(seed)
    categories = sorted({item.category for item in items})
    chosen: list[BbqItem] = []
    for place, category in enumerate(categories):
        own = [item for item in items if item.category == category]
        share = (count - len(chosen)) // (len(categories) - place)
        chosen += [own[row] for row in sorted(rng.permutation(len(own))[:share])]
    path.write_text("".join(json.dumps(asdict(item) | _pair(item), ensure_ascii=False) + "\n" for item in chosen), "utf-8")
    return len(chosen)


def _pair(item: BbqItem) -> dict[str, str]:
    texts: dict[Role, str] = {"biased": item.biased, "counter": item.counter, "unknown": item.unknown}
    return {"chosen": texts[item.answer], "rejected": texts["counter" if item.answer == "biased" else "biased"]}


def _items(file: Path) -> Iterator[BbqItem]:
    for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
        try:
            item = _item(_Line.model_validate_json(line))
        except (ValidationError, ValueError, IndexError, KeyError):
            raise _no_bbq(file, f"Line {number} is no BBQ item.") from None
        if item is not None:
            yield item


def _item(line: _Line) -> BbqItem | None:
    groups = {option: line.answer_info[option][1] for option in _OPTIONS}
    (unknown,) = (option for option in _OPTIONS if groups[option] == "unknown")
    targets = {_plain(group) for group in line.additional_metadata.stereotyped_groups}
    people = [option for option in _OPTIONS if option != unknown]
    names = {option: {_plain(groups[option]), _plain(line.answer_info[option][0])} for option in people}
    if len(found := [option for option in people if names[option] & targets]) != 1:
        return None
    (target,), (other,) = found, (option for option in people if option not in found)
    biased, counter = (target, other) if line.question_polarity == "neg" else (other, target)
    roles: dict[str, Role] = {biased: "biased", counter: "counter", unknown: "unknown"}
    texts = {"ans0": line.ans0, "ans1": line.ans1, "ans2": line.ans2}
    return BbqItem(
        category=line.category,
        template=f"{line.category}/{line.question_index}",
        condition=line.context_condition,
        polarity=line.question_polarity,
        context=line.context,
        question=line.question,
        biased=texts[biased],
        counter=texts[counter],
        unknown=texts[unknown],
        answer=roles[_OPTIONS[line.label]],
    )


def _plain(group: str) -> str:
    """A group's name as BBQ's answers and its metadata both have it: ``F-Black`` is Black, ``lowSES`` low SES, ``trans_F`` trans."""
    name = group.lower().replace(" ", "").removeprefix("f-").removeprefix("m-").split("_")[0]
    return _GENDERS.get(name, name)


def _no_bbq(where: Path, what: str) -> FedethosError:
    return FedethosError(
        "DATA-190", what, where=str(where), fix="Give the folder with BBQ's own files, such as Age.jsonl (github.com/nyu-mll/BBQ, data/)."
    )
