"""Krum and Multi-Krum (Blanchard et al. 2017, "Machine learning with adversaries"): keep the updates with the closest neighbours.

score(i) = sum of squared distances to the n − f − 2 other updates that are closest to i. Krum keeps the update with the least score,
Multi-Krum the n − f − 2 with the least (the most for which El Mhamdi et al. 2019 prove resilience). Both need n >= 2f + 3. Every site
has one vote: approved weights only count in the mean of those that are kept. Next on the path: ``robust.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedethos.errors import FedethosError
from fedethos.messages import Arrays
from fedethos.strategies.product import Geometry


def fewest_sites(attackers: int) -> int:
    """The fewest updates among which ``attackers`` can be found out: 2f + 3."""
    return 2 * attackers + 3


def krum_scores(distances: npt.NDArray[np.float64], attackers: int) -> npt.NDArray[np.float64]:
    """Krum's score of each update, float64[n], from the distances [n, n] between them.

    Raises
    ------
    FedethosError
        AGG-754 when there are fewer than 2f + 3 updates.
    """
    count = len(distances)
    if count < fewest_sites(attackers):
        raise FedethosError(
            "AGG-754",
            f"Krum with {attackers} assumed attackers needs {fewest_sites(attackers)} updates, and there are {count}.",
            where="robustness.assumed_attackers",
        )
    to_others = np.sort(np.square(distances) + np.diag(np.full(count, np.inf)), axis=1)
    return np.asarray(to_others[:, : count - attackers - 2].sum(axis=1))


def krum(updates: Mapping[str, Arrays], attackers: int, geometry: Geometry, *, multi: bool) -> list[str]:
    """Names of the sites whose updates are kept, in the order of ``updates``; ties go to the first. Errors as ``krum_scores``."""
    names = list(updates)
    distances = np.zeros((len(names), len(names)))
    for i, one in enumerate(names):
        for j in range(i):
            distances[i, j] = distances[j, i] = geometry.distance(updates[one], updates[names[j]])
    best = np.argsort(krum_scores(distances, attackers), kind="stable")
    return [names[place] for place in sorted(best[: len(names) - attackers - 2 if multi else 1])]
