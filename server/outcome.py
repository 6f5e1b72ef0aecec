"""The end of a run: decision threshold, test figures, and the files that everything printed or drawn is made from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedethos.fairness.layout import DEFAULT_CUTS, FINE, SCORES, Layout, group_score_cuts, score_cuts
from fedethos.fairness.summary import Summary
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.messages import Arrays, SplitName, Tables
from fedethos.privacy.accounting import ACCOUNTANT
from fedethos.privacy.plan import plan_training
from fedethos.privacy.planner import training_noise
from fedethos.runfolder import RunFolder
from fedethos.server.decision import Decision, fit_rules, threshold_json
from fedethos.server.estimates_json import classes_json, count_json, interval_json
from fedethos.server.measure import METRICS, ExactMeasure, Measure, Measurement, ReleaseBySites, decision_edge, describe, exact_layout
from fedethos.server.site import Site
from fedethos.server.state import RunState
from fedethos.storage import JsonValue

COVERED = "Epsilon covers training and every count that was released."
BALANCED = " It is that of a unit in the group that is sampled most often; a unit in another group loses no more."
WEIGHED = " It is that of a unit in the cell with the largest weight; a unit in another cell loses no more."
DEPLOYMENT = "deployment"  # the engine of real sites
NO_PRIVACY = "No privacy protection"
SEEDED = "Simulation, not a guarantee"

_NOTHING: dict[str, JsonValue] = {"value": None, "low": None, "high": None, "abstained": True}


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What is known when the last round is over. ``initial`` is the untouched base model's adapter."""

    job: Job
    sites: Mapping[int, Site]
    initial: Arrays
    state: RunState
    engine: str

    @property
    def secure_rng(self) -> bool:
        return self.job.privacy.secure(deployed=self.engine == DEPLOYMENT)


@dataclass(frozen=True)
class _Figures:
    """The final adapter and the base model on the test people, each with its own thresholds. ``decision`` is the final one's.

    ``baseline`` is None where nothing was released about it; ``epsilon``: what each site has spent after these counts.
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


@dataclass(frozen=True)
class _Tested:
    """One adapter on the test people. ``asked``: validation first, test last."""

    decision: Decision
    summary: Summary
    asked: Sequence[Measurement]


def write_outcome(folder: RunFolder, ending: Ending, measure: Measure | ReleaseBySites | None, oracle: ExactMeasure | None) -> None:
    """Write fairness.json, privacy.json and, last, result.json.

    ``measure`` gives what is shown as the result: exact counts, or the charged ones of a private job. ``oracle`` gives the exact
    values that only a simulation has.
    """
    began = time.monotonic()
    shown: _Figures | None
    if isinstance(measure, ReleaseBySites):
        shown = released = _released(ending, measure)
        ending = _having_spent(ending, released.epsilon)
    else:
        shown = _figures(ending, measure, withhold=True) if measure else None
    exact = _figures(ending, oracle, withhold=False, decision=shown.decision if shown else None) if oracle else None
    folder.write_privacy(_privacy(ending))
    folder.write_fairness(_fairness(ending.job, shown))
    folder.write_result(
        {
            "name": ending.job.name,
            "status": "completed" if ending.state.round == ending.job.federation.rounds else "stopped",
            "rounds": ending.state.round,
            "seconds": round(ending.state.memory.seconds + time.monotonic() - began, 1),
            "engine": ending.engine,
            "basis": measure.basis if measure else "released",
            "group_aware": shown is not None and shown.decision.group_aware,
            "oracle": _oracle(exact, oracle.people) if exact and oracle else None,
            **_shown(shown),
            "privacy": _spent(ending),
            "communication": {
                "bytes_up": ending.state.memory.bytes_up + (shown.bytes_up if shown else 0),
                "bytes_down": ending.state.memory.bytes_down + (shown.bytes_down if shown else 0),
            },
            "aggregation_error": ending.state.memory.aggregation_error,
        }
    )


def _released(ending: Ending, release: ReleaseBySites) -> _Figures:
    """Charged counts: validation scores once for the threshold, training scores once for thresholds per group, test counts once.

    Nothing about the base model.
    """
    job, arrays, last = ending.job, ending.state.arrays, ending.state.round
    asked: list[Measurement] = []
    people: dict[SplitName, int] = {}
    decision = Decision(FIXED_EDGE)
    cuts: tuple[int, ...] = DEFAULT_CUTS
    if job.fairness.thresholds != "fixed":
        asked.append(release(arrays, "validation", last, Layout(cuts=FINE)))
        scores = asked[0].tables[SCORES]
        people["validation"] = _noisy_people(asked[0].tables)
        decision, cuts = Decision(decision_edge(asked[0].tables, job)), score_cuts(scores)
        by_group = group_score_cuts(scores, job.data.label.favorable_index)
        if fitted := fit_rules(release, arrays, last, job, edge=decision.edge, cuts=by_group):
            decision = replace(decision, rules=fitted[0])
            asked.append(fitted[1])
    test = release(arrays, "test", last, decision.layout(cuts))
    return _Figures(
        decision=decision,
        final=describe(test, None, job),
        baseline=None,
        people=people | {"test": _noisy_people(test.tables)},
        asked=[*asked, test],
        epsilon=test.epsilon,
    )


def _noisy_people(tables: Tables) -> int:
    return max(0, int(tables[SCORES].sum()))


def _having_spent(ending: Ending, epsilon: Mapping[str, float]) -> Ending:
    """The same ending with each site's cost after its counts."""
    spending = {
        name: spent.model_copy(update={"epsilon": max(spent.epsilon or 0.0, epsilon.get(name, 0.0))})
        for name, spent in ending.state.memory.spending.items()
    }
    return replace(ending, state=ending.state.remembering(spending=spending))


def _figures(ending: Ending, measure: Measure, *, withhold: bool, decision: Decision | None = None) -> _Figures:
    """Exact counts of base model and final adapter. ``decision``: the one that was released, so that these are the same decisions."""
    baseline = _tested(measure, ending.initial, 0, ending.job, withhold=withhold)
    final = _tested(measure, ending.state.arrays, ending.state.round, ending.job, withhold=withhold, decision=decision)
    return _Figures(
        decision=final.decision,
        final=final.summary,
        baseline=baseline.summary,
        people={"validation": _people(final.asked[0].tables), "test": _people(final.asked[-1].tables)},
        asked=[*baseline.asked, *final.asked],
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


def _people(tables: Tables) -> int:
    return int(next(iter(tables.values())).sum())


def _shown(figures: _Figures | None) -> dict[str, JsonValue]:
    if figures is None:
        return {"baseline": {}, "metrics": dict.fromkeys(METRICS, _NOTHING), "fairness": {}, "classes": None}
    metrics, fairness = _intervals(figures.final)
    baseline = _intervals(figures.baseline)[0] if figures.baseline else {}
    return {"baseline": baseline, "metrics": metrics, "fairness": fairness, "classes": classes_json(figures.final.classes)}


def _intervals(summary: Summary) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
    """``metrics`` and ``fairness`` of result.json."""
    fairness: dict[str, JsonValue] = {}
    for attribute, one in summary.fairness.items():
        groups = {
            group: {name: interval_json(rate) for name, rate in rates.items() if name != "count"} | {"count": count_json(rates["count"])}
            for group, rates in one.groups.items()
        }
        fairness[attribute] = {name: interval_json(gap) for name, gap in one.gaps.items()} | {"groups": groups}
    return {name: interval_json(metric) for name, metric in summary.metrics.items()}, fairness


def _oracle(figures: _Figures, people: Mapping[SplitName, int]) -> dict[str, JsonValue]:
    fairness: dict[str, JsonValue] = {}
    for attribute, one in figures.final.fairness.items():
        groups = {
            group: {name: rate.value for name, rate in rates.items() if name != "count"} | {"count": count_json(rates["count"]) or 0}
            for group, rates in one.groups.items()
        }
        fairness[attribute] = {name: gap.value for name, gap in one.gaps.items()} | {"groups": groups}
    return {
        "metrics": {name: metric.value for name, metric in figures.final.metrics.items()},
        "fairness": fairness,
        "classes": classes_json(figures.final.classes, lambda one: one.value),
        "baseline": {name: metric.value for name, metric in figures.baseline.metrics.items()} if figures.baseline else {},
        "people": {split: count for split, count in people.items()},  # noqa: C416 - widens the key type
    }


def _fairness(job: Job, figures: _Figures | None) -> dict[str, JsonValue]:
    verdicts = {attribute: one.verdict for attribute, one in figures.final.fairness.items()} if figures else {}
    measured = any(verdict.status == "measured" for verdict in verdicts.values())
    return {
        "threshold": threshold_json(figures.decision if figures else None, job),
        "verdict": {
            "state": "measured" if measured else "none",
            "sentences": [f"By {attribute}: {verdict.sentence}" for attribute, verdict in verdicts.items()],
        },
        "attributes": _intervals(figures.final)[1] if figures else {},
        "min_group_size": job.privacy.metrics.min_group_size,
        "tolerance": job.privacy.metrics.tolerance,
        "people": {
            "train": None,
            "validation": figures.people.get("validation") if figures else None,
            "test": figures.people.get("test") if figures else None,
        },
    }


def _spent(ending: Ending) -> dict[str, JsonValue]:
    job = ending.job
    private = job.privacy.mode != "none"
    return {
        "unit": job.unit,
        "adjacency": job.privacy.adjacency,
        "accountant": ACCOUNTANT if private else None,
        "secure_rng": ending.secure_rng,
        "sites": {
            name: {
                "epsilon": spent.epsilon,
                "delta": job.privacy.delta if private else None,
                "steps": spent.steps,
                "releases": len(spent.rounds),
            }
            for name, spent in ending.state.memory.spending.items()
        },
    }


def _privacy(ending: Ending) -> dict[str, JsonValue]:
    """privacy.json: what each site spent, and the public plan that it follows from."""
    job, spent = ending.job, ending.state.memory.spending
    private = job.privacy.mode != "none"
    sites: dict[str, JsonValue] = {}
    for site in ending.sites.values():
        plan = plan_training(job, declared_size=site.declared_size)
        sites[site.name] = {
            "epsilon": spent[site.name].epsilon,
            "delta": plan.delta if plan else None,
            "steps": spent[site.name].steps,
            "sampling_rate": plan.sampling_rate if plan else None,
            "noise_multiplier": training_noise(job, declared_size=site.declared_size, rows_per_unit=job.rows_per_unit) if plan else None,
            "declared_size": site.declared_size,
        }
    return {
        "mode": job.privacy.mode,
        "unit": job.unit,
        "adjacency": job.privacy.adjacency,
        "delta": job.privacy.delta if private else None,
        "target_epsilon": job.privacy.epsilon if private else None,
        "max_grad_norm": job.privacy.max_grad_norm if private else None,
        "secure_rng": ending.secure_rng,
        "accountant": ACCOUNTANT if private else None,
        "sites": sites,
        "statement": COVERED + WEIGHED * job.weighs_cells + BALANCED * (job.training.sampling != "uniform") if private else NO_PRIVACY,
    }
