"""``flips.json``: what ``fedethos evaluate --flip`` found about a simulation's adapter. Written by ``simulations/flips.py``.

Everything in it is exact (basis ``oracle``): it was computed from records, which only a simulation may do; no message carried it and no
epsilon covers it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedethos.result import Count, Interval, Record


class FlipMeasures(Record):
    """Of ``records`` records, ``swapped`` read differently for another value of the attribute; the rates are shares of those.

    ``mean_absolute_score_change`` is that of the probability of the favorable label.
    """

    records: Count
    swapped: Count
    swapped_share: Interval
    flip_rate: Interval
    favorable_to_unfavorable: Interval
    unfavorable_to_favorable: Interval
    mean_absolute_score_change: Interval


class FlipAttribute(FlipMeasures):
    """``groups``: by the group that a record really has."""

    groups: dict[str, FlipMeasures]


class Terms(Record):
    """Where the identity terms came from: ``builtin:NAME``, ``file``, ``job``, or ``none``; SHA-256 of all sets, null without any."""

    source: str
    sha256: str | None


class FlipReport(Record):
    """``edge_index`` and ``log_odds`` are the decision threshold that the run released."""

    schema_: Literal["fedethos/flips/v1"] = Field("fedethos/flips/v1", alias="schema")
    name: str
    job_sha256: str
    basis: Literal["oracle"]
    split: Literal["train", "validation", "test"]
    edge_index: int
    log_odds: float
    terms: Terms
    attributes: dict[str, FlipAttribute]
