"""Which metrics a task has, and what they are called there: for the terminal and the report.

Where every record brings its own right answer (causal-lm, preference) there are no negatives: no AUC, no balanced accuracy, and of the gaps
only that in accuracy, which is the demographic-parity difference of being right.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedethos.job import Job
from fedethos.result import GapName, MetricName

RESPONSE_PERPLEXITY = "Response perplexity"
_RIGHT = {"causal-lm": "Responses written exactly", "preference": "Better answers likelier"}


def metric_words(job: Job, usual: Mapping[MetricName, str]) -> dict[MetricName, str]:
    """The metrics of ``job`` with their labels: ``usual`` ones for tasks with labels."""
    right = _RIGHT.get(job.task)
    if right is None:
        return dict(usual)
    return {"accuracy": right, "worst_group_accuracy": f"{right}, worst group"}


def gap_words(job: Job, usual: Mapping[GapName, str]) -> dict[GapName, str]:
    """The same of gaps between groups."""
    return dict(usual) if job.task not in _RIGHT else {"demographic_parity_difference": "difference in accuracy"}


def rate_words(job: Job, usual: Mapping[str, str]) -> dict[str, str]:
    """The same of the rates of a group."""
    right = _RIGHT.get(job.task)
    return dict(usual) if right is None else {"accuracy": right}
