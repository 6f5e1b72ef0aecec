"""The end of a run: decision threshold, test figures, and the files that everything printed or drawn is made from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from fedethos.fairness.histograms import EDGES
from fedethos.fairness.intervals import Estimate
from fedethos.fairness.summary import Summary
from fedethos.job import Job
from fedethos.messages import Arrays, SplitName, Tables
from fedethos.privacy.accounting import ACCOUNTANT
from fedethos.privacy.plan import plan_training
from fedethos.runfolder import RunFolder
from fedethos.server.measure import METRICS, ExactMeasure, Measure, Measurement, decision_edge, describe
from fedethos.server.site import Site
from fedethos.server.state import RunState
from fedethos.storage import JsonValue

TRAINING_ONLY = "Epsilon covers training only; evaluation is exact, which only a simulation may do."
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
    """The final adapter and the base model on the test people, each at its own threshold. ``edge`` is the final one's."""

    edge: int
    final: Summary
    baseline: Summary
    people: Mapping[SplitName, int]
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class _Measured:
    """(validation, test) of the untouched base model and of the final adapter."""

    baseline: tuple[Measurement, Measurement]
    final: tuple[Measurement, Measurement]


def write_outcome(folder: RunFolder, ending: Ending, measure: Measure | None, oracle: ExactMeasure | None) -> None:
    """Write fairness.json, privacy.json and, last, result.json.

    ``measure`` gives what is shown as the result; ``oracle`` gives the exact values that only a simulation has.
    """
    began = time.monotonic()
    measured = _measured(ending, measure) if measure else None
    known = measured if measure is oracle else _measured(ending, oracle) if oracle else None
    shown = _figures(measured, ending.job, withhold=True) if measured else None
    exact = _figures(known, ending.job, withhold=False) if known else None
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


def _measured(ending: Ending, measure: Measure) -> _Measured:
    """Base model and final adapter, each on validation and test people."""
    last = ending.state.round
    return _Measured(
        baseline=(measure(ending.initial, "validation", 0), measure(ending.initial, "test", 0)),
        final=(measure(ending.state.arrays, "validation", last), measure(ending.state.arrays, "test", last)),
    )


def _figures(measured: _Measured, job: Job, *, withhold: bool) -> _Figures:
    edges = [decision_edge(validation.tables, job) for validation, _ in (measured.baseline, measured.final)]
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
    return {"baseline": _intervals(figures.baseline)[0], "metrics": metrics, "fairness": fairness}


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
        "baseline": {name: metric.value for name, metric in figures.baseline.metrics.items()},
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
            "validation": figures.people["validation"] if figures else None,
            "test": figures.people["test"] if figures else None,
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
            "noise_multiplier": plan.noise_multiplier if plan else None,
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
        "statement": TRAINING_ONLY if private else NO_PRIVACY,
    }
