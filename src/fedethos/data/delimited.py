"""Comma-separated files and their relatives: with or without a header line, with ``, `` or ``;`` between the fields.

Nothing is guessed silently: a delimiter is taken only when exactly one candidate explains the first lines, a line with
another number of fields is an error, and so is a first line that looks like a record instead of a header.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from fedethos.data.values import NUMBER, text_of
from fedethos.errors import FedethosError

Columns = list[tuple[str, list[str | None]]]  # a list, not a dict: the reader must see a name that occurs twice

_SAMPLE = 20  # records that decide the delimiter


def read_delimited(path: Path, columns: Sequence[str] | None) -> Columns:
    """All columns of a delimited UTF-8 text file.

    ``columns`` names the columns of a file without a header line; None: the first line is the header. A column without a
    name (such as the row numbers that pandas writes) cannot be used and is left out.

    Raises DATA-103 (not readable as text), DATA-105 (lines of different width), DATA-109 (``columns`` does not fit, or a
    missing header) and DATA-110 (no clear delimiter).
    """
    text = _read_text(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _find_delimiter(text, columns, path)
    records = _records(text, delimiter, path)
    if columns is None:
        names = [name.strip() for _, header in islice(records, 1) for name in header]
        _check_header(names, path)
    else:
        names = list(columns)
    cells: list[list[str | None]] = [[] for _ in names]
    for line, record in records:
        if len(record) != len(names):
            raise _ragged(path, line, len(record), len(names), declared=columns is not None)
        for cell, value in zip(cells, record, strict=True):
            cell.append(text_of(value))
    return [(name, cell) for name, cell in zip(names, cells, strict=True) if name]


def _read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError:
        raise FedethosError(
            "DATA-103", "The file is not UTF-8 text.", where=str(path), fix="Save it with the encoding UTF-8, or as Parquet."
        ) from None


def _records(text: str, delimiter: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every record; blank lines are skipped."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=delimiter != " ", strict=True)
    try:
        for record in reader:
            if len(record) > 1 or any(field.strip() for field in record):
                yield reader.line_num, record
    except csv.Error:
        raise FedethosError(
            "DATA-105",
            f"Line {reader.line_num} cannot be read as delimited text.",
            where=str(path),
            why="A quote that is opened and not closed swallows the lines after it.",
            fix="Close the quote, or double each quote inside a quoted field.",
        ) from None


def _find_delimiter(text: str, columns: Sequence[str] | None, path: Path) -> str:
    """The one delimiter that splits the first records into the same number of fields (the declared number, if there is one)."""
    candidates: dict[str, bool] = {}  # whether all sampled records have the same width
    for delimiter in [",", ";", "\t", "|", " "]:
        if delimiter == " " and (columns is None or candidates):  # blanks separate only what nothing else separates
            continue
        widths = _sample_widths(text, delimiter, path)
        if widths and widths[0] > 1 and (columns is None or widths[0] == len(columns)):
            candidates[delimiter] = len(set(widths)) == 1
    steady = [delimiter for delimiter, is_steady in candidates.items() if is_steady]
    if len(steady) > 1 or (not steady and len(candidates) > 1):
        raise FedethosError(
            "DATA-110",
            "The delimiter is not clear: several characters would split the file into columns.",
            where=str(path),
            fix="Save the file with commas and quoted text, as .tsv, or as Parquet.",
        )
    return (steady or list(candidates) or [","])[0]


def _sample_widths(text: str, delimiter: str, path: Path) -> list[int]:
    try:
        return [len(record) for _, record in islice(_records(text, delimiter, path), _SAMPLE)]
    except FedethosError:
        return []


def _check_header(names: Sequence[str], path: Path) -> None:
    numbers = sum(bool(NUMBER.fullmatch(name)) for name in names)
    if numbers:
        raise FedethosError(
            "DATA-109",
            f"The first line does not look like a header: {numbers} of its {len(names)} names are numbers (not shown).",
            where=str(path),
            why="A first record taken for a header would be lost, and its values would turn up as names.",
            fix="Name the columns under data.columns.",
        )


def _ragged(path: Path, line: int, found: int, expected: int, *, declared: bool) -> FedethosError:
    if declared:
        return FedethosError(
            "DATA-109",
            f"Line {line} has {found} fields, but data.columns names {expected}.",
            where=str(path),
            fix="Name every column of the file, in its order.",
        )
    return FedethosError(
        "DATA-105",
        f"Line {line} has {found} fields, but the header has {expected}.",
        where=str(path),
        why="Values would land in the wrong columns.",
        fix="Quote the fields that hold the delimiter, or complete the line.",
    )
