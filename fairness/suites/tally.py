"""What a benchmark makes of a model's answers: sums over units, and measures that are functions of these sums.

A unit is what is resampled as one: answers inside it depend on each other (questions of one template, the two sentences of a pair).
So a bootstrap resample is a matrix product, whatever the measure. Next: ``bootstrap.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedethos.suite_names import EVERYTHING

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measure:
    """``value``: from sums float64[..., c] to float64[...], NaN where undefined; it lies between ``lowest`` and ``highest``."""

    value: Callable[[Floats], Floats]
    lowest: float
    highest: float


@dataclass(frozen=True)
class Tally:
    """``sums`` float64[u, c]: one row a unit; the measures are of the sum of its rows."""

    sums: Floats
    measures: Mapping[str, Measure]


def tallies(columns: Floats, unit: Sequence[str], group: Sequence[str], measures: Mapping[str, Measure]) -> dict[str, Tally]:
    """One tally over everything, and one a group; a unit may reach into several groups.

    Parameters
    ----------
    columns : float64[n, c]
        What each item adds to the sums.
    unit, group : sequences of n names
    """
    everything = {EVERYTHING: Tally(_by_unit(columns, unit), measures)}
    names, of_item = np.unique(np.asarray(group, dtype=object).astype(str), return_inverse=True)
    for place, name in enumerate(names):
        own = np.flatnonzero(of_item == place)
        everything[str(name)] = Tally(_by_unit(columns[own], [unit[item] for item in own.tolist()]), measures)
    return everything


def share(part: int, whole: int, *, scale: float = 1.0) -> Measure:
    """Sum of column ``part`` over that of column ``whole``, times ``scale``."""
    return Measure(lambda sums: scale * ratio(sums[..., part], sums[..., whole]), 0.0, scale)


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """NaN for a denominator of 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(denominator != 0.0, numerator / denominator, np.nan))


def _by_unit(columns: Floats, unit: Sequence[str]) -> Floats:
    _, of_item = np.unique(np.asarray(unit, dtype=object).astype(str), return_inverse=True)
    sums = np.zeros((int(of_item.max(initial=-1)) + 1, columns.shape[1]))
    np.add.at(sums, of_item, columns)
    return sums
