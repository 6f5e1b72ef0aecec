"""The data contract: a table of text becomes records with a text or features, a label, groups and a person. Next: ``fedethos.data.split``.

``data.map`` turns raw values into declared categories, or into missing ones. The text shows mapped values too; only a sensitive column that
comparisons sort into groups (``{age: {"<40": younger, ">=40": older}}``) keeps its number in the text, and as a numeric feature.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedethos import job_data
from fedethos.data.answers import answer_columns, prompts_and_answers
from fedethos.data.counterfactual import Swaps, swapped_features, swapped_texts
from fedethos.data.features import encode_features
from fedethos.data.filters import Filters, matching
from fedethos.data.mapping import map_values, thresholds
from fedethos.data.records import Records
from fedethos.data.template import Template, parse_template
from fedethos.errors import FedethosError

__all__ = ["Records", "apply_contract"]

Values = Sequence[str | None]


def apply_contract(
    frame: pd.DataFrame, data: job_data.Data, *, keep: str | None = None, swaps: Swaps | None = None, filters: Filters | None = None
) -> Records:
    """Apply ``data`` to a table of ``str`` or ``None`` (``read_table``); ``keep`` names a column whose raw values are kept.

    ``swaps``: sensitive attributes whose counterfactual inputs are wanted (``Records.swapped``). ``filters``: by the name of a group table,
    which records belong into it (``Job.scenarios``).

    Raises DATA-104 (missing column), DATA-112 and DATA-113 (template), DATA-114 and DATA-115 (map), DATA-121 and DATA-122 (value not
    declared), DATA-123 (missing label), DATA-124 (missing person), DATA-151 and DATA-152 (features), DATA-180 to DATA-183 (prompts and
    answers). Rows are counted in an error, their values never shown.
    """
    template = Template(()) if data.text is None else parse_template(data.text)
    features = data.features or {}
    _check_text_source(template, data)
    if swaps and (data.messages is not None or data.choice_style == "letter"):
        raise FedethosError(
            "DATA-187",
            "Values in a chat, or in prompts that list their options, cannot be swapped.",
            where="data.messages, data.choice_style",
            fix="Write the prompt as a template under data.text, and score options by their text.",
        )
    filters = filters or {}
    _check_columns(frame, data, template, keep, filters)
    _check_map_targets(data)
    raw: dict[str, Values] = {str(name): frame[name].tolist() for name in frame.columns}
    mapped = {**raw, **{column: map_values(raw[column], mapping, column=column) for column, mapping in data.map.items()}}
    shown = {column: _numbers(raw[column], mapped[column]) if _sorted_into_groups(column, data) else mapped[column] for column in raw}
    inputs = {column: mapped[column] if isinstance(declared, list) else shown[column] for column, declared in features.items()}
    unit, identity = _rows(raw) if data.person_id is None else _people(raw[data.person_id], data.person_id)
    text = template.render(shown) if data.text is not None else ()
    label = _labels(mapped, data.label, rows=len(frame))
    prompts, answers = (text, ()) if not _has_answers(data) else prompts_and_answers(shown, text, label.tolist(), data)
    return Records(
        text=prompts,
        label=label,
        groups={attribute: _groups(mapped[attribute], attribute, categories) for attribute, categories in data.sensitive.items()}
        | {name: matching(wanted, mapped, shown, rows=len(frame)) for name, wanted in filters.items()},
        unit=unit,
        identity=identity,
        kept=None if keep is None else tuple(raw[keep]),
        features=encode_features(inputs, features) if features else None,
        swapped={
            attribute: swapped_features(inputs, features, attribute, data.sensitive[attribute], swap)
            if features
            else swapped_texts(template, shown, text, attribute, data.sensitive[attribute], swap)
            for attribute, swap in (swaps or {}).items()
        },
        answers=answers,
    )


def _has_answers(data: job_data.Data) -> bool:
    return any(part is not None for part in (data.messages, data.response, data.choices, data.chosen))


def _check_text_source(template: Template, data: job_data.Data) -> None:
    for column, role in ((data.label.column, "the label"), (data.person_id, "the person's identifier")):
        if column is not None and column in template.columns:
            raise FedethosError(
                "DATA-113",
                f'The text would show {role}, column "{column}".',
                where="data.text",
                why="The model would read the answer or memorise who it is.",
                fix="Leave the column out of data.text.",
            )


def _check_columns(frame: pd.DataFrame, data: job_data.Data, template: Template, keep: str | None, filters: Filters) -> None:
    present = [str(name) for name in frame.columns]
    wanted = {
        "data.label.column": [data.label.column] if data.label.column is not None else [],
        "data.sensitive": list(data.sensitive),
        "data.text": list(template.columns),
        **answer_columns(data),
        "data.features": list(data.features or ()),
        "data.map": list(data.map),
        "data.person_id": [data.person_id] if data.person_id is not None else [],
        "simulation.partition.by": [keep] if keep is not None else [],
        "scenarios": [column for wanted in filters.values() for column in wanted],
    }
    # Names are shown only where at least one of the job's names is there: else the "names" may be a first record's values.
    known = present if any(column in present for columns in wanted.values() for column in columns) else []
    for key, columns in wanted.items():
        for column in columns:
            if column not in present:
                raise FedethosError("DATA-104", f'The data has no column "{column}".', where=key, fix=_column_advice(column, known))


def _column_advice(column: str, known: Sequence[str]) -> str:
    if not known:
        return "None of the job's columns is there: if the file has no header line, name its columns under data.columns."
    lower = {name.lower(): name for name in known}
    near = [lower[match] for match in difflib.get_close_matches(column.lower(), lower, n=3)]
    return f"Nearest names: {', '.join(near)}." if near else "No column has a similar name."


def _check_map_targets(data: job_data.Data) -> None:
    declared = {**data.sensitive, **({data.label.column: data.label.values} if data.label.column is not None else {})}
    for column, mapping in data.map.items():
        stray = sorted({category for category in mapping.values() if category is not None} - set(declared.get(column, mapping.values())))
        if stray:
            raise FedethosError(
                "DATA-115",
                f"The map leads to a category that the job does not declare: {', '.join(stray)}.",
                where=f"data.map.{column}",
                fix=f"Declared are: {', '.join(declared[column])}.",
            )


def _sorted_into_groups(column: str, data: job_data.Data) -> bool:
    return column in data.sensitive and bool(thresholds(data.map.get(column, {})))


def _numbers(raw: Values, mapped: Values) -> Values:
    """Raw values, without those that the map calls missing."""
    return [None if group is None else value for value, group in zip(raw, mapped, strict=True)]


def _labels(columns: Mapping[str, Values], label: job_data.Label, *, rows: int) -> NDArray[np.int64]:
    if label.column is None:
        return np.zeros(rows, dtype=np.int64)
    values = columns[label.column]
    missing = sum(value is None for value in values)
    if missing:
        raise FedethosError(
            "DATA-123",
            f'{missing} rows have no label in "{label.column}".',
            where="data.label",
            why="A record without an outcome can neither train nor be measured.",
            fix="Take these rows out of the export, or check data.na_values.",
        )
    return _index(values, label.values, "DATA-122", label.column, "data.label.values")


def _groups(values: Values, attribute: str, categories: Sequence[str]) -> NDArray[np.int64]:
    """Index of each row's category; missing is the last one, ``unknown``."""
    return _index(values, categories, "DATA-121", attribute, f"data.sensitive.{attribute}")


def _index(values: Values, declared: Sequence[str], code: str, column: str, key: str) -> NDArray[np.int64]:
    position: Mapping[str | None, int] = {**{category: i for i, category in enumerate(declared)}, None: len(declared)}
    outside = sum(value not in position for value in values)
    if outside:
        raise FedethosError(
            code,
            f'{outside} rows have a value in "{column}" that the job does not list (values not shown).',
            where=key,
            why="A value is never guessed or dropped. Text is compared exactly: 1 and 1.0 differ.",
            fix=f"Map them under data.map.{column}, list them under {key}, or, where they mean 'missing', under data.na_values.",
        )
    return np.array([position[value] for value in values], dtype=np.int64)


def _people(values: Values, column: str) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Unit and identity where a column names the person."""
    missing = sum(value is None for value in values)
    if missing:
        raise FedethosError(
            "DATA-124",
            f'{missing} rows have no person in "{column}".',
            where="data.person_id",
            why="Privacy is promised per person, and these rows belong to nobody.",
            fix="Give each row its person, or take these rows out of the export.",
        )
    unit = pd.factorize(np.array(values, dtype=object))[0].astype(np.int64)
    return unit, _digests([json.dumps(value) for value in values])


def _rows(columns: Mapping[str, Values]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Unit and identity where nothing names the person: each row, and the digest of its values by column name.

    Neither the order of the columns nor a column that is empty in this row changes the digest.
    """
    names = sorted(columns)
    rows = list(zip(*(columns[name] for name in names), strict=True))
    present = [{name: cell for name, cell in zip(names, row, strict=True) if cell is not None} for row in rows]
    return np.arange(len(rows), dtype=np.int64), _digests([json.dumps(row) for row in present])


def _digests(canonical: Sequence[str]) -> NDArray[np.uint8]:
    """SHA-256 of each canonical JSON text: a string for a person, an object for a row. Shape [n, 32]."""
    joined = b"".join(hashlib.sha256(text.encode()).digest() for text in canonical)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, 32)
