"""``scenarios`` in a job: which test records every site counts apart, one metric of them, and the most that it may be.

The records that match a filter are counted as a group of their own, beside ``data.sensitive``: in one more table of the release that the
ledger pays for, or exact under ``privacy.mode: none``. ``data/filters.py`` sorts the records, ``fairness/scenarios.py`` makes the metric.
Scenarios of prompts, which need no record, are asked with ``fedethos evaluate`` (``scenario.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from fedethos.section import Fraction, Section

if TYPE_CHECKING:
    from fedethos.job import Job

RecordMetric = Literal[
    "error_rate",
    "false_positive_rate",
    "false_negative_rate",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "equalized_odds_difference",
]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]

MATCHING, OTHERS = "matching", "others"
"""The groups of a scenario; a record of which a filtered column is missing is ``unknown``, as everywhere."""

MOST = 16  # of a job: each is one more table over the same people
_PREFIX = "scenario:"  # no attribute can be called so
_OF_TWO_LABELS: tuple[RecordMetric, ...] = ("false_positive_rate", "equalized_odds_difference")


class Contains(Section):
    """Texts, in any case, of which one stands in the column."""

    contains: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(min_length=1, max_length=1000)


Wanted = Annotated[list[str], Field(min_length=1)] | Contains
Filter = Annotated[dict[str, Wanted], Field(min_length=1)]


class RecordScenario(Section):
    """Test records that match a filter, one metric of them, and its limit."""

    name: Name
    filter: Filter = Field(
        description="Column to values or comparisons ('>=65') of which one holds, or to {contains: [texts]}; all columns have to match."
    )
    metric: RecordMetric = Field(
        description="Of the records that match; a difference is that between them and all others. Of the favorable label."
    )
    limit: Fraction = Field(description="The most that the metric may be.")

    @property
    def table(self) -> str:
        """Name of its count table."""
        return _PREFIX + self.name


def check_scenarios(job: Job) -> None:
    """Refuse scenarios that a job cannot count.

    Raises
    ------
    PydanticCustomError
        CFG-418 for a name that stands twice, a filter on the person's identifier, or a metric that the job's labels do not have.
    """
    names = [one.name for one in job.scenarios]
    if len(set(names)) < len(names):
        raise PydanticCustomError("CFG-418", "Two of the scenarios have the same name.")
    if any(job.data.person_id in one.filter for one in job.scenarios):
        raise PydanticCustomError("CFG-418", "A scenario filters by data.person_id: that would count single people.")
    if len(job.data.label.values) == 1 and any(one.metric in _OF_TWO_LABELS for one in job.scenarios):
        raise PydanticCustomError(
            "CFG-418", "In causal-lm and preference every record's own answer is right, so no false positive exists. Use error_rate."
        )
