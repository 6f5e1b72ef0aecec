"""A site's records as a trainer sees them: model inputs, labels, groups and units of privacy.

Inputs are tokens, the cached hidden states of frozen layers when only upper layers are adapted, or the features of a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedethos.data.records import Records
from fedethos.intersections import intersection_name
from fedethos.job import Job

if TYPE_CHECKING:
    from fedethos.data.tokens import TokenTable
    from fedethos.models.prefix import HiddenCache

Indices = npt.NDArray[np.int64]


class Inputs(Protocol):
    """Model inputs by record index."""

    @property
    def lengths(self) -> Indices:
        """Tokens of each record, int64[n]; 1 where a record has none."""

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward for these records, padded to the longest of them."""


@dataclass(frozen=True)
class TokenInputs:
    table: TokenTable

    @property
    def lengths(self) -> Indices:
        return self.table.lengths

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        input_ids, attention_mask = self.table.batch(indices)
        return {"input_ids": input_ids, "attention_mask": attention_mask}


@dataclass(frozen=True)
class HiddenInputs:
    cache: HiddenCache

    @property
    def lengths(self) -> Indices:
        return self.cache.lengths

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        hidden, attention_mask = self.cache.batch(indices)
        return {"inputs_embeds": hidden, "attention_mask": attention_mask}


@dataclass(frozen=True)
class FeatureInputs:
    """Features of a table, float32[n, d]. Each record counts as one token."""

    features: Tensor

    @property
    def lengths(self) -> Indices:
        return np.ones(len(self.features), dtype=np.int64)

    def batch(self, indices: Indices) -> dict[str, Tensor]:
        return {"features": self.features[torch.from_numpy(indices)]}


@dataclass(frozen=True)
class Examples:
    """``label`` int64[n], ``groups`` int64[n] for each of ``Job.counted``, ``unit`` int64[n] dense in [0, units).

    ``weight`` float64[n] multiplies gradients after clipping; None: all are 1. ``original`` int64[n] is the record that each is a
    counterfactual copy of, its own index where it is none; None: there are no copies. ``rate`` float64[n] is the chance with which a
    record's group is sampled, a unit's that of its rows on average; None: everybody's is the step's.
    """

    inputs: Inputs
    label: Indices
    groups: Mapping[str, Indices]
    unit: Indices
    weight: npt.NDArray[np.float64] | None = None
    original: Indices | None = None
    rate: npt.NDArray[np.float64] | None = None

    @classmethod
    def of(cls, records: Records, job: Job, inputs: Inputs) -> Examples:
        """A copy belongs to the unit of its original, so that the two are sampled together and clipped as one."""
        rows = np.arange(len(records)) if records.original is None else records.original
        crossed = {
            intersection_name(parts): crossed_groups(
                [records.groups[part] for part in parts], [len(job.data.sensitive[part]) for part in parts]
            )
            for parts in job.fairness.intersections
        }
        units = records.unit if job.unit == "person" else rows
        return cls(inputs, records.label, {**records.groups, **crossed}, units, original=records.original)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def units(self) -> int:
        return int(self.unit.max()) + 1 if len(self.unit) else 0

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """bool[n], what a count of records may see: no copies."""
        everything = np.ones(len(self), dtype=np.bool_)
        return everything if self.original is None else np.equal(self.original, np.arange(len(self)))

    def chances(self, highest: float) -> npt.NDArray[np.float64]:
        """The chance with which each unit is sampled in a step, float64[units]; never above the one that is accounted for."""
        if self.rate is None:
            return np.full(self.units, highest)
        return np.minimum(np.bincount(self.unit, weights=self.rate) / np.bincount(self.unit), highest)

    def originals_within(self, batch: Indices) -> Indices:
        """For each record of ``batch``, which holds whole units, the position there of the record that it is a copy of, else its own."""
        if self.original is None:
            return np.arange(len(batch))
        order = np.argsort(batch)
        return order[np.searchsorted(batch, self.original[batch], sorter=order)]

    def rows_of(self, units: Indices) -> Indices:
        """All records of the given units."""
        chosen = np.zeros(self.units, dtype=np.bool_)
        chosen[units] = True
        return np.flatnonzero(chosen[self.unit])


def crossed_groups(parts: Sequence[Indices], sizes: Sequence[int]) -> Indices:
    """Groups int64[n] of an intersection (``fedethos/intersections.py``) from those of its parts, int64[n]; ``size`` is unknown."""
    known = np.logical_and.reduce([part < size for part, size in zip(parts, sizes, strict=True)])
    combined = np.ravel_multi_index([np.where(known, part, 0) for part in parts], tuple(sizes))
    return np.where(known, combined, np.prod(sizes)).astype(np.int64)


def micro_batches(rows: Indices, unit: Indices, lengths: Indices, tokens: int) -> Iterator[Indices]:
    """Cut a logical batch into micro-batches of at most ``tokens`` padded tokens, each with whole units of similar length.

    Sorting by length saves padding. It is valid because the logical batch is fixed before. A unit that alone exceeds the
    budget gets a micro-batch of its own.
    """
    if len(rows) == 0:
        return
    longest = np.zeros(int(unit[rows].max()) + 1, dtype=np.int64)
    np.maximum.at(longest, unit[rows], lengths[rows])
    rows = rows[np.lexsort((rows, unit[rows], longest[unit[rows]]))]
    ends = np.r_[np.flatnonzero(np.diff(unit[rows])) + 1, len(rows)]
    start = previous = 0
    for end in ends:
        if (end - start) * longest[unit[rows[end - 1]]] > tokens and previous > start:
            yield rows[start:previous]
            start = previous
        previous = int(end)
    yield rows[start:]
