"""The decision threshold: one bin edge for everybody, found without looking at groups.

``pooled``: on the pooled validation histogram, the edge whose share of favorable predictions is nearest the share of favorable
labels. (Edges of best accuracy, and a score of 0.5, both drift to a constant classifier on unbalanced data.) ``fixed``: a score of 0.5.
"""

from __future__ import annotations

import numpy as np

from fedethos.errors import FedethosError
from fedethos.fairness.histograms import BINS, IntArray

FIXED_EDGE = BINS // 2
"""The edge at log-odds 0, a score of 0.5."""


def base_rate_edge(table: IntArray, favorable: int) -> int:
    """Edge, 1 to BINS - 1, whose share of favorable predictions is nearest the base rate; of equals the one nearest log-odds 0.

    Parameters
    ----------
    table : int64[..., L, BINS]
        Pooled validation histogram of any attribute, or a score table (``layout.FINE``). It may be noisy: whom an edge misplaces
        (false positives minus false negatives) is a sum of BINS cells, so its noise is 8 times that of a cell.
    favorable : int
        Index of the favorable label.

    Raises
    ------
    FedethosError
        AGG-735 when the table counts nobody.
    """
    scores = table.reshape(-1, *table.shape[-2:]).sum(axis=0)
    people = int(scores.sum())
    if people < 1:
        raise FedethosError("AGG-735", "The validation histogram counts nobody.", fix="Enlarge data.split.validation or data.limit.")
    favored = int(scores[favorable].sum())
    edges = np.arange(1, BINS)
    selected = people - np.cumsum(scores.sum(axis=0))[:-1]
    return int(edges[np.lexsort((edges, np.abs(edges - FIXED_EDGE), np.abs(selected - favored)))[0]])
