"""Records in memory: what the contract makes of a table, and what splits, partitions and tokenizers work on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Swapped:
    """The inputs of n records as if another value of one attribute were theirs (``counterfactual.py``).

    ``changed`` bool[n] says where they differ; ``text`` and ``features`` as in ``Records``.
    """

    changed: NDArray[np.bool_]
    text: tuple[str, ...] = ()
    features: NDArray[np.float32] | None = None

    def take(self, indices: NDArray[np.int64]) -> Swapped:
        """Those at ``indices``, in that order."""
        text = tuple(self.text[i] for i in indices) if self.text else ()
        return Swapped(self.changed[indices], text, None if self.features is None else self.features[indices])


@dataclass(frozen=True, eq=False)
class Records:
    """n records of one table.

    Attributes
    ----------
    text : tuple of str, n
        Empty where the job reads ``data.features``; a chat's JSON where it reads ``data.messages``.
    label : int64[n]
        Index into ``data.label.values``.
    groups : dict of int64[n]
        Per sensitive attribute, the index into its categories; missing is ``len(categories)``, the group ``unknown``. So for scenarios.
    unit : int64[n]
        Dense index, 0 to ``units - 1``, of the person where ``data.person_id`` is mapped, else of the row.
    identity : uint8[n, 32]
        SHA-256 of the person, else of the whole row, so that duplicates share it. Unsalted: it never leaves the node.
    kept : tuple of (str or None), n, or None
        Raw values of the column that ``apply_contract`` was asked to keep.
    features : float32[n, d] or None
        Model inputs where the job reads ``data.features``.
    swapped : dict of Swapped
        Per sensitive attribute, the counterfactual inputs, if ``apply_contract`` was asked for them.
    original : int64[n] or None
        The record that each is a counterfactual copy of, its own index where it is none; None: there are no copies.
    answers : tuple of tuples, n
        Of a language model: what may follow each record's prompt (``answers.py``). Else empty.
    """

    text: tuple[str, ...]
    label: NDArray[np.int64]
    groups: Mapping[str, NDArray[np.int64]]
    unit: NDArray[np.int64]
    identity: NDArray[np.uint8]
    kept: tuple[str | None, ...] | None = None
    features: NDArray[np.float32] | None = None
    swapped: Mapping[str, Swapped] = field(default_factory=dict)
    original: NDArray[np.int64] | None = None
    answers: tuple[tuple[str | None, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.label)

    def content(self, row: int) -> bytes:
        """What the model reads of one record, as bytes."""
        if self.features is not None:
            return bytes(self.features[row])
        return (self.text[row] if not self.answers else json.dumps([self.text[row], *self.answers[row]])).encode()

    @property
    def units(self) -> int:
        """Number of different units."""
        return len(np.unique(self.unit))

    def take(self, indices: NDArray[np.int64]) -> Records:
        """The records at ``indices``, in that order, with ``unit`` made dense again. ValueError for records that hold copies."""
        if self.original is not None:
            raise ValueError("copies are made last: a copy could be taken without its original")
        return Records(
            text=tuple(self.text[i] for i in indices) if self.text else (),
            label=self.label[indices],
            groups={attribute: group[indices] for attribute, group in self.groups.items()},
            unit=np.unique(self.unit[indices], return_inverse=True)[1],
            identity=self.identity[indices],
            kept=None if self.kept is None else tuple(self.kept[i] for i in indices),
            features=None if self.features is None else self.features[indices],
            swapped={attribute: swapped.take(indices) for attribute, swapped in self.swapped.items()},
            answers=tuple(self.answers[i] for i in indices) if self.answers else (),
        )
