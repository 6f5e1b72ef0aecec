"""Estimates as ``result.json`` and ``fairness.json`` hold them. What abstains keeps its limits and loses its value: never a bare number."""

from __future__ import annotations

from collections.abc import Callable

from fedethos.fairness.classes import ClassSummary
from fedethos.fairness.intervals import Estimate
from fedethos.fairness.scenarios import outcome
from fedethos.fairness.summary import Summary
from fedethos.job import Job
from fedethos.server.measure import METRICS
from fedethos.storage import JsonValue

_NOTHING: dict[str, JsonValue] = {"value": None, "low": None, "high": None, "abstained": True}
_NO_RESPONSES: dict[str, JsonValue] = {"response_perplexity": None}  # of tasks that write none


def interval_json(estimate: Estimate) -> dict[str, JsonValue]:
    value = None if estimate.abstained else estimate.value
    return {"value": value, "low": estimate.low, "high": estimate.high, "abstained": estimate.abstained}


def count_json(count: Estimate) -> int | None:
    return None if count.value is None else round(count.value)


def summary_json(summary: Summary) -> dict[str, dict[str, JsonValue]]:
    """``metrics`` and ``fairness`` of a result."""
    fairness: dict[str, JsonValue] = {}
    for attribute, one in summary.fairness.items():
        groups = {
            group: {name: interval_json(rate) for name, rate in rates.items() if name != "count"} | {"count": count_json(rates["count"])}
            for group, rates in one.groups.items()
        }
        fairness[attribute] = {name: interval_json(gap) for name, gap in one.gaps.items()} | {"groups": groups}
    return {"metrics": _NO_RESPONSES | {name: interval_json(metric) for name, metric in summary.metrics.items()}, "fairness": fairness}


def without_counts() -> dict[str, dict[str, JsonValue]]:
    """``metrics`` and ``fairness`` where no site sent a count."""
    return {"metrics": _NO_RESPONSES | dict.fromkeys(METRICS, _NOTHING), "fairness": {}}


def exact_json(summary: Summary) -> dict[str, dict[str, JsonValue]]:
    """``metrics`` and ``fairness`` as plain numbers, which only a simulation has."""
    fairness: dict[str, JsonValue] = {}
    for attribute, one in summary.fairness.items():
        groups = {
            group: {name: rate.value for name, rate in rates.items() if name != "count"} | {"count": count_json(rates["count"]) or 0}
            for group, rates in one.groups.items()
        }
        fairness[attribute] = {name: gap.value for name, gap in one.gaps.items()} | {"groups": groups}
    return {"metrics": exact_metrics_json(summary), "fairness": fairness}


def exact_metrics_json(summary: Summary) -> dict[str, JsonValue]:
    """``metrics`` alone, as plain numbers."""
    return _NO_RESPONSES | {name: metric.value for name, metric in summary.metrics.items()}


def classes_json(classes: ClassSummary | None, shown: Callable[[Estimate], JsonValue] = interval_json) -> dict[str, JsonValue] | None:
    """``classes`` of a result; null for two labels. ``shown``: how a number is written, ``interval_json`` or its bare value."""
    if classes is None:
        return None
    labels: dict[str, JsonValue] = {
        label: {name: shown(rate) for name, rate in rates.items() if name != "count"} | {"count": count_json(rates["count"])}
        for label, rates in classes.labels.items()
    }
    fairness: dict[str, JsonValue] = {
        attribute: {
            label: {
                "true_positive_rate_difference": shown(gap),
                "groups": {group: shown(rate) for group, rate in classes.groups[attribute][label].items()},
            }
            for label, gap in gaps.items()
        }
        for attribute, gaps in classes.gaps.items()
    }
    return {"worst_class_recall": shown(classes.worst_class_recall), "labels": labels, "fairness": fairness}


def scenarios_json(summary: Summary, job: Job) -> dict[str, JsonValue]:
    """``scenarios`` of a result: each metric with its limit, and whether it holds."""
    found: dict[str, JsonValue] = {}
    for asked in job.scenarios:
        one = outcome(asked, summary.slices[asked.table])
        found[asked.name] = {
            "metric": asked.metric,
            "count": count_json(one.people),
            "value": interval_json(one.value),
            "at_most": asked.limit,
            "holds": one.holds,
        }
    return found


def exact_scenarios_json(summary: Summary, job: Job) -> dict[str, JsonValue]:
    """The metrics of the job's scenarios as plain numbers, which only a simulation has."""
    return {asked.name: outcome(asked, summary.slices[asked.table]).value.value for asked in job.scenarios}
