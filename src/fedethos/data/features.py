"""``data.features``: columns of text to model inputs, with the job's public constants alone.

A numeric column becomes (x - low) / (high - low), clipped to [0, 1] (scikit-learn's ``MinMaxScaler(clip=True)``), or
(x - mean) / scale; a category list becomes one column per category (``OneHotEncoder``). Every feature ends with an indicator of
missing values, whether or not a site has any: the layout may not depend on a site's records. Next: ``fedethos.models.tabular``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedethos.data.values import NUMBER
from fedethos.errors import FedethosError
from fedethos.job_data import Numeric

Features = Mapping[str, Numeric | list[str]]
Floats = NDArray[np.float32]

_MIDDLE = 0.5  # of [0, 1]: what a missing number reads beside its indicator


def feature_names(features: Features) -> list[str]:
    """Names of the input columns: ``age``, ``age is missing``, ``sex = Female``, …

    Columns are sorted: the order of keys carries no meaning, a job's hash ignores it.
    """
    names = []
    for column in sorted(features):
        declared = features[column]
        names += [f"{column} = {category}" for category in declared] if isinstance(declared, list) else [column]
        names.append(f"{column} is missing")
    return names


def encode_features(table: Mapping[str, Sequence[str | None]], features: Features) -> Floats:
    """Model inputs float32[n, len(feature_names(features))] of a table of text (column name to n values, None for missing).

    Raises
    ------
    FedethosError
        DATA-151 for a category that is not listed, DATA-152 for what is not a finite number. Rows are counted, values never shown.
    """
    blocks = []
    for column in sorted(features):
        declared = features[column]
        values = table[column]
        blocks.append(_one_hot(values, declared, column) if isinstance(declared, list) else _scaled(values, declared, column))
    return np.concatenate(blocks, axis=1)


def _one_hot(values: Sequence[str | None], categories: Sequence[str], column: str) -> Floats:
    position: dict[str | None, int] = {**{category: place for place, category in enumerate(categories)}, None: len(categories)}
    places = np.array([position.get(value, -1) for value in values], dtype=np.int64)
    outside = int((places < 0).sum())
    if outside:
        raise FedethosError(
            "DATA-151",
            f'{outside} rows have a category in "{column}" that the job does not list (values not shown).',
            where=f"data.features.{column}",
            why="A value is never guessed or dropped, and the list may not be read off a site's records.",
            fix=f"List it, map it under data.map.{column}, or name it under data.na_values.",
        )
    block = np.zeros((len(places), len(categories) + 1), dtype=np.float32)
    block[np.arange(len(places)), places] = 1.0
    return block


def _scaled(values: Sequence[str | None], scaling: Numeric, column: str) -> Floats:
    numbers = {value: _scale(value, scaling) for value in set(values) if value is not None}
    refused = sum(value is not None and not math.isfinite(numbers[value]) for value in values)
    if refused:
        raise FedethosError(
            "DATA-152",
            f'{refused} rows have no finite number in "{column}" (values not shown).',
            where=f"data.features.{column}",
            why="The column is declared numeric.",
            fix=f"List its categories instead, map words to numbers under data.map.{column}, or name marks under data.na_values.",
        )
    middle = _MIDDLE if scaling.mean is None else 0.0
    filled = [(middle, 1.0) if value is None else (numbers[value], 0.0) for value in values]
    return np.array(filled, dtype=np.float32).reshape(-1, 2)


def _scale(value: str, scaling: Numeric) -> float:
    """NaN where ``value`` is no plain decimal number, or too large for float32."""
    number = float(value) if NUMBER.fullmatch(value) else math.nan
    if scaling.mean is not None and scaling.scale is not None:
        return _within_float32((number - scaling.mean) / scaling.scale)
    if scaling.low is None or scaling.high is None:
        raise ValueError("a numeric feature has low and high, or mean and scale")
    if math.isnan(number):
        return number
    number = min(max(number, scaling.low), scaling.high)
    if scaling.log:
        bottom = math.log1p(scaling.low)
        return (math.log1p(number) - bottom) / (math.log1p(scaling.high) - bottom)
    return (number - scaling.low) / (scaling.high - scaling.low)


def _within_float32(number: float) -> float:
    return number if abs(number) <= float(np.finfo(np.float32).max) else math.nan
