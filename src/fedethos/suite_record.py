"""``suites.json``: what ``fedethos evaluate --suite`` found on public benchmarks. Written by ``simulations/suites.py``.

Basis ``public``: computed from benchmark files that anybody can have and from the released adapter. No site's record was read, no message
carried anything, and no epsilon is spent. Basis ``own-file``: the same, from a file of whoever evaluates; what it says about people in
that file is as protected as the file.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedethos.result import Count, Interval, Record


class MeasureScores(Record):
    """One measure of the released adapter, of the base model without it, and adapter minus base on the same questions."""

    adapter: Interval
    base: Interval
    change: Interval


class GroupScores(Record):
    """``units``: what was resampled for the intervals, such as templates or pairs."""

    units: Count
    measures: dict[str, MeasureScores]


class ScenarioLimit(Record):
    """``holds``: whether the adapter's value is at most ``at_most``; null where it is not measurable, which is no pass."""

    measure: str
    at_most: float
    holds: bool | None


class SuiteScores(Record):
    """``items`` of the benchmark were asked, drawn by ``seed``; ``questions_sha256`` is over the questions and their options.

    ``groups``: the suite's own, and ``all``. ``limit``: of a scenario. ``false_positives``: of a scenario's scorer of texts, share of
    harmless texts that it flags, by the group that they name.
    """

    basis: Literal["public", "own-file"]
    items: Count
    seed: int
    questions_sha256: str
    chat_template: bool
    groups: dict[str, GroupScores]
    limit: ScenarioLimit | None
    false_positives: dict[str, Interval]


class SuitesReport(Record):
    schema_: Literal["fedethos/suites/v1"] = Field("fedethos/suites/v1", alias="schema")
    name: str
    job_sha256: str
    suites: dict[str, SuiteScores]
