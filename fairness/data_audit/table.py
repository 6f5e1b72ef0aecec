"""The records of a site as the audit reads them: model inputs column by column, label, groups, people, splits.

Columns are those that the job's model reads. Each becomes levels: a category is a level, numbers with many values are cut at their
quantiles, a missing value is a level of its own. Free text is kept as text. Next: ``audit.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedethos.data.answers import answer_columns
from fedethos.data.mapping import map_values, thresholds
from fedethos.data.records import Records
from fedethos.data.split import SplitName
from fedethos.data.template import parse_template
from fedethos.data.values import NUMBER
from fedethos.job_data import UNKNOWN, Data, Numeric

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
BINS = 20  # of a number with more different values than MANY
MANY = 100
TEXT_WORDS = 5  # words per cell, on average, from which a column without numbers is free text


@dataclass(frozen=True, eq=False)
class Column:
    """``codes`` int64[n] are levels (0 is missing), all 0 for free text; ``text`` n cells of free text, else empty.

    ``sensitive``: the column is one of the job's sensitive attributes, and the model reads it.
    """

    name: str
    codes: IntArray
    missing: BoolArray
    sensitive: bool
    text: tuple[str, ...] = ()

    @property
    def levels(self) -> int:
        return int(self.codes.max()) + 1 if len(self.codes) else 0


@dataclass(frozen=True, eq=False)
class AuditTable:
    """n rows that take part in the job.

    Attributes
    ----------
    people : int64[n]
        Dense index of the person, of the row where the job maps no person.
    label : int64[n]
        Index into ``labels``; ``favorable`` is the index of the favorable one.
    groups : dict of int64[n]
        Per sensitive attribute an index into ``categories[attribute]``, whose last name is ``unknown``.
    split : int64[n]
        Index into ``SPLITS``.
    text : tuple of str, n
        What a text model reads, a language model's answers too; empty for tabular jobs.
    record : int64[n]
        Equal where two rows agree in every column of the file but the person.
    model_input : int64[n]
        Equal where the model reads the same.
    """

    people: IntArray
    label: IntArray
    labels: tuple[str, ...]
    favorable: int
    groups: Mapping[str, IntArray]
    categories: Mapping[str, tuple[str, ...]]
    split: IntArray
    columns: tuple[Column, ...]
    text: tuple[str, ...]
    record: IntArray
    model_input: IntArray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def favored(self) -> BoolArray:
        """bool[n]: the row has the favorable label."""
        result: BoolArray = self.label == self.favorable
        return result

    def people_in(self, attribute: str) -> IntArray:
        """Different people per group, int64[G]; somebody whose rows name two groups counts in both."""
        pairs = np.unique(self.people * len(self.categories[attribute]) + self.groups[attribute])
        return np.bincount(pairs % len(self.categories[attribute]), minlength=len(self.categories[attribute]))

    def compared(self, attribute: str, min_people: int) -> IntArray:
        """Declared groups with at least ``min_people`` people: small groups and ``unknown`` are shown, not compared."""
        return np.flatnonzero(self.people_in(attribute)[:-1] >= min_people)


def audit_table(frame: pd.DataFrame, data: Data, records: Records, split: IntArray) -> AuditTable:
    """Bring together what the contract read.

    Parameters
    ----------
    frame : DataFrame
        ``read_table``'s table, cells ``str`` or ``None``; n rows as in ``records``.
    records : Records
        ``apply_contract(frame, data)``.
    split : int64[n]
        Index into ``SPLITS``, -1 for rows that the job leaves out (``data.limit``).
    """
    used = np.flatnonzero(split >= 0)
    frame, records = frame.iloc[used], records.take(used)
    contents = frame.drop(columns=[data.person_id] if data.person_id is not None else [])
    text = _with_answers(records)
    inputs: Sequence[object] = text if records.features is None else [row.tobytes() for row in records.features]
    return AuditTable(
        people=records.unit.astype(np.int64),
        label=records.label,
        labels=tuple(data.label.values),
        favorable=data.label.favorable_index,
        groups=dict(records.groups),
        categories={attribute: (*names, UNKNOWN) for attribute, names in data.sensitive.items()},
        split=split[used],
        columns=tuple(_column(name, frame[name].tolist(), data) for name in _read_by_the_model(data)),
        text=text,
        record=_same(list(map(tuple, contents.itertuples(index=False, name=None)))),
        model_input=_same(inputs),
    )


def row_splits(records: Records, sites: Iterable[Mapping[SplitName, Records]]) -> IntArray:
    """Index into ``SPLITS`` of each row, int64[n], -1 where it takes no part; an identity is in one split of one site.

    ``sites``: what ``split_records`` gave, per site. All rows of a person count, also those beyond ``privacy.max_records_per_person``.
    """
    place = {identity.tobytes(): SPLITS.index(name) for parts in sites for name, part in parts.items() for identity in part.identity}
    return np.array([place.get(identity.tobytes(), -1) for identity in records.identity], dtype=np.int64)


def _read_by_the_model(data: Data) -> list[str]:
    if data.features is not None:
        return sorted(data.features)
    shown = set(parse_template(data.text).columns) if data.text is not None else set()
    return sorted(shown.union(*answer_columns(data).values()))


def _with_answers(records: Records) -> tuple[str, ...]:
    """Each text, with the answers that a language model learns from behind its prompt."""
    if not records.answers:
        return records.text
    return tuple("\n".join([prompt, *filter(None, own)]) for prompt, own in zip(records.text, records.answers, strict=True))


def _column(name: str, cells: Sequence[str | None], data: Data) -> Column:
    declared, mapping = (data.features or {}).get(name), data.map.get(name, {})
    keeps_its_number = name in data.sensitive and bool(thresholds(mapping)) and not isinstance(declared, list)  # as in data/contract.py
    values = list(cells) if keeps_its_number else map_values(cells, mapping, column=name)
    missing = np.array([value is None for value in values], dtype=np.bool_)
    sensitive = name in data.sensitive
    if _is_text(name, values, data):
        return Column(name, np.zeros(len(values), dtype=np.int64), missing, sensitive, tuple(value or "" for value in values))
    return Column(name, _codes(values, missing, isinstance(declared, Numeric)), missing, sensitive)


def _is_text(name: str, values: Sequence[str | None], data: Data) -> bool:
    if data.text is None:
        return False
    present = [value for value in values if value is not None]
    return data.text == {"column": name} or (
        len(set(present)) > MANY and sum(len(value.split()) for value in present) >= TEXT_WORDS * len(present)
    )


def _codes(values: Sequence[str | None], missing: BoolArray, declared_numeric: bool) -> IntArray:
    """Levels from 1 on, 0 for missing."""
    distinct = {value for value in values if value is not None}
    numeric = declared_numeric or all(NUMBER.fullmatch(value) for value in distinct)
    codes = np.zeros(len(values), dtype=np.int64)
    if numeric and len(distinct) > MANY:
        numbers = np.array([float(value) for value in values if value is not None])
        edges = np.unique(np.quantile(numbers, np.linspace(0.0, 1.0, BINS + 1)[1:-1]))
        codes[~missing] = np.searchsorted(edges, numbers, side="right") + 1
    else:
        position = {value: place for place, value in enumerate(sorted(distinct), start=1)}
        codes[~missing] = [position[value] for value in values if value is not None]
    return codes


def _same(values: Sequence[object]) -> IntArray:
    """Dense index of equal values."""
    position: dict[object, int] = {}
    return np.array([position.setdefault(value, len(position)) for value in values], dtype=np.int64)
