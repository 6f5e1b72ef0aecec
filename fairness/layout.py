"""Which tables a site releases when they are noisy: fewer cells than its full histograms, because each cell brings noise.

``scores``: one table label × score bin of everybody, for the AUC and for the threshold. ``groups``: per sensitive attribute one
table group × label × prediction at a threshold that is already known (of more than two labels the most likely one is predicted).
Against full histograms per group, a group's rates carry the noise of 2 cells instead of 64, and the AUC that of 32 instead of 64 per group.

The threshold needs fine bins, which cost it little: only counts between it and the truth are summed. The AUC needs few bins
that all hold people: 16 of equal width are too coarse for calibrated scores (-.07), 64 too noisy, so the cuts follow the scores of
the validation people, as far as their noisy histogram tells.

Where a policy allows thresholds per group there is a third part, ``group-scores``: group × label × score bin of the training people, from
which the rules come (``group_thresholds.py``); ``groups`` are then counts by decision under those rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedethos.errors import FedethosError
from fedethos.fairness.decision_rules import GroupRules
from fedethos.fairness.histograms import BINS, OVERALL, IntArray, Tables, confusion
from fedethos.fairness.threshold import FIXED_EDGE

Part = Literal["scores", "groups", "group-scores"]

SCORES = ":scores"
"""Name of the score table. No attribute can be called so: a colon is not allowed in their names."""

GROUP_SCORES = ":group-scores"
"""Name of the score table by group."""

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
        Threshold of the group tables; None: no group tables. With more than two labels only ``FIXED_EDGE``, the most likely label.
    rules : GroupRules, optional
        In place of ``edge``: decisions by group.
    attribute, group_cuts : optional
        Inner edges of the score table by group of ``attribute``; None: no such table.

    Raises
    ------
    FedethosError
        AGG-734 for an edge that is not an inner one, or cuts that do not rise; AGG-763 for both an edge and rules, or cuts by
        group without an attribute.
    """

    cuts: tuple[int, ...] | None = None
    edge: int | None = None
    rules: GroupRules | None = None
    attribute: str | None = None
    group_cuts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        edges = (self.edge,) if self.edge is not None else ()
        for cuts in (self.cuts or (), self.group_cuts or ()):
            if not all(1 <= edge < BINS for edge in (*cuts, *edges)) or list(cuts) != sorted(set(cuts)):
                raise FedethosError("AGG-734", f"An edge of the count tables is not one of 1 to {BINS - 1}, or the cuts do not rise.")
        if (self.edge is not None and self.rules is not None) or (self.group_cuts is not None and self.attribute is None):
            raise FedethosError("AGG-763", "Count tables were asked for in a way that contradicts itself.")

    @property
    def wanted(self) -> tuple[Part, ...]:
        """The parts that this layout asks for; none: full histograms."""
        wanted: list[Part] = []
        if self.edge is not None or self.rules is not None:
            wanted.append("groups")
        if self.cuts is not None:
            wanted.append("scores")
        if self.group_cuts is not None:
            wanted.append("group-scores")
        return tuple(wanted)

    def parts(self, tables: Tables, decided: Tables | None = None, responses: IntArray | None = None) -> dict[Part, dict[str, IntArray]]:
        """The tables to release, by part, from a site's or everybody's full histograms.

        ``decided``: counts int64[G, L, 2] by decision, per attribute, where there are ``rules`` (AGG-763 without them): a histogram
        does not tell what other attributes the people of a group have. Or counts int64[G, L, L] by predicted label where there are more
        than two labels (AGG-780 without them): a histogram is of the favorable one alone. ``responses``: everybody's int64[L, BINS], what
        the score table counts in the place of log-odds (``responses.py``).
        """
        parts: dict[Part, dict[str, IntArray]] = {}
        if self.cuts is not None:
            everybody = next(iter(tables.values())).sum(axis=0) if responses is None else responses
            parts["scores"] = {SCORES: _cut(everybody, self.cuts)}
        if self.edge is not None or self.rules is not None:
            parts["groups"] = self._groups(tables, decided)
        if self.group_cuts is not None and self.attribute is not None:
            parts["group-scores"] = {GROUP_SCORES: _cut(tables[self.attribute], self.group_cuts)}
        return parts

    def _groups(self, tables: Tables, decided: Tables | None) -> dict[str, IntArray]:
        if decided is not None:
            return dict(decided)
        if self.edge is None:
            raise FedethosError("AGG-763", "Decision rules were given, and no decisions to count.")
        labels = next(iter(tables.values())).shape[-2]
        self.predictions(labels)
        if labels > 2:
            raise FedethosError("AGG-780", "A score histogram does not tell which of several labels was predicted.")
        return {name: confusion(table, self.edge) for name, table in tables.items()}

    def predictions(self, labels: int) -> int:
        """Columns of the group tables. AGG-780 for a threshold, or rules by group, among more than two labels."""
        if labels > 2 and (self.rules is not None or self.group_cuts is not None or self.edge not in (None, FIXED_EDGE)):
            raise FedethosError("AGG-780", "A threshold among more than two labels was asked for.", fix="Set fairness.thresholds: fixed.")
        return labels if labels > 2 else 2

    def tables(self, tables: Tables, decided: Tables | None = None, responses: IntArray | None = None) -> dict[str, IntArray]:
        """All parts as one mapping."""
        return {name: table for part in self.parts(tables, decided, responses).values() for name, table in part.items()}

    def shapes(self, categories: Mapping[str, Sequence[str]], labels: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the tables by name; the group ``unknown`` stands last, as in the full histograms."""
        shapes: dict[str, tuple[int, ...]] = {}
        predictions = self.predictions(labels)
        if self.cuts is not None:
            shapes[SCORES] = (labels, len(self.cuts) + 1)
        if "groups" in self.wanted:
            groups = {name: len(names) + 1 for name, names in categories.items()} or {OVERALL: 1}
            shapes |= {name: (size, labels, predictions) for name, size in groups.items()}
        if self.group_cuts is not None and self.attribute is not None:
            shapes[GROUP_SCORES] = (len(categories[self.attribute]) + 1, labels, len(self.group_cuts) + 1)
        return shapes


WHOLE = Layout()
"""Full histograms, which only exact counts may be."""


def _cut(table: IntArray, cuts: tuple[int, ...]) -> IntArray:
    return np.asarray(np.add.reduceat(table, [0, *cuts], axis=-1), dtype=np.int64)


def score_cuts(scores: IntArray, *, bins: int = 16) -> tuple[int, ...]:
    """At most ``bins - 1`` cuts that divide the people of a noisy score table int64[L, BINS] about evenly."""
    below = np.maximum.accumulate(np.cumsum(scores.sum(axis=0)))[:-1]  # people below each inner edge; noise may not make it fall
    people = int(scores.sum())
    if people < bins:
        return DEFAULT_CUTS
    wanted = np.searchsorted(below, people * np.arange(1, bins) / bins)
    return tuple(int(edge) for edge in np.unique(np.minimum(wanted, BINS - 2) + 1))


def group_score_cuts(scores: IntArray, favorable: int, *, bins: int = 8) -> tuple[int, ...]:
    """At most ``bins - 1`` cuts for the score table by group, from a noisy score table int64[L, BINS] of everybody.

    They divide a mixture of people with the favorable label (four fifths) and without. A true positive rate t then sums so few noisy cells
    that its variance is about bins * t * (1 - t) cells'. Adult, epsilon 1: mean |EOD| .053 with 64 bins, .034 with 8.
    """
    if scores.sum(axis=-1).min() < bins:
        return DEFAULT_CUTS[::2]
    selected = np.maximum.accumulate(np.cumsum(scores[:, ::-1], axis=-1), axis=-1)[:, -2::-1]  # at or above each inner edge
    share = np.clip(selected / scores.sum(axis=-1, keepdims=True), 0.0, 1.0)
    mixed = 0.8 * share[favorable] + 0.2 * share[1 - favorable]
    wanted = np.arange(1, bins)[:, None] / bins
    return tuple(int(edge) for edge in np.unique(np.argmin(np.abs(mixed - wanted), axis=-1)) + 1)
