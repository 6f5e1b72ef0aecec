"""``data.map`` of one column: raw values, or comparisons such as ``>=1``, to declared categories, or to ``None`` for missing.

A key that equals the raw value wins. Otherwise every comparison that holds must lead to the same category: the order of
keys carries no meaning (a job's hash ignores it). ``>=40,<60`` holds where both parts hold. A key such as ``>50K`` is
no comparison with a number, so it is a raw value like any other.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence

from fedethos.data.values import NUMBER
from fedethos.errors import FedethosError

_COMPARISON = re.compile(rf"\s*(>=|<=|==|!=|>|<)\s*({NUMBER.pattern})\s*")
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


def thresholds(mapping: Mapping[str, str | None]) -> list[tuple[Callable[[float], bool], str | None]]:
    """The keys that are comparisons, as predicates on a number, each with its category (None: missing)."""
    return [(holds, category) for key, category in mapping.items() if (holds := _predicate(key)) is not None]


def map_values(values: Sequence[str | None], mapping: Mapping[str, str | None], *, column: str) -> list[str | None]:
    """Each value's category; a value that no key covers stays as it is, and a missing one stays missing.

    Raises DATA-114 when rows satisfy comparisons that lead to different categories.
    """
    rules = thresholds(mapping)
    categories = {value: _categories(value, mapping, rules) for value in set(values) if value is not None}
    ambiguous = sum(value is not None and len(categories[value]) > 1 for value in values)
    if ambiguous:
        raise FedethosError(
            "DATA-114",
            f"{ambiguous} rows satisfy comparisons under data.map.{column} that lead to different categories (values not shown).",
            where=f"data.map.{column}",
            why="The order of the keys means nothing, so neither category can be preferred.",
            fix="Let the comparisons exclude each other, for example '<40' and '>=40'.",
        )
    return [None if value is None else next(iter(categories[value]), value) for value in values]


def _categories(
    value: str, mapping: Mapping[str, str | None], rules: Sequence[tuple[Callable[[float], bool], str | None]]
) -> set[str | None]:
    if value in mapping:
        return {mapping[value]}
    if not rules or not NUMBER.fullmatch(value):
        return set()
    return {category for holds, category in rules if holds(float(value))}


def _predicate(key: str) -> Callable[[float], bool] | None:
    parts = [_COMPARISON.fullmatch(part) for part in key.split(",")]
    bounds = [(_OPERATORS[part[1]], float(part[2])) for part in parts if part]
    if len(bounds) < len(parts) or not all(math.isfinite(bound) for _, bound in bounds):
        return None
    return lambda number: all(compare(number, bound) for compare, bound in bounds)
