"""The end of a run: decision threshold, test figures, and the files that everything printed or drawn is made from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedethos.aggregation import HEAD_CENTER
from fedethos.job import Job
from fedethos.messages import Arrays, SplitName
from fedethos.privacy.accounting import ACCOUNTANT
from fedethos.privacy.plan import plan_training
from fedethos.privacy.planner import training_noise
from fedethos.runfolder import RunFolder
from fedethos.server.decision import threshold_json
from fedethos.server.estimates_json import (
    classes_json,
    exact_json,
    exact_metrics_json,
    exact_scenarios_json,
    scenarios_json,
    summary_json,
    without_counts,
)
from fedethos.server.figures import Figures, exact_figures, released_figures
from fedethos.server.measure import ExactMeasure, Measure, ReleaseBySites
from fedethos.server.personal import measure_personal
from fedethos.server.site import Site
from fedethos.server.state import RunState
from fedethos.storage import JsonValue

COVERED = "Epsilon covers training and every count that was released."
BALANCED = " It is that of a unit in the group that is sampled most often; a unit in another group loses no more."
WEIGHED = " It is that of a unit in the cell with the largest weight; a unit in another cell loses no more."
DEPLOYMENT = "deployment"  # the engine of real sites
CENTER_INSIDE = " It covers the mean of the head's input too."
PERSONAL_INSIDE = " It covers the personal adapters too."
PERSONAL_OUTSIDE = (
    " It does not cover the personal adapters: they train without noise, and neither they nor anything computed from them leaves a site. "
    "Whoever sees one, or its answers, sees through to the site's records."
)
NO_PRIVACY = "No privacy protection"
SEEDED = "Simulation, not a guarantee"


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


def write_outcome(folder: RunFolder, ending: Ending, measure: Measure | ReleaseBySites | None, oracle: ExactMeasure | None) -> None:
    """Write fairness.json, privacy.json and, last, result.json.

    ``measure`` gives what is shown as the result: exact counts, or the charged ones of a private job. ``oracle`` gives the exact
    values that only a simulation has.
    """
    began = time.monotonic()
    job, arrays, last, initial = ending.job, ending.state.arrays, ending.state.round, ending.initial
    shown: Figures | None
    if isinstance(measure, ReleaseBySites):
        shown = released_figures(measure, arrays, last, job, initial=initial)
    else:
        shown = exact_figures(measure, arrays, last, job, withhold=True, initial=initial) if measure else None
    decision = shown.decision if shown else None
    exact = exact_figures(oracle, arrays, last, job, withhold=False, initial=initial, decision=decision) if oracle else None
    personal = measure_personal(job, arrays, last, measure, oracle)
    asked = [one for one in (shown, personal) if one is not None]
    for one in asked:
        ending = _having_spent(ending, one.epsilon)
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
            "oracle": _oracle(exact, oracle.people, job) if exact and oracle else None,
            **_shown(shown, job),
            "personal": personal.as_json(job, exact) if personal else None,
            "privacy": _spent(ending),
            "communication": {
                "bytes_up": ending.state.memory.bytes_up + sum(one.bytes_up for one in asked),
                "bytes_down": ending.state.memory.bytes_down + sum(one.bytes_down for one in asked),
            },
            "aggregation_error": ending.state.memory.aggregation_error,
        }
    )


def _having_spent(ending: Ending, epsilon: Mapping[str, float]) -> Ending:
    """The same ending with each site's cost after its counts; unchanged where none was charged."""
    if not epsilon:
        return ending
    spending = {
        name: spent.model_copy(update={"epsilon": max(spent.epsilon or 0.0, epsilon.get(name, 0.0))})
        for name, spent in ending.state.memory.spending.items()
    }
    return replace(ending, state=ending.state.remembering(spending=spending))


def _shown(figures: Figures | None, job: Job) -> dict[str, JsonValue]:
    if figures is None:
        return {"baseline": {}, **without_counts(), "classes": None, "scenarios": {}}
    return {
        "baseline": summary_json(figures.baseline)["metrics"] if figures.baseline else {},
        **summary_json(figures.final),
        "classes": classes_json(figures.final.classes),
        "scenarios": scenarios_json(figures.final, job),
    }


def _oracle(figures: Figures, people: Mapping[SplitName, int], job: Job) -> dict[str, JsonValue]:
    return {
        **exact_json(figures.final),
        "scenarios": exact_scenarios_json(figures.final, job),
        "classes": classes_json(figures.final.classes, lambda one: one.value),
        "baseline": exact_metrics_json(figures.baseline) if figures.baseline else {},
        "people": {split: count for split, count in people.items()},  # noqa: C416 - widens the key type
    }


def _fairness(job: Job, figures: Figures | None) -> dict[str, JsonValue]:
    verdicts = {attribute: one.verdict for attribute, one in figures.final.fairness.items()} if figures else {}
    measured = any(verdict.status == "measured" for verdict in verdicts.values())
    return {
        "threshold": threshold_json(figures.decision if figures else None, job),
        "verdict": {
            "state": "measured" if measured else "none",
            "sentences": [f"By {attribute}: {verdict.sentence}" for attribute, verdict in verdicts.items()],
        },
        "attributes": summary_json(figures.final)["fairness"] if figures else {},
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
        "statement": _statement(job, centered=HEAD_CENTER in ending.initial) if private else NO_PRIVACY,
    }


def _statement(job: Job, *, centered: bool) -> str:
    personal = "" if job.training.personal is None else PERSONAL_INSIDE if job.personal_is_charged else PERSONAL_OUTSIDE
    center = CENTER_INSIDE * centered
    return COVERED + WEIGHED * job.weighs_cells + BALANCED * (job.training.sampling != "uniform") + center + personal
