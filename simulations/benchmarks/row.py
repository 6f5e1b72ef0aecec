"""One figure of ``make bench``."""

from __future__ import annotations

from typing import TypedDict


class Row(TypedDict):
    """``ratio`` is ours over reference; both are None for a figure that is no ratio. ``limit`` bounds the ratio, else ours.

    ``limit`` and ``holds`` are None for a figure that is only shown beside others.
    """

    part: str
    name: str
    ours: float
    reference: float | None
    ratio: float | None
    limit: float | None
    holds: bool | None


def compared(part: str, name: str, ours: float, reference: float, *, ratio: float | None = None, limit: float | None = None) -> Row:
    """Two things measured side by side; ``ratio`` where it is not the quotient of the two (a median of quotients, say)."""
    found = ours / reference if ratio is None else ratio
    holds = None if limit is None else found <= limit
    return Row(part=part, name=name, ours=ours, reference=reference, ratio=found, limit=limit, holds=holds)


def alone(part: str, name: str, ours: float, *, limit: float) -> Row:
    """A figure that is no ratio."""
    return Row(part=part, name=name, ours=ours, reference=None, ratio=None, limit=limit, holds=ours <= limit)


def line(row: Row) -> str:
    """The row as ``make bench`` prints it."""
    verdict = "" if row["limit"] is None else f"  limit {row['limit']:.2f}  {'holds' if row['holds'] else 'MISSED'}"
    if row["reference"] is None:
        return f"{row['name']:<58} {row['ours']:10.4f}{verdict}"
    return f"{row['name']:<58} {row['ours']:10.4f} / {row['reference']:10.4f} = {row['ratio']:.3f}{verdict}"
