"""Scenarios of a job (``fedethos/job_scenarios.py``): their metric from the counts of the records that match and of all others."""

from __future__ import annotations

from dataclasses import dataclass

from fedethos.fairness.intervals import UNDEFINED, Estimate
from fedethos.fairness.summary import AttributeSummary
from fedethos.job_scenarios import MATCHING, RecordScenario


@dataclass(frozen=True)
class ScenarioOutcome:
    """``holds``: whether the metric is at most the limit; None where it is not measurable, which is no pass. ``people`` who match."""

    people: Estimate
    value: Estimate
    holds: bool | None


def outcome(asked: RecordScenario, counted: AttributeSummary) -> ScenarioOutcome:
    """The outcome of ``asked`` from the summary of its table."""
    group = counted.groups[MATCHING]
    value = {
        "error_rate": _complement(group["accuracy"]),
        "false_positive_rate": group["fpr"],
        "false_negative_rate": _complement(group["tpr"]),
        **counted.gaps,
    }[asked.metric]
    holds = None if value.value is None or value.abstained else value.value <= asked.limit
    return ScenarioOutcome(group["count"], value, holds)


def _complement(rate: Estimate) -> Estimate:
    """One minus a rate."""
    if rate.value is None or rate.low is None or rate.high is None:
        return UNDEFINED
    return Estimate(1.0 - rate.value, 1.0 - rate.high, 1.0 - rate.low, rate.abstained)
