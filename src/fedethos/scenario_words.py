"""The job's scenarios as people read them: in the terminal, in the report, and at the site that reviews the job."""

from __future__ import annotations

from collections.abc import Iterator

from fedethos.job import Job
from fedethos.job_scenarios import Contains, RecordMetric, RecordScenario
from fedethos.result import GapName, Result
from fedethos.task_words import gap_words
from fedethos.wording import interval, number

HEAD = ("Scenario", "Records", "Measure", "Value (95 % interval)", "Limit")
EXACT = "Exact, simulation only"
LIMITS = (
    "The value is compared with the limit. Where the interval reaches beyond the limit, other people could say otherwise; "
    "what is withheld or not measurable is no pass."
)

_RATES: dict[str, str] = {
    "error_rate": "Error rate",
    "false_positive_rate": "False-positive rate",
    "false_negative_rate": "False-negative rate",
}
_DIFFERENCES: dict[GapName, str] = {
    "demographic_parity_difference": "Demographic-parity difference",
    "equal_opportunity_difference": "Equal-opportunity difference",
    "equalized_odds_difference": "Equalized-odds difference",
}
SAID = {True: "holds", False: "exceeded", None: "no pass"}


def scenario_metric(metric: RecordMetric, job: Job) -> str:
    """What the metric is called where the task of ``job`` has it."""
    return {**_RATES, **{str(gap): words for gap, words in gap_words(job, _DIFFERENCES).items()}}[metric]


def rows(result: Result, job: Job) -> Iterator[tuple[str, ...]]:
    """One row a scenario, under ``HEAD``; with the exact value at the end where a simulation shows it beside a released one."""
    exact = result.oracle.scenarios if result.oracle is not None and result.basis != "oracle" else None
    for asked in job.scenarios:
        if (one := result.scenarios.get(asked.name)) is None:
            continue
        count = "withheld" if one.count is None else f"{one.count:,}"
        row = (asked.name, count, scenario_metric(one.metric, job), interval(one.value), f"{one.at_most:g}: {SAID[one.holds]}")
        yield row if exact is None else (*row, number(exact.get(asked.name)))


def asked_words(asked: RecordScenario) -> str:
    """``nurses: note contains 'nurse'``, and what a difference is between."""
    against = "; compared with all other records" if asked.metric.endswith("_difference") else ""
    return f"{asked.name}: {filter_words(asked)}{against}"


def filter_words(asked: RecordScenario) -> str:
    """``age is >=65; note contains 'walker'``."""
    parts = [
        f"{column} contains {' or '.join(map(repr, wanted.contains))}"
        if isinstance(wanted, Contains)
        else f"{column} is {' or '.join(wanted)}"
        for column, wanted in asked.filter.items()
    ]
    return "; ".join(parts)
