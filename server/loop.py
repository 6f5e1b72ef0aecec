"""The round loop: cohort, quorum, deadline, validation, aggregation, early stop, a checkpoint after every round.

``coordinate`` reads top-down: set up, measure the model before training, train rounds, finish. It runs on any Flower ``Grid``.
Next on the path: ``server/exchange.py`` (messages), ``strategies/`` (aggregation), ``client/node.py`` (the other side).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedethos.aggregation import HEAD_CENTER, trained_in
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import ARRAYS, CONFIG, SETUP, TRAIN, Arrays, Reply, Request, SetupReply, TrainReply, encode_arrays, encode_request
from fedethos.progress import Observer
from fedethos.runfolder import RunFolder
from fedethos.server.cell_weights import cell_weights
from fedethos.server.cohort import CohortGrid, choose_cohort
from fedethos.server.exchange import Exchange, exchange, require_quorum
from fedethos.server.head_center import with_center
from fedethos.server.measure import (
    METRICS,
    EvaluateBySites,
    Everybody,
    ExactMeasure,
    Measure,
    ReleaseBySites,
    decision_edge,
    describe,
    exact_layout,
    watched_metric,
)
from fedethos.server.outcome import Ending, write_outcome
from fedethos.server.site import Site
from fedethos.server.state import RunState, load_state, save_state, spending_after
from fedethos.server.steering import site_shares, steered, steered_step
from fedethos.server.validation import check_update
from fedethos.storage import JsonValue
from fedethos.strategies.averaging import aggregation_error
from fedethos.strategies.registry import make_strategy, restore_strategy, strategy_arrays
from fedethos.strategies.robust import defend


@dataclass(frozen=True, kw_only=True)
class Coordination:
    """All that a run needs besides the grid.

    ``initial``: what a request carries before round 1; ``frozen``: tensors that travel once. ``oracle`` is the exact evaluation
    that only a simulation has. ``export`` writes the final adapter in PEFT's format into a folder. ``started`` is the monotonic
    time at which this process began its work on the run.
    """

    job: Job
    folder: RunFolder
    sites: Mapping[int, Site]
    base_sha256: str
    initial: Arrays
    frozen: Arrays
    export: Callable[[Arrays, Path], None]
    observer: Observer
    engine: str
    started: float
    oracle: ExactMeasure | None = None


def coordinate(grid: Grid, plan: Coordination) -> None:
    """Run the job to its end, or from its last checkpoint to its end.

    Raises
    ------
    FedethosError
        AGG-710 when a round misses its quorum, AGG-711 when a site holds another base model. The last checkpoint stays
        whole, so that ``fedethos resume`` can continue.
    """
    measure, release = _measures(grid, plan)
    state = load_state(plan.folder, plan.frozen, say=plan.observer.stage)
    _set_up_sites(grid, plan)
    preparation = time.monotonic() - plan.started
    if state is None:
        state = _base_model_round(grid, plan, measure, release)
    state = state.remembering(seconds=state.memory.seconds + preparation)
    while state.round < plan.job.federation.rounds and not _stops_early(state, plan.job):
        state = _train_round(grid, plan, state, measure, release)
    plan.observer.stage("Testing the final model")
    plan.export(state.arrays, plan.folder.adapter)
    write_outcome(
        plan.folder,
        Ending(job=plan.job, sites=plan.sites, initial=plan.initial, state=state, engine=plan.engine),
        release or measure,
        plan.oracle,
    )


def _measures(grid: Grid, plan: Coordination) -> tuple[Measure | None, ReleaseBySites | None]:
    """What the metrics per round are made from, and the charged counts of a private job.

    Without privacy the sites send exact counts. With it nothing is released per round: a simulation shows its own evaluation.
    """
    everybody = Everybody(grid, plan.job, plan.job.name, plan.sites)
    if plan.job.privacy.mode == "none":
        return EvaluateBySites(everybody), None
    return plan.oracle, ReleaseBySites(everybody)


def _request(plan: Coordination, round: int, arrays: Arrays) -> Request:
    return Request(job_sha256=plan.job.sha256, run=plan.job.name, round=round, attempt=0, arrays=arrays)


def _set_up_sites(grid: Grid, plan: Coordination) -> None:
    """Send the frozen tensors once and make sure that everybody holds the same base model."""

    def check(site: Site, reply: Reply) -> None:
        if isinstance(reply, SetupReply) and reply.model_sha256 != plan.base_sha256:
            raise FedethosError("AGG-711", "A site holds another base model than the coordinator.", where=site.name)

    content = encode_request(SETUP, _request(plan, 0, plan.frozen))
    messages = [Message(content, node_id, SETUP, group_id="setup") for node_id in plan.sites]
    outcome = exchange(grid, messages, plan.sites, deadline=plan.job.federation.deadline, validate=check, on_state=lambda *_: None)
    require_quorum(outcome, plan.job.federation.min_sites, doing="setup of the sites")


def _base_model_round(grid: Grid, plan: Coordination, measure: Measure | None, release: ReleaseBySites | None) -> RunState:
    """Round 0: before training."""
    began, outcome = time.monotonic(), Exchange()
    state = RunState.start(plan.initial, plan.frozen, plan.sites.values())
    if plan.job.center_head:
        plan.observer.stage("Asking the sites for the mean of what the head reads")
        state, outcome = with_center(grid, plan.job, plan.sites, state, _request(plan, 0, state.arrays), plan.frozen)
    plan.observer.stage("Measuring the model before training")
    return _close_round(plan, state, measure, release, began=began, sites={}, outcome=outcome)


def _train_round(grid: Grid, plan: Coordination, state: RunState, measure: Measure | None, release: ReleaseBySites | None) -> RunState:
    job, number, began = plan.job, state.round + 1, time.monotonic()
    cohort = choose_cohort(
        plan.sites, fraction=job.federation.fraction, min_sites=job.federation.min_sites, seed=job.simulation.seed, round=number
    )
    plan.observer.round_started(number, job.federation.rounds, [site.name for site in cohort.values()])
    strategy = make_strategy(job, len(cohort))
    restore_strategy(strategy, state.strategy)

    resting = dict(state.arrays)
    sent = {name: resting.pop(name) for name in trained_in(job.aggregation, number, state.arrays)}

    def check(site: Site, reply: Reply) -> None:
        if isinstance(reply, TrainReply):
            check_update(reply, sent, job)

    request = replace(_request(plan, number, state.arrays), cell_weights=cell_weights(job, state))
    messages = _train_messages(strategy, grid, cohort, request)
    outcome = exchange(grid, messages, cohort, deadline=job.federation.deadline, validate=check, on_state=plan.observer.site)
    require_quorum(outcome, job.federation.min_sites, doing=f"round {number}")

    updates = {name: reply for name, reply in outcome.replies.items() if isinstance(reply, TrainReply)}
    shares = site_shares(job, state, cohort.values())
    defended = defend(job, {name: reply.arrays for name, reply in updates.items()}, shares, sent, {**plan.frozen, **resting})
    arrays = _aggregate(strategy, number, messages, cohort, defended.updates, shares)
    memory = state.memory.model_copy(
        update={
            "spending": {
                **state.memory.spending,
                **{name: spending_after(state.memory.spending[name], reply, number) for name, reply in updates.items()},
            },
            "aggregation_error": defended.error
            + aggregation_error(
                state.arrays, list(defended.updates.values()), [shares[name] for name in defended.updates], arrays, plan.frozen
            ),
        }
    )
    arrays = steered_step(job, state, defended.updates, shares, arrays)
    trained = RunState(number, {**_center(state.arrays), **arrays}, memory, strategy_arrays(strategy))
    return _close_round(plan, trained, measure, release, began=began, sites=outcome.states(cohort.values()), outcome=outcome)


def _train_messages(strategy: Strategy, grid: Grid, cohort: Mapping[int, Site], request: Request) -> list[Message]:
    """The strategy decides who is asked and with what; the message contract decides what a request looks like."""
    content = encode_request(TRAIN, request)
    config = ConfigRecord(dict(content.config_records[CONFIG]))
    center = encode_arrays(_center(request.arrays))
    own = ArrayRecord({name: array for name, array in content.array_records[ARRAYS].items() if name not in center})
    proposed = strategy.configure_train(request.round, own, config, CohortGrid(grid, cohort))
    return [
        Message(
            RecordDict(
                {ARRAYS: ArrayRecord({**message.content.array_records[ARRAYS], **center}), CONFIG: message.content.config_records[CONFIG]}
            ),
            message.metadata.dst_node_id,
            TRAIN,
            group_id=str(request.round),
        )
        for message in proposed
    ]


def _center(arrays: Arrays) -> Arrays:
    """The head's centre, which no strategy sees; empty without one."""
    return {name: array for name, array in arrays.items() if name == HEAD_CENTER}


def _aggregate(
    strategy: Strategy,
    number: int,
    messages: Iterable[Message],
    cohort: Mapping[int, Site],
    updates: Mapping[str, Arrays],
    shares: Mapping[str, float],
) -> Arrays:
    """Rebuild replies from what the robust step left, sorted by site, with approved weights, and let the strategy combine them.

    Raises
    ------
    FedethosError
        AGG-712 when the strategy returns nothing, or something that is not finite.
    """
    asked = {cohort[message.metadata.dst_node_id].name: message for message in messages}
    replies = [
        Message(
            RecordDict({ARRAYS: encode_arrays(updates[name]), "metrics": MetricRecord({"num-examples": shares[name]})}),
            reply_to=asked[name],
        )
        for name in sorted(updates)
    ]
    combined, _ = strategy.aggregate_train(number, replies)
    arrays = {} if combined is None else {name: array.numpy().astype(np.float32) for name, array in combined.items()}
    if not arrays or not all(np.isfinite(array).all() for array in arrays.values()):
        raise FedethosError("AGG-712", f"Aggregation of round {number} gave no finite adapter.", fix="Lower the learning rate and resume.")
    return arrays


def _close_round(
    plan: Coordination,
    state: RunState,
    measure: Measure | None,
    release: ReleaseBySites | None,
    *,
    began: float,
    sites: Mapping[str, str],
    outcome: Exchange,
) -> RunState:
    """Measure, write the line in rounds.jsonl, then the checkpoint: a line without its checkpoint is cut off on resume."""
    metrics: dict[str, JsonValue] = dict.fromkeys(METRICS)  # null: nothing was released
    fairness: dict[str, JsonValue] = {}
    bytes_up, bytes_down = outcome.bytes_up, outcome.bytes_down
    if measure is not None:
        validation = measure(state.arrays, "validation", state.round, exact_layout(plan.job))
        plain = describe(validation, decision_edge(validation.tables, plan.job), plan.job).plain()
        metrics, fairness = plain["metrics"], plain["fairness"]
        bytes_up, bytes_down = bytes_up + validation.bytes_up, bytes_down + validation.bytes_down
    weights = state.memory.steering  # of the round that ends here, not yet those that its counts give
    if ask := measure if plan.job.privacy.mode == "none" else release:  # never the oracle: weights act on the model
        state, asked_for_weights = steered(ask, state, plan.job, plan.sites.values())
        bytes_up += sum(one.bytes_up for one in asked_for_weights)
        bytes_down += sum(one.bytes_down for one in asked_for_weights)
    rule, watched = plan.job.federation.early_stop, None
    if rule is not None and state.round > 0:
        watched = metrics[rule.metric]
        if release is not None:
            watched, asked = watched_metric(release, state.arrays, state.round, rule.metric)
            bytes_up += sum(one.bytes_up for one in asked)
            bytes_down += sum(one.bytes_down for one in asked)
    seconds = time.monotonic() - began
    state = state.remembering(
        bytes_up=state.memory.bytes_up + bytes_up,
        bytes_down=state.memory.bytes_down + bytes_down,
        seconds=state.memory.seconds + seconds,
        **_patience(state, watched, plan.job),
    )
    private = plan.job.privacy.mode != "none"
    record: dict[str, JsonValue] = {
        "round": state.round,
        "seconds": round(seconds, 3),
        "sites": dict(sites),
        "metrics": metrics,
        "fairness": fairness,
        "basis": measure.basis if measure else "released",
        "epsilon": {name: spent.epsilon for name, spent in state.memory.spending.items()} if private else None,
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
        "aggregation_error": state.memory.aggregation_error,
        **(weights.as_json(plan.job) if weights else {}),
        "refusals": [{"site": refusal.site, "code": refusal.code, "incident": refusal.incident} for refusal in outcome.refusals],
    }
    plan.folder.append_round(record)
    save_state(plan.folder, state)
    plan.observer.round_finished(record)
    return state


def _patience(state: RunState, value: JsonValue, job: Job) -> dict[str, float | int | None]:
    """Count rounds without a gain of the early-stop metric; round 0 sets no mark."""
    rule = job.federation.early_stop
    if rule is None or not isinstance(value, float):
        return {}
    if state.memory.best is None or value > state.memory.best + rule.min_delta:
        return {"best": value, "waited": 0}
    return {"waited": state.memory.waited + 1}


def _stops_early(state: RunState, job: Job) -> bool:
    rule = job.federation.early_stop
    return rule is not None and state.memory.waited >= rule.patience
