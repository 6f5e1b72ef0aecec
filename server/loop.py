"""The round loop: cohort, quorum, deadline, validation, aggregation, early stop, a checkpoint after every round.

``coordinate`` reads top-down: set up, measure the model before training, train rounds, finish. It runs on any Flower ``Grid``.
Next on the path: ``server/roster.py`` (messages), ``strategies/`` (aggregation), ``client/node.py`` (the other side).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedethos.aggregation import HEAD_CENTER
from fedethos.job import Job
from fedethos.messages import ARRAYS, CONFIG, TRAIN, Arrays, Reply, Request, TrainReply, encode_request
from fedethos.progress import Observer
from fedethos.runfolder import RunFolder
from fedethos.server.cell_weights import cell_weights
from fedethos.server.cohort import CohortGrid, choose_cohort
from fedethos.server.combine import combined, sent_in_next_round
from fedethos.server.exchange import Exchange
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
from fedethos.server.roster import Accept, Roster
from fedethos.server.site import Site
from fedethos.server.standing import Standings
from fedethos.server.state import RunState, load_state, save_state, spending_after
from fedethos.server.steering import site_shares, steered
from fedethos.server.updates import Updates
from fedethos.server.validation import check_update
from fedethos.storage import JsonValue
from fedethos.strategies.registry import make_strategy, restore_strategy


@dataclass(frozen=True, kw_only=True)
class Coordination:
    """All that a run needs besides the grid.

    ``run``: the run's name for ever, over restarts too; a site's ledger knows the run by it. ``initial``: what a request carries
    before round 1; ``frozen``: tensors that travel once. ``oracle`` is the exact evaluation that only a simulation has. ``export``
    writes the final adapter in PEFT's format into a folder. ``started`` is the monotonic time at which this process began its work
    on the run. ``attempt``: how often the run was continued. ``quarantine_after``: so many refused replies, and a site is not asked
    any more; None: never.
    """

    job: Job
    run: str
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
    attempt: int = 0
    quarantine_after: int | None = None


def coordinate(grid: Grid, plan: Coordination) -> None:
    """Run the job to its end, or from its last checkpoint to its end.

    Raises
    ------
    FedethosError
        AGG-710 when a round misses its quorum, AGG-713 when too many sites are quarantined. The last checkpoint stays whole, so that
        ``fedethos resume`` can continue.
    """
    state = load_state(plan.folder, plan.frozen, say=plan.observer.stage)
    roster = _roster(grid, plan, state)
    measure, release = _measures(roster, plan)
    roster.set_up_everybody()
    preparation = time.monotonic() - plan.started
    if state is None:
        state = _base_model_round(plan, roster, measure, release)
    state = state.remembering(seconds=state.memory.seconds + preparation)
    while state.round < plan.job.federation.rounds and not _stops_early(state, plan.job):
        state = _train_round(plan, roster, state, measure, release)
    plan.observer.stage("Testing the final model")
    plan.export(state.arrays, plan.folder.adapter)
    write_outcome(
        plan.folder,
        Ending(job=plan.job, sites=plan.sites, initial=plan.initial, state=state, engine=plan.engine),
        release or measure,
        plan.oracle,
    )


def _roster(grid: Grid, plan: Coordination, state: RunState | None) -> Roster:
    return Roster(
        grid=grid,
        job=plan.job,
        run=plan.run,
        sites=plan.sites,
        base_sha256=plan.base_sha256,
        frozen=plan.frozen,
        standings=Standings(state.memory.standings if state else {}, plan.quarantine_after),
        say=plan.observer.stage,
        attempt=plan.attempt,
    )


def _measures(roster: Roster, plan: Coordination) -> tuple[Measure | None, ReleaseBySites | None]:
    """What the metrics per round are made from, and the charged counts of a private job.

    Without privacy the sites send exact counts. With it nothing is released per round: a simulation shows its own evaluation.
    """
    everybody = Everybody(roster)
    if plan.job.privacy.mode == "none":
        return EvaluateBySites(everybody), None
    return plan.oracle, ReleaseBySites(everybody)


def _base_model_round(plan: Coordination, roster: Roster, measure: Measure | None, release: ReleaseBySites | None) -> RunState:
    """Round 0: before training."""
    began, outcome = time.monotonic(), Exchange()
    state = RunState.start(plan.initial, plan.frozen, plan.sites.values())
    if HEAD_CENTER in plan.initial:
        plan.observer.stage("Asking the sites for the mean of what the head reads")
        state, outcome = with_center(roster, state)
    plan.observer.stage("Measuring the model before training")
    return _close_round(plan, roster, state, measure, release, began=began, sites={}, outcome=outcome)


def _train_round(plan: Coordination, roster: Roster, state: RunState, measure: Measure | None, release: ReleaseBySites | None) -> RunState:
    job, number, began = plan.job, state.round + 1, time.monotonic()
    cohort = choose_cohort(
        roster.active(), fraction=job.federation.fraction, min_sites=job.federation.min_sites, seed=job.simulation.seed, round=number
    )
    plan.observer.round_started(number, job.federation.rounds, [site.name for site in cohort.values()])
    strategy = make_strategy(job, len(cohort))
    restore_strategy(strategy, state.strategy)
    request = replace(roster.request(number, state.arrays), cell_weights=cell_weights(job, state))
    messages = _train_messages(strategy, roster.grid, cohort, request)

    with Updates(plan.folder.path) as updates:
        outcome = roster.ask(messages, _keeping(updates, state, job), doing=f"round {number}", on_state=plan.observer.site)
        trained = combined(job, strategy, state, updates, site_shares(job, state, cohort.values()), plan.frozen)
    statements = {name: reply for name, reply in outcome.replies.items() if isinstance(reply, TrainReply)}
    spending = state.memory.spending | {
        name: spending_after(state.memory.spending[name], said, number) for name, said in statements.items()
    }
    trained = trained.remembering(spending=spending)
    return _close_round(plan, roster, trained, measure, release, began=began, sites=outcome.states(cohort.values()), outcome=outcome)


def _keeping(updates: Updates, state: RunState, job: Job) -> Accept:
    """Check each update as it comes, put it aside, and keep only its statement in memory."""
    sent = sent_in_next_round(state, job)

    def accept(site: Site, reply: Reply) -> Reply:
        if not isinstance(reply, TrainReply):
            return reply
        check_update(reply, sent, job)
        updates.put(site.name, reply.arrays)
        return replace(reply, arrays={})

    return accept


def _train_messages(strategy: Strategy, grid: Grid, cohort: Mapping[int, Site], request: Request) -> list[Message]:
    """The strategy decides who is asked and with what; the message contract decides what a request looks like."""
    content = encode_request(TRAIN, request)
    config = ConfigRecord(dict(content.config_records[CONFIG]))
    center = {name: array for name, array in content.array_records[ARRAYS].items() if name == HEAD_CENTER}
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


def _close_round(
    plan: Coordination,
    roster: Roster,
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
        standings=roster.standings.known,
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
        "quarantined": [{"site": name, "code": code} for name, code in roster.standings.quarantined.items()],
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
