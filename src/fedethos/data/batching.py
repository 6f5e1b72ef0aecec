"""Batches of rows of similar length, so that little is padding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def by_length(lengths: Indices, *, tokens: int) -> Iterator[Indices]:
    """Places of all rows, short ones first: as many a batch as make ``tokens`` with their padding, but at least one row."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        ahead = lengths[order[start : start + tokens]]
        fitting = int((ahead * np.arange(1, len(ahead) + 1) <= tokens).sum())  # the products rise
        yield order[start : start + max(1, fitting)]
        start += max(1, fitting)
