"""Reading benchmark files: their published columns, strictly. What does not fit is refused by line number; nothing is skipped."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fedethos.errors import FedethosError


def read_text(path: Path) -> str:
    """A UTF-8 file. DATA-191 when there is none."""
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise not_this_benchmark(path, "The benchmark file cannot be read as UTF-8 text.") from None


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows with at least these columns, each filled. DATA-191 names the first row that lacks one."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error:
        raise not_this_benchmark(path, f"Line {reader.line_num} is no CSV.") from None
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise not_this_benchmark(path, f"The file lacks the columns {', '.join(missing)}.")
    for number, row in enumerate(rows, start=1):
        if None in row or any(not (row[name] or "").strip() for name in columns):
            raise not_this_benchmark(path, f"Row {number} is not complete.")
    if not rows:
        raise not_this_benchmark(path, "The file has no rows.")
    return rows


def choose(value: str, allowed: Sequence[str], *, path: Path, row: int, column: str) -> str:
    """``value``, which has to be one of ``allowed``."""
    if value not in allowed:
        raise not_this_benchmark(path, f"Row {row} has another value in {column} than {' or '.join(allowed)}.")
    return value


def not_this_benchmark(where: Path, what: str) -> FedethosError:
    return FedethosError(
        "DATA-191",
        what,
        where=str(where),
        why="Scores of other questions than the published ones would not compare with anybody's.",
        fix="Give the benchmark's own files, as its authors publish them (docs/language-scores.md).",
    )
