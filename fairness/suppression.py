"""Which groups of a pooled table may be shown.

A group below the smallest size is withheld. If it is the only one, its numbers are the total minus the others', so the next
smallest is withheld too (complementary suppression). A withheld group enters no metric that compares groups.
Empty groups hide nobody: they stay, with a count of 0 and undefined rates.
"""

from __future__ import annotations

import numpy as np

from fedethos.fairness.histograms import FloatArray


def withheld(people: FloatArray, min_group_size: int) -> tuple[int, ...]:
    """Indices of the groups to withhold, in order, from the group sizes [G] (noisy sizes included)."""
    by_size = [int(group) for group in np.argsort(people, kind="stable") if people[group] >= 1.0]
    small = [group for group in by_size if people[group] < min_group_size]
    if len(small) == 1:
        small = by_size[:2]
    return tuple(sorted(small))
