"""Before round 1 of a job with ``training.center_head``: ask each site for its private mean of what the head reads, and pool them.

On the wire it is a train message of round 0, answered with the one tensor ``head_center``. Sites weigh as in a round of training, and
the job's robust rule stands in front as it does there. Next: ``client/head_center.py`` (the other side).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flwr.app import Message
from flwr.serverapp import Grid

from fedethos.aggregation import HEAD_CENTER
from fedethos.job import Job
from fedethos.messages import TRAIN, Arrays, Reply, Request, TrainReply, encode_request
from fedethos.server.exchange import Exchange, exchange, require_quorum
from fedethos.server.site import Site
from fedethos.server.state import RunState
from fedethos.server.validation import check_update
from fedethos.strategies.averaging import weighted_mean
from fedethos.strategies.robust import defend


def with_center(
    grid: Grid, job: Job, sites: Mapping[int, Site], state: RunState, request: Request, frozen: Arrays
) -> tuple[RunState, Exchange]:
    """``state`` with the pooled centre and what it cost each site. ``request``: of round 0, with the tensors of ``state``.

    Raises
    ------
    FedethosError
        AGG-710 when too few sites answer.
    """
    resting = dict(state.arrays)
    sent = {HEAD_CENTER: resting.pop(HEAD_CENTER)}

    def check(site: Site, reply: Reply) -> None:
        if isinstance(reply, TrainReply):
            check_update(reply, sent, job)

    content = encode_request(TRAIN, request)
    messages = [Message(content, node_id, TRAIN, group_id="0") for node_id in sites]
    outcome = exchange(grid, messages, sites, deadline=job.federation.deadline, validate=check, on_state=lambda *_: None)
    require_quorum(outcome, job.federation.min_sites, doing="the release of the head's centre")

    replies = {name: reply for name, reply in outcome.replies.items() if isinstance(reply, TrainReply)}
    shares = {site.name: site.share for site in sites.values()}
    updates = defend(job, {name: reply.arrays for name, reply in replies.items()}, shares, sent, {**frozen, **resting}).updates
    pooled = weighted_mean(list(updates.values()), [shares[name] for name in updates])
    spending = dict(state.memory.spending)
    for name, reply in replies.items():
        spending[name] = spending[name].model_copy(update={"epsilon": reply.epsilon})
    return replace(state, arrays={**resting, **pooled}).remembering(spending=spending), outcome
