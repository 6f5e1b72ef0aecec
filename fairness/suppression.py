"""Which groups of a pooled table may be shown.

A group below the smallest size is withheld. If it is the only one, its numbers are the total minus the others', so the next
smallest is withheld too (complementary suppression). A withheld group enters no metric that compares groups.

Empty groups hide nobody. In an exact table they stay, with a count of 0 and undefined rates. In a noisy one a group that may well be
empty is withheld, because its rates would be noise, and it needs no complement.
"""

from __future__ import annotations

import numpy as np

from fedethos.fairness.counts import Count
from fedethos.fairness.intervals import critical

_SURELY = 0.999  # an empty group passes for one with people once in 2,000 releases


def withheld(people: Count, min_group_size: int) -> tuple[int, ...]:
    """Indices of the groups to withhold, in order, from the group sizes [G]."""
    size, noise = people.value, np.sqrt(people.variance)
    there = size >= np.maximum(1.0, critical(_SURELY) * noise)
    small = there & (size < min_group_size)
    hidden = small | (~there & (noise > 0.0))
    if small.sum() == 1:
        others = [group for group in np.argsort(size, kind="stable") if there[group] and not small[group]]
        hidden[others[:1]] = True
    return tuple(int(group) for group in np.flatnonzero(hidden))
