"""The job's scenarios as people read them: in the terminal, in the report, and at the site that reviews the job."""

from __future__ import annotations

from collections.abc import Iterator

from fedethos.job_scenarios import Contains, RecordMetric, RecordScenario
from fedethos.result import Result
from fedethos.wording import interval, number

HEAD = ("Scenario", "Records", "Measure", "Value (95 % interval)", "Limit")
EXACT = "Exact, simulation only"

METRICS: dict[RecordMetric, str] = {
    "error_rate": "Error rate",
    "false_positive_rate": "False-positive rate",
    "false_negative_rate": "False-negative rate",
    "demographic_parity_difference": "Demographic-parity difference",
    "equal_opportunity_difference": "Equal-opportunity difference",
    "equalized_odds_difference": "Equalized-odds difference",
}
SAID = {True: "holds", False: "exceeded", None: "no pass"}


def rows(result: Result) -> Iterator[tuple[str, ...]]:
    """One row a scenario, under ``HEAD``; with the exact value at the end where a simulation shows it beside a released one."""
    exact = result.oracle.scenarios if result.oracle is not None and result.basis != "oracle" else None
    for name, one in result.scenarios.items():
        count = "withheld" if one.count is None else f"{one.count:,}"
        row = (name, count, METRICS[one.metric], interval(one.value), f"{one.at_most:g}: {SAID[one.holds]}")
        yield row if exact is None else (*row, number(exact.get(name)))


def filter_words(asked: RecordScenario) -> str:
    """``age is >=65; note contains 'walker'``."""
    parts = [
        f"{column} contains {' or '.join(map(repr, wanted.contains))}"
        if isinstance(wanted, Contains)
        else f"{column} is {' or '.join(wanted)}"
        for column, wanted in asked.filter.items()
    ]
    return "; ".join(parts)
