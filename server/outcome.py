"""The end of a run: decision threshold, test figures, and the files that everything printed or drawn is made from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fedethos.fairness.histograms import EDGES
from fedethos.fairness.intervals import Estimate
from fedethos.fairness.layout import DEFAULT_CUTS, FINE, SCORES, Layout, score_cuts
from fedethos.fairness.summary import Summary
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.messages import Arrays, SplitName, Tables
from fedethos.privacy.accounting import ACCOUNTANT
from fedethos.privacy.plan import plan_training
from fedethos.privacy.planner import training_noise
from fedethos.runfolder import RunFolder
from fedethos.server.measure import METRICS, ExactMeasure, Measure, Measurement, ReleaseBySites, decision_edge, describe
from fedethos.server.site import Site
from fedethos.server.state import RunState
from fedethos.storage import JsonValue

COVERED = "Epsilon covers training and every count that was released."
WEIGHED = " It is that of a unit in the cell with the largest weight; a unit in another cell loses no more."
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


@dataclass(frozen=True)
class _Figures:
    """The final adapter and the base model on the test people, each at its own threshold. ``edge`` is the final one's.

    ``baseline`` is None where nothing was released about it; ``epsilon``: what each site has spent after these counts.
    """

    edge: int
    final: Summary
    baseline: Summary | None
    people: Mapping[SplitName, int]
    bytes_up: int
    bytes_down: int
    epsilon: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Measured:
    """(validation, test) of the untouched base model and of the final adapter."""

    baseline: tuple[Measurement, Measurement]
    final: tuple[Measurement, Measurement]


def write_outcome(folder: RunFolder, ending: Ending, measure: Measure | ReleaseBySites | None, oracle: ExactMeasure | None) -> None:
    """Write fairness.json, privacy.json and, last, result.json.

    ``measure`` gives what is shown as the result: exact counts, or the charged ones of a private job. ``oracle`` gives the exact
    values that only a simulation has.
    """
    began = time.monotonic()
    known = _measured(ending, oracle) if oracle else None
    shown: _Figures | None
    if isinstance(measure, ReleaseBySites):
        shown = released = _released(ending, measure)
        ending = _having_spent(ending, released.epsilon)
    else:
        shown = _figures(_measured(ending, measure), ending.job, withhold=True) if measure else None
    exact = _figures(known, ending.job, withhold=False, edge=shown.edge if shown else None) if known else None
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
    """Charged counts: validation scores once for the threshold, test counts once at it. Nothing about the base model."""
    job, arrays, last = ending.job, ending.state.arrays, ending.state.round
    asked = []
    edge: int = FIXED_EDGE
    cuts: tuple[int, ...] = DEFAULT_CUTS
    if job.fairness.thresholds == "pooled":
        asked.append(release(arrays, "validation", last, Layout(cuts=FINE)))
        scores = asked[0].tables[SCORES]
        edge, cuts = decision_edge(asked[0].tables, job), score_cuts(scores)
    asked.append(release(arrays, "test", last, Layout(cuts, edge)))
    people: dict[SplitName, int] = {"test": _noisy_people(asked[-1].tables)}
    if len(asked) > 1:
        people["validation"] = _noisy_people(asked[0].tables)
    return _Figures(
        edge=edge,
        final=describe(asked[-1], None, job),
        baseline=None,
        people=people,
        bytes_up=sum(one.bytes_up for one in asked),
        bytes_down=sum(one.bytes_down for one in asked),
        epsilon=asked[-1].epsilon,
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


def _measured(ending: Ending, measure: Measure) -> _Measured:
    """Base model and final adapter, each on validation and test people."""
    last = ending.state.round
    return _Measured(
        baseline=(measure(ending.initial, "validation", 0), measure(ending.initial, "test", 0)),
        final=(measure(ending.state.arrays, "validation", last), measure(ending.state.arrays, "test", last)),
    )


def _figures(measured: _Measured, job: Job, *, withhold: bool, edge: int | None = None) -> _Figures:
    """``edge``: the threshold that was released, so that exact values are those of the same decisions."""
    edges = [decision_edge(validation.tables, job) for validation, _ in (measured.baseline, measured.final)]
    edges[1] = edges[1] if edge is None else edge
    validation, test = measured.final
    every = (*measured.baseline, *measured.final)
    return _Figures(
        edge=edges[1],
        final=describe(test, edges[1], job, withhold=withhold),
        baseline=describe(measured.baseline[1], edges[0], job, withhold=withhold),
        people={"validation": _people(validation.tables), "test": _people(test.tables)},
        bytes_up=sum(one.bytes_up for one in every),
        bytes_down=sum(one.bytes_down for one in every),
    )


def _people(tables: Tables) -> int:
    return int(next(iter(tables.values())).sum())


def _shown(figures: _Figures | None) -> dict[str, JsonValue]:
    if figures is None:
        return {"baseline": {}, "metrics": dict.fromkeys(METRICS, _NOTHING), "fairness": {}}
    metrics, fairness = _intervals(figures.final)
    baseline = _intervals(figures.baseline)[0] if figures.baseline else {}
    return {"baseline": baseline, "metrics": metrics, "fairness": fairness}


def _intervals(summary: Summary) -> tuple[dict[str, JsonValue], dict[str, JsonValue]]:
    """``metrics`` and ``fairness`` of result.json. What abstains keeps its limits and loses its value: never a bare number."""
    fairness: dict[str, JsonValue] = {}
    for attribute, one in summary.fairness.items():
        groups = {
            group: {name: _interval(rate) for name, rate in rates.items() if name != "count"} | {"count": _whole(rates["count"])}
            for group, rates in one.groups.items()
        }
        fairness[attribute] = {name: _interval(gap) for name, gap in one.gaps.items()} | {"groups": groups}
    return {name: _interval(metric) for name, metric in summary.metrics.items()}, fairness


def _interval(estimate: Estimate) -> dict[str, JsonValue]:
    value = None if estimate.abstained else estimate.value
    return {"value": value, "low": estimate.low, "high": estimate.high, "abstained": estimate.abstained}


def _whole(count: Estimate) -> int | None:
    return None if count.value is None else round(count.value)


def _oracle(figures: _Figures, people: Mapping[SplitName, int]) -> dict[str, JsonValue]:
    fairness: dict[str, JsonValue] = {}
    for attribute, one in figures.final.fairness.items():
        groups = {
            group: {name: rate.value for name, rate in rates.items() if name != "count"} | {"count": _whole(rates["count"]) or 0}
            for group, rates in one.groups.items()
        }
        fairness[attribute] = {name: gap.value for name, gap in one.gaps.items()} | {"groups": groups}
    return {
        "metrics": {name: metric.value for name, metric in figures.final.metrics.items()},
        "fairness": fairness,
        "baseline": {name: metric.value for name, metric in figures.baseline.metrics.items()} if figures.baseline else {},
        "people": {split: count for split, count in people.items()},  # noqa: C416 - widens the key type
    }


def _fairness(job: Job, figures: _Figures | None) -> dict[str, JsonValue]:
    verdicts = {attribute: one.verdict for attribute, one in figures.final.fairness.items()} if figures else {}
    measured = any(verdict.status == "measured" for verdict in verdicts.values())
    return {
        "threshold": {
            "kind": job.fairness.thresholds,
            "log_odds": float(EDGES[figures.edge]) if figures else None,
            "edge_index": figures.edge if figures else None,
            "source": "pooled validation histogram, base rate" if job.fairness.thresholds == "pooled" else "fixed score of 0.5",
        },
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
        "secure_rng": job.privacy.secure_rng is True,
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
        "secure_rng": job.privacy.secure_rng is True,
        "accountant": ACCOUNTANT if private else None,
        "sites": sites,
        "statement": COVERED + (WEIGHED if job.fairness.cell_weights is not None else "") if private else NO_PRIVACY,
    }
