"""How the final adapter decides: everybody's threshold and, where the policy allows it, one rule per group.

Group rules come from counts of the training people: a tenth of the people, as validation has, knows a group's rate three times worse.
The order is fixed: validation scores (everybody's threshold, cuts), training scores by group (rules), test counts by decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedethos.fairness.decision_rules import GroupRules
from fedethos.fairness.group_thresholds import Noise, group_rules
from fedethos.fairness.histograms import BINS, EDGES
from fedethos.fairness.layout import FINE, GROUP_SCORES, Layout
from fedethos.job import Job
from fedethos.job_data import UNKNOWN
from fedethos.messages import Arrays, SplitName
from fedethos.server.measure import Measurement
from fedethos.storage import JsonValue

_NOBODY = "fixed score of 0.5: the noisy counts of the validation people held nobody"
_SOURCES: Mapping[str, str] = {
    "fixed": "fixed score of 0.5",
    "pooled": "pooled validation histogram, base rate",
}


class AskLayout(Protocol):
    """Counts in a ``Layout``, exact or charged: ``Measure`` or ``ReleaseBySites``."""

    def __call__(self, arrays: Arrays, split: SplitName, round: int, layout: Layout) -> Measurement: ...


@dataclass(frozen=True)
class Decision:
    """``edge``: everybody's threshold, an index into ``EDGES``; ``rules`` in its place where groups have their own.

    ``counted`` False: it is the fixed one, for the noisy validation counts held nobody.
    """

    edge: int
    rules: GroupRules | None = None
    counted: bool = True

    @property
    def group_aware(self) -> bool:
        """Whether some group has a rule of its own."""
        return self.rules is not None and len(self.rules.pooled) < len(self.rules.rules)

    def layout(self, cuts: tuple[int, ...] | None) -> Layout:
        """Test counts by decision, with a score table of these cuts."""
        return Layout(cuts, rules=self.rules) if self.rules is not None else Layout(cuts, self.edge)


def fit_rules(
    ask: AskLayout, arrays: Arrays, round: int, job: Job, *, edge: int, cuts: tuple[int, ...] = FINE
) -> tuple[GroupRules, Measurement] | None:
    """Rules per group from the training people's scores, and what was asked for them; None when the job names none.

    ``cuts``: inner edges of the bins; fewer of them for noisy counts.
    """
    constraint, attribute = job.fairness.group_constraint, job.fairness_attribute
    if constraint is None or attribute is None:
        return None
    asked = ask(arrays, "train", round, Layout(attribute=attribute, group_cuts=cuts))
    metrics = job.privacy.metrics
    rules = group_rules(
        attribute,
        asked.tables[GROUP_SCORES],
        EDGES[np.array([0, *cuts, BINS])],
        constraint=constraint,
        favorable=job.data.label.favorable_index,
        pooled=float(EDGES[edge]),
        randomized=job.policy is not None and job.policy.allow_randomized_decisions,
        noise=Noise(variance=asked.noise_variance, tolerance=metrics.tolerance, min_group_size=metrics.min_group_size),
    )
    return rules, asked


def threshold_json(decision: Decision | None, job: Job) -> dict[str, JsonValue]:
    """``threshold`` of fairness.json. Everybody's threshold stays there: it is that of the groups without a rule of their own."""
    kind = job.fairness.thresholds
    described: dict[str, JsonValue] = {
        "kind": kind,
        "log_odds": float(EDGES[decision.edge]) if decision and not job.data.label.multiclass else None,
        "edge_index": decision.edge if decision else None,
        "source": _source(decision, job),
        "group_aware": decision is not None and decision.group_aware,
        "attribute": None,
        "groups": {},
    }
    if decision is None or decision.rules is None:
        return described
    names = (*job.attributes[decision.rules.attribute], UNKNOWN)
    return described | {
        "attribute": decision.rules.attribute,
        "groups": {
            name: {"low": rule.low, "high": rule.high, "chances": list(rule.chances), "own": group not in decision.rules.pooled}
            for group, (name, rule) in enumerate(zip(names, decision.rules.rules, strict=True))
        },
    }


def _source(decision: Decision | None, job: Job) -> str:
    if job.data.label.multiclass:
        return "the most likely label"
    if job.is_language:
        return "the likeliest answer"
    if decision is not None and not decision.counted and decision.rules is None:
        return _NOBODY
    return _SOURCES.get(job.fairness.thresholds, "pooled scores of the training people by group")
