"""One figure of ``make bench``."""

from __future__ import annotations

from typing import TypedDict


class Row(TypedDict):
    """``ratio`` is ours over reference. ``limit`` and ``holds`` are None for a figure that is only shown beside ours."""

    part: str
    name: str
    ours: float
    reference: float
    ratio: float
    limit: float | None
    holds: bool | None
