"""Which count tables a request asks for, and whether the approved job allows them. Imports no deep-learning library."""

from __future__ import annotations

from fedethos.errors import FedethosError
from fedethos.fairness.decision_rules import GroupRules
from fedethos.fairness.layout import Layout
from fedethos.job import Job
from fedethos.messages import Request, SplitName


def layout_of(request: Request) -> Layout:
    """The tables that an evaluate request asks for. AGG-734, AGG-760 or AGG-763 when it contradicts itself."""
    rules = None if request.rules is None else GroupRules.of_numbers(request.attribute or "", request.rules)
    return Layout(request.cuts, request.edge, rules, request.attribute, request.group_cuts)


def check_layout(split: SplitName, layout: Layout, job: Job) -> None:
    """Training people are counted by group for a strategy that steers by them, or for thresholds per group; the job names either.

    Raises
    ------
    FedethosError
        SEC-650 and SEC-651 for counts that the job does not name.
    """
    if (split == "train") != (layout.group_cuts is not None) or (split == "train" and layout.wanted != ("group-scores",)):
        raise FedethosError(
            "SEC-650",
            "Counts of training people were asked for other than by group, or other people by group.",
            why="Nothing was computed.",
        )
    by_group = layout.group_cuts is not None or layout.rules is not None
    attribute = job.fairness_attribute
    named = job.fairness.group_constraint is not None or (layout.rules is None and bool(job.steering_rounds))
    known = named and attribute is not None and layout.attribute == attribute
    if by_group and not (known and (layout.rules is None or _fit(layout.rules, attribute or "", job))):
        raise FedethosError(
            "SEC-651",
            "Decisions by group were asked for that the approved job does not name.",
            where="fairness.thresholds",
            why="Nothing was computed.",
        )


def check_personal(request: Request, job: Job) -> None:
    """SEC-652 when counts of the site's own adapter are asked for, and the job does not release them."""
    personal = job.training.personal
    if request.personal and (personal is None or not personal.release_counts):
        raise FedethosError(
            "SEC-652",
            "Counts of the personal adapter were asked for that the approved job does not release.",
            where="training.personal.release_counts",
            why="Nothing was computed.",
        )


def _fit(rules: GroupRules, attribute: str, job: Job) -> bool:
    coin = job.policy is not None and job.policy.allow_randomized_decisions
    return len(rules.rules) == len(job.attributes[attribute]) + 1 and (coin or not rules.randomized)
