"""Which records match the filters of a scenario (``fedethos/job_scenarios.py``). Values and comparisons are those of ``data.map``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedethos.data.mapping import thresholds
from fedethos.data.values import NUMBER
from fedethos.job_scenarios import Contains, Filter, Wanted

Filters = Mapping[str, Filter]
Values = Sequence[str | None]
_MATCHING, _OTHERS, _UNKNOWN = range(3)


def matching(wanted: Filter, mapped: Mapping[str, Values], shown: Mapping[str, Values], *, rows: int) -> NDArray[np.int64]:
    """Group of each record, int64[rows]: 0 matches, 1 does not, 2 cannot be told, because a column is missing and no other one decides.

    Parameters
    ----------
    mapped : mapping
        Column to its values after ``data.map``, which plain values and texts are looked for in.
    shown : mapping
        Column to its values as the model reads them, which comparisons look at: a number that the map sorts into groups is one still.
    """
    found = np.full(rows, _MATCHING)
    for column, one in wanted.items():
        holds = _predicate(one)
        of_column = np.array(
            [
                _UNKNOWN if value is None else _MATCHING if holds(value, number or "") else _OTHERS
                for value, number in zip(mapped[column], shown[column], strict=True)
            ],
            dtype=np.int64,
        )
        found = np.where((found == _OTHERS) | (of_column == _OTHERS), _OTHERS, np.maximum(found, of_column))
    return found.astype(np.int64)


def _predicate(wanted: Wanted) -> Callable[[str, str], bool]:
    """Of a mapped value and of the value as it is shown."""
    if isinstance(wanted, Contains):
        texts = [text.casefold() for text in wanted.contains]
        return lambda value, _: any(text in value.casefold() for text in texts)
    comparisons = [holds for holds, _ in thresholds(dict.fromkeys(wanted))]
    plain = frozenset(wanted)
    return lambda value, number: (
        value in plain or (NUMBER.fullmatch(number) is not None and any(holds(float(number)) for holds in comparisons))
    )
