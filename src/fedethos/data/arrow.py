"""Parquet files and Hugging Face dataset folders, both read with pyarrow; the ``datasets`` package is not needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fedethos.data.delimited import Columns
from fedethos.data.values import text_of
from fedethos.errors import FedethosError

_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # row numbers that pandas adds; no data of the table


def read_parquet(path: Path) -> Columns:
    """All columns of one Parquet file. Raises DATA-103 when it is damaged."""
    try:
        return _columns(pq.ParquetFile(path).read(), path)
    except (FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError, ValueError):
        raise _damaged(path, "Parquet file") from None


def is_dataset_folder(folder: Path) -> bool:
    """Whether ``datasets.save_to_disk`` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def read_dataset_folder(folder: Path) -> Columns:
    """All records of a ``Dataset`` or ``DatasetDict`` folder. The splits of a DatasetDict are read one after the other, in its own order.

    A ClassLabel column holds numbers; name them under ``data.map``. Raises DATA-103 when a file is damaged or missing.
    """
    try:
        tables = [_open_stream(file) for file in _arrow_files(folder)]
        return _columns(pa.concat_tables(tables), folder) if tables else []
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder, "dataset folder") from None


def _arrow_files(folder: Path) -> Iterator[Path]:
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        for split in json.loads(splits.read_text(encoding="utf-8"))["splits"]:
            yield from _arrow_files(folder / split)
        return
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if state.get("_indices_data_files"):  # written by datasets before 2.0: the files hold other rows than the dataset
        raise ValueError
    for file in state["_data_files"]:
        yield folder / file["filename"]


def _open_stream(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_stream(source).read_all()


def _columns(table: pa.Table, path: Path) -> Columns:
    return [
        (name, _texts(column, path))
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not _PANDAS_INDEX.fullmatch(name)
    ]


def _texts(column: pa.ChunkedArray, path: Path) -> list[str | None]:
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        raise FedethosError(
            "DATA-103", "A column holds bytes instead of text or numbers.", where=str(path), fix="Leave it out, or save it as text."
        )
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):  # as a Python float, 0.1 would become 0.10000000149011612
        short = kind.to_pandas_dtype()
        return [None if value is None or np.isnan(value) else str(short(value)) for value in column.to_pylist()]
    return [text_of(value) for value in column.to_pylist()]


def _damaged(path: Path, kind: str) -> FedethosError:
    return FedethosError(
        "DATA-103",
        f"The {kind} cannot be read.",
        where=str(path),
        why="It is damaged, incomplete or of another format.",
        fix="Write or copy it again.",
    )
