"""Where records come in: any supported file becomes one table of text. Next: ``fedethos.data.contract``.

CSV and its relatives are read in ``delimited``, Parquet and Hugging Face datasets in ``arrow``, and one rule
(``values``) turns every cell into text, so that the same rows give the same records in every format.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pandas as pd

from fedethos import job_data
from fedethos.data.arrow import is_dataset_folder, read_dataset_folder, read_parquet
from fedethos.data.delimited import Columns, read_delimited
from fedethos.data.values import text_of
from fedethos.errors import FedethosError

_BUILTIN = "builtin:"
_FORMATS = "a .csv, .tsv, .data, .parquet or .jsonl file, or a folder that datasets.save_to_disk wrote"


def read_table(data: job_data.Data, *, base: Path) -> pd.DataFrame:
    """Read the table that ``data.path`` names.

    Parameters
    ----------
    data : job_data.Data
        ``path``, ``columns`` and ``na_values`` are used.
    base : Path
        Folder that a relative path starts from: the folder of the document that names it.

    Returns
    -------
    pandas.DataFrame
        One row per record in the file's order; every cell is ``str`` or ``None`` (missing).

    Raises
    ------
    FedethosError
        DATA-101 not found, DATA-102 format, DATA-103 unreadable, DATA-105 and DATA-106 broken line (its number only), DATA-107 empty,
        DATA-108 column names, DATA-109 header or ``data.columns``, DATA-110 delimiter, DATA-111 unknown builtin.
    """
    builtin = data.path.startswith(_BUILTIN)
    columns = _read_builtin(data.path) if builtin else _read_path(base / Path(data.path).expanduser(), data)
    table = _distinct([(name.strip(), cells) for name, cells in columns], data)
    if not any(table.values()):
        raise FedethosError("DATA-107", "The table has no records.", where=data.path, fix="Check that the export is complete.")
    marks = set(data.na_values)
    present = {name: [None if cell in marks else cell for cell in cells] for name, cells in table.items()}
    return pd.DataFrame(present, dtype=object)


def _read_builtin(name: str) -> Columns:
    shipped = {
        _BUILTIN + file.name.removesuffix(".parquet"): file
        for file in resources.files("fedethos.data.builtin").iterdir()
        if file.name.endswith(".parquet")
    }
    if name not in shipped:
        raise FedethosError("DATA-111", f"There is no {name}.", where="data.path", fix=f"Known: {', '.join(sorted(shipped))}.")
    with resources.as_file(shipped[name]) as path:
        return read_parquet(path)


def _read_path(path: Path, data: job_data.Data) -> Columns:
    try:
        return _reader_for(path, data)(path)
    except FileNotFoundError:
        raise FedethosError("DATA-101", "The data file does not exist.", where=str(path), fix="Correct data.path.") from None
    except OSError:
        raise FedethosError(
            "DATA-103", "The data file cannot be opened.", where=str(path), fix="Check its permissions and that the disk is mounted."
        ) from None


def _reader_for(path: Path, data: job_data.Data) -> Callable[[Path], Columns]:
    suffix = path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError
    if path.is_dir() and is_dataset_folder(path):
        return read_dataset_folder
    if path.is_dir() or suffix not in {".csv", ".tsv", ".data", ".parquet", ".jsonl"}:
        raise FedethosError("DATA-102", "The format of the data file is not supported.", where=str(path), fix=f"Give {_FORMATS}.")
    if suffix == ".parquet":
        return read_parquet
    if suffix == ".jsonl":
        return _read_jsonl
    return lambda file: read_delimited(file, data.columns)


def _read_jsonl(path: Path) -> Columns:
    """One JSON object per line; a key that a line lacks is missing there."""
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_json_object(line, number, path))
    names = dict.fromkeys(name for row in rows for name in row)
    return [(name, [text_of(row.get(name)) for row in rows]) for name in names]


def _json_object(line: bytes, number: int, path: Path) -> dict[str, object]:
    try:
        row = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
        if rb"\ud" in line.lower():  # half of a surrogate pair is JSON, but no text that can be hashed or tokenized
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise FedethosError(
            "DATA-106",
            f"Line {number} is not one JSON object in UTF-8 with each key once.",
            where=str(path),
            fix='Write one object per line, such as {"age": 39}.',
        )
    return row


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError
    return dict(pairs)


def _distinct(columns: Columns, data: job_data.Data) -> dict[str, list[str | None]]:
    """Columns by name. A repeated column with the same values (COMPAS has two) is taken once; with others it is refused."""
    table: dict[str, list[str | None]] = {}
    for position, (name, cells) in enumerate(columns, start=1):
        if table.setdefault(name, cells) != cells:
            first = 1 + [other for other, _ in columns].index(name)
            raise FedethosError(  # positions only: in a file without a header, names are values
                "DATA-108",
                f"Columns {first} and {position} have the same name but different values.",
                where=data.path,
                fix="Rename one of them.",
            )
    if data.columns is not None and {name.strip() for name in data.columns} - {""} != set(table):
        raise FedethosError(
            "DATA-109",
            "The file has its own column names, and they are not those of data.columns.",
            where=data.path,
            fix="Leave data.columns out; it is for files without a header.",
        )
    return table
