"""Estimates as ``result.json`` and ``fairness.json`` hold them. What abstains keeps its limits and loses its value: never a bare number."""

from __future__ import annotations

from collections.abc import Callable

from fedethos.fairness.classes import ClassSummary
from fedethos.fairness.intervals import Estimate
from fedethos.storage import JsonValue


def interval_json(estimate: Estimate) -> dict[str, JsonValue]:
    value = None if estimate.abstained else estimate.value
    return {"value": value, "low": estimate.low, "high": estimate.high, "abstained": estimate.abstained}


def count_json(count: Estimate) -> int | None:
    return None if count.value is None else round(count.value)


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
