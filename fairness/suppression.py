"""Which groups of a pooled table may be shown.

A group below the smallest size is withheld. If it is the only one, its numbers are the total minus the others', so the next
smallest is withheld too (complementary suppression). A withheld group enters no metric that compares groups.

Empty groups hide nobody. In an exact table they stay, with a count of 0 and undefined rates. In a noisy one a group that may well be
empty is withheld, because its rates would be noise, and it needs no complement.

The groups of an intersection add up to those of its parts, along every part (all Female*… are Female), so each such sum needs a complement
too. People with a part missing are not counted on: there may be none. Sums over several parts at once are not searched for leaks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from fedethos.fairness.counts import Count
from fedethos.fairness.intervals import critical

_SURELY = 0.999  # an empty group passes for one with people once in 2,000 releases


def withheld(people: Count, min_group_size: int) -> tuple[int, ...]:
    """Indices of the groups to withhold, in order, from the group sizes [G]."""
    size, there = people.value, _there(people)
    small = there & (size < min_group_size)
    hidden = small | (~there & (people.variance > 0.0))
    if small.sum() == 1:
        others = [group for group in np.argsort(size, kind="stable") if there[group] and not small[group]]
        hidden[others[:1]] = True
    return tuple(int(group) for group in np.flatnonzero(hidden))


def withheld_combinations(people: Count, hidden: Collection[int], parts: Sequence[tuple[int, Collection[int]]]) -> tuple[int, ...]:
    """What an intersection withholds beyond ``hidden``, the groups that ``withheld`` found; both together, in order.

    Parameters
    ----------
    people : Count
        Sizes of the groups [G], the last part running fastest, ``unknown`` last.
    parts : sequence of (int, collection of int)
        Per part its number of categories, and which of them are withheld in its own table.
    """
    shape = tuple(size for size, _ in parts)
    cells = np.arange(math.prod(shape))
    shut = np.isin(cells, list(hidden))
    by_size = np.lexsort((people.value[:-1], ~_there(people)[:-1]))  # complements: the smallest group first, an empty one at last
    changed = True
    while changed:
        changed = False
        for axis, (categories, own) in enumerate(parts):
            for category in range(categories):
                line = np.take(cells.reshape(shape), category, axis).ravel()
                shown = [group for group in by_size if group in line and not shut[group]]
                if shut[line].sum() + (category in own) == 1 and shown:
                    shut[shown[0]] = changed = True
    return tuple(sorted({*hidden, *(int(group) for group in np.flatnonzero(shut))}))


def _there(people: Count) -> npt.NDArray[np.bool_]:
    """Groups that are not (or hardly) empty."""
    return np.asarray(people.value >= np.maximum(1.0, critical(_SURELY) * np.sqrt(people.variance)))
