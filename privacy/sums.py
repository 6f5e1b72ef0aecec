"""Private sums of bounded values, such as the training loss in total or by group, for strategies that steer by them.

A unit's rows count a 1/m each, m its number of rows, and every value is clipped to [0, L]. With v the clipped value and g the cell of
a row, unit u adds to cell c

    s_u[c] = (1/m) * sum of v over its rows with g = c,    so that ||s_u||_2 <= ||s_u||_1 = mean of v <= L,

whatever cells its rows are in. The mechanism is one Gaussian of standard deviation ``noise_multiplier * L`` in every cell
(``events.GaussianSum``). Noise is float64, not discrete: a stated gap (docs/privacy.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedethos.errors import FedethosError
from fedethos.privacy.events import GaussianSum
from fedethos.privacy.randomness import RandomSource

if TYPE_CHECKING:
    from fedethos.privacy.ledger_plan import Receipt, Release

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def release_sums(
    values: Floats, unit: Indices, cell: Indices, *, cells: int, bound: float, receipt: Receipt, source: RandomSource
) -> Release[Floats]:
    """``clipped_sums`` with the noise that ``receipt`` paid for, float64[cells].

    Raises
    ------
    FedethosError
        PRIV-356 when the receipt pays for something else; PRIV-357 as ``clipped_sums``; PRIV-317 for a receipt that was used.
    """
    event = receipt.event
    if not isinstance(event, GaussianSum):
        raise FedethosError("PRIV-356", "Sums were built, and a receipt for something else was given.", why="Nothing was sent.")
    noise = event.noise_multiplier * bound * source.normal(cells)
    return receipt.release(clipped_sums(values, unit, cell, cells=cells, bound=bound) + noise, event=event)


def clipped_sums(values: Floats, unit: Indices, cell: Indices, *, cells: int, bound: float) -> Floats:
    """Sums over all units by cell, float64[cells]; no unit adds more than ``bound`` in L2 norm. Not private by itself.

    Parameters
    ----------
    values : float[n]
        One for each row. A unit with a value that is not finite adds nothing at all.
    unit : int64[n]
        Unit of privacy of each row, dense from 0.
    cell : int64[n]
        Declared cell of each row, in [0, ``cells``); all zero for the total.
    bound : float
        L, public: fixed before any record is read.

    Raises
    ------
    FedethosError
        PRIV-357 when these do not fit together.
    """
    rows = len(values)
    fits = len(unit) == rows == len(cell) and cells >= 1 and 0.0 < bound < np.inf
    if not fits or (rows and not (cell.min() >= 0 and cell.max() < cells and unit.min() >= 0)):
        raise FedethosError("PRIV-357", "Values, units and cells of a sum do not fit together, or the bound is not positive and finite.")
    if not rows:
        return np.zeros(cells)
    rows_of_unit = np.bincount(unit)
    spoiled = np.bincount(unit, weights=~np.isfinite(values)) > 0
    shares = np.where(spoiled[unit], 0.0, np.clip(np.nan_to_num(values), 0.0, bound) / rows_of_unit[unit])
    return np.bincount(cell, weights=shares, minlength=cells).astype(np.float64)
