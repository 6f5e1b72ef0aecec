"""What is measured at the end of a run: decision threshold and test figures of an adapter, exact or from charged counts.

The same for the global adapter and for the sites' personal ones. Next: ``server/outcome.py`` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedethos.fairness.layout import FINE, SCORES, Layout, group_score_cuts, score_cuts
from fedethos.fairness.responses import known_cuts
from fedethos.fairness.summary import Summary
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.messages import Arrays, SplitName, Tables
from fedethos.server.decision import Decision, fit_rules
from fedethos.server.measure import Measure, Measurement, ReleaseBySites, decision_edge, describe, exact_layout, noisy_edge


@dataclass(frozen=True)
class Figures:
    """An adapter on the test people, with its own threshold, and the base model with its own.

    ``baseline`` is None where nothing was released about it. ``asked``: every measurement, that of the test people last. ``epsilon``: what
    each site has spent after these counts.
    """

    decision: Decision
    final: Summary
    baseline: Summary | None
    people: Mapping[SplitName, int]
    asked: Sequence[Measurement]
    epsilon: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes_up(self) -> int:
        return sum(one.bytes_up for one in self.asked)

    @property
    def bytes_down(self) -> int:
        return sum(one.bytes_down for one in self.asked)

    def site_accuracy(self, job: Job) -> dict[str, float | None]:
        """Accuracy on the test people of each site whose tables are known by site."""
        test, edge = self.asked[-1], None if self.decision.rules else self.decision.edge
        each = {site: replace(test, tables=tables) for site, tables in test.by_site.items()}
        return {site: describe(one, edge, job, withhold=False).metrics["accuracy"].value for site, one in each.items()}


@dataclass(frozen=True)
class _Tested:
    """One adapter on the test people. ``asked``: validation first, test last."""

    decision: Decision
    summary: Summary
    asked: Sequence[Measurement]


def released_figures(release: ReleaseBySites, arrays: Arrays, round: int, job: Job, *, initial: Arrays | None = None) -> Figures:
    """Charged counts: validation scores once for the threshold, training scores once for thresholds per group, test counts once.

    Of the untrained model (``initial``), threshold and test counts once more if the job pays for them (``privacy.metrics.baseline``). They
    are asked for last, so that their stored replies do not take the place of others. Where the noisy validation counts hold nobody the
    threshold is the fixed one: the run has been paid for.
    """
    asked: list[Measurement] = []
    people: dict[SplitName, int] = {}
    decision = Decision(FIXED_EDGE)
    cuts = known_cuts(job)
    if job.fairness.thresholds != "fixed":
        asked.append(release(arrays, "validation", round, Layout(cuts=FINE)))
        scores = asked[0].tables[SCORES]
        people["validation"] = _noisy_people(asked[0].tables)
        edge = noisy_edge(asked[0].tables, job)
        decision, cuts = Decision(FIXED_EDGE if edge is None else edge, counted=edge is not None), score_cuts(scores)
        by_group = group_score_cuts(scores, job.data.label.favorable_index)
        if fitted := fit_rules(release, arrays, round, job, edge=decision.edge, cuts=by_group):
            decision = replace(decision, rules=fitted[0])
            asked.append(fitted[1])
    test = release(arrays, "test", round, decision.layout(cuts))
    baseline = _released_baseline(release, initial, job) if initial is not None and job.privacy.metrics.baseline else None
    return Figures(
        decision=decision,
        final=describe(test, None, job),
        baseline=baseline.summary if baseline else None,
        people=people | {"test": _noisy_people(test.tables)},
        asked=[*(baseline.asked if baseline else ()), *asked, test],
        epsilon=baseline.asked[-1].epsilon if baseline else test.epsilon,
    )


def _released_baseline(release: ReleaseBySites, initial: Arrays, job: Job) -> _Tested:
    """The untrained model with a threshold of its own, never one per group."""
    asked, decision, cuts = list[Measurement](), Decision(FIXED_EDGE), known_cuts(job)
    if job.fairness.thresholds != "fixed":
        asked.append(release(initial, "validation", 0, Layout(cuts=FINE)))
        edge = noisy_edge(asked[0].tables, job)
        decision, cuts = Decision(FIXED_EDGE if edge is None else edge), score_cuts(asked[0].tables[SCORES])
    test = release(initial, "test", 0, decision.layout(cuts))
    return _Tested(decision, describe(test, None, job), [*asked, test])


def exact_figures(
    measure: Measure,
    arrays: Arrays,
    round: int,
    job: Job,
    *,
    withhold: bool,
    initial: Arrays | None = None,
    decision: Decision | None = None,
) -> Figures:
    """Exact counts of an adapter, and of the base model (``initial``) beside it.

    ``decision``: the one that was released, so that these are the same decisions.
    """
    baseline = _tested(measure, initial, 0, job, withhold=withhold) if initial is not None else None
    final = _tested(measure, arrays, round, job, withhold=withhold, decision=decision)
    return Figures(
        decision=final.decision,
        final=final.summary,
        baseline=baseline.summary if baseline else None,
        people={"validation": _people(final.asked[0].tables), "test": _people(final.asked[-1].tables)},
        asked=[*(baseline.asked if baseline else ()), *final.asked],
    )


def _tested(measure: Measure, arrays: Arrays, round: int, job: Job, *, withhold: bool, decision: Decision | None = None) -> _Tested:
    asked = [measure(arrays, "validation", round, exact_layout(job))]
    if decision is None:
        decision = Decision(decision_edge(asked[0].tables, job))
        if fitted := fit_rules(measure, arrays, round, job, edge=decision.edge):
            decision = replace(decision, rules=fitted[0])
            asked.append(fitted[1])
    if decision.rules is None:
        test = measure(arrays, "test", round, exact_layout(job))
        return _Tested(decision, describe(test, decision.edge, job, withhold=withhold), [*asked, test])
    test = measure(arrays, "test", round, decision.layout(FINE))
    return _Tested(decision, describe(test, None, job, withhold=withhold), [*asked, test])


def _noisy_people(tables: Tables) -> int:
    """From the table of the fewest cells: each cell brings its own noise."""
    return max(0, int(min(tables.values(), key=lambda table: table.size).sum()))


def _people(tables: Tables) -> int:
    return int(next(iter(tables.values())).sum())
