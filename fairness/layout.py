"""Which tables a site releases when they are noisy: fewer cells than its full histograms, because each cell brings noise.

``scores``: one table label × score bin of everybody, for the AUC and for the threshold. ``groups``: per sensitive attribute one
table group × label × prediction at a threshold that is already known. Against full histograms per group, a group's rates
carry the noise of 2 cells instead of 64, and the AUC that of 32 instead of 64 per group.

The threshold needs fine bins, which cost it little: only counts between it and the truth are summed. The AUC needs few bins
that all hold people: 16 of equal width are too coarse for calibrated scores (-.07), 64 too noisy, so the cuts follow the scores of
the validation people, as far as their noisy histogram tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedethos.errors import FedethosError
from fedethos.fairness.histograms import BINS, OVERALL, IntArray, Tables, confusion

Part = Literal["scores", "groups"]

SCORES = ":scores"
"""Name of the score table. No attribute can be called so: a colon is not allowed in their names."""

FINE = tuple(range(1, BINS))
"""Every inner edge: what the threshold is chosen from."""

DEFAULT_CUTS = (13, 19, 23, 26, 28, 30, 31, 32, 33, 34, 36, 38, 41, 45, 51)
"""Cuts where nothing is known about the scores: log-odds 0, and ±.5, 1, 2, 3, 4.5, 6.5, 9.5."""


@dataclass(frozen=True)
class Layout:
    """What one evaluation asks of every site. Edges are indices into ``histograms.EDGES``.

    Parameters
    ----------
    cuts : tuple of int, optional
        Inner edges of the score table, rising; None: no score table.
    edge : int, optional
        Threshold of the group tables; None: no group tables.

    Raises
    ------
    FedethosError
        AGG-734 for an edge that is not an inner one, or cuts that do not rise.
    """

    cuts: tuple[int, ...] | None = None
    edge: int | None = None

    def __post_init__(self) -> None:
        cuts, edges = self.cuts or (), (self.edge,) if self.edge is not None else ()
        if not all(1 <= edge < BINS for edge in (*cuts, *edges)) or list(cuts) != sorted(set(cuts)):
            raise FedethosError("AGG-734", f"An edge of the count tables is not one of 1 to {BINS - 1}, or the cuts do not rise.")

    @property
    def wanted(self) -> tuple[Part, ...]:
        """The parts that this layout asks for."""
        wanted: list[Part] = []
        if self.edge is not None:
            wanted.append("groups")
        if self.cuts is not None:
            wanted.append("scores")
        return tuple(wanted)

    def parts(self, tables: Tables) -> dict[Part, dict[str, IntArray]]:
        """The tables to release, by part, from a site's or everybody's full histograms."""
        parts: dict[Part, dict[str, IntArray]] = {}
        if self.cuts is not None:
            everybody = next(iter(tables.values())).sum(axis=0)
            parts["scores"] = {SCORES: np.add.reduceat(everybody, [0, *self.cuts], axis=-1)}
        if self.edge is not None:
            parts["groups"] = {name: confusion(table, self.edge) for name, table in tables.items()}
        return parts

    def tables(self, tables: Tables) -> dict[str, IntArray]:
        """All parts as one mapping."""
        return {name: table for part in self.parts(tables).values() for name, table in part.items()}

    def shapes(self, categories: Mapping[str, Sequence[str]], labels: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tables by name; the group ``unknown`` stands last, as in the full histograms."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.cuts is not None:
            shapes[SCORES] = (labels, len(self.cuts) + 1)
        if self.edge is not None:
            groups = {name: len(names) + 1 for name, names in categories.items()} or {OVERALL: 1}
            shapes |= {name: (size, labels, 2) for name, size in groups.items()}
        return shapes


def score_cuts(scores: IntArray, *, bins: int = 16) -> tuple[int, ...]:
    """At most ``bins - 1`` cuts that divide the people of a noisy score table int64[L, BINS] about evenly."""
    below = np.maximum.accumulate(np.cumsum(scores.sum(axis=0)))[:-1]  # people below each inner edge; noise may not make it fall
    people = int(scores.sum())
    if people < bins:
        return DEFAULT_CUTS
    wanted = np.searchsorted(below, people * np.arange(1, bins) / bins)
    return tuple(int(edge) for edge in np.unique(np.minimum(wanted, BINS - 2) + 1))
