"""Before round 1 of a job with ``training.center_head``: ask each site for its private mean of what the head reads, and pool them.

On the wire it is a train message of round 0, answered with the one tensor ``head_center``. Sites weigh as in a round of training, and
the job's robust rule stands in front as it does there. Next: ``client/head_center.py`` (the other side).
"""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Message

from fedethos.aggregation import HEAD_CENTER
from fedethos.messages import TRAIN, Reply, TrainReply, encode_request
from fedethos.server.exchange import Exchange
from fedethos.server.roster import Roster
from fedethos.server.site import Site
from fedethos.server.state import RunState
from fedethos.server.validation import check_update
from fedethos.strategies.averaging import weighted_mean
from fedethos.strategies.robust import defend


def with_center(roster: Roster, state: RunState) -> tuple[RunState, Exchange]:
    """``state`` of round 0 with the pooled centre and what it cost each site. Errors as for ``Roster.ask``."""
    job, sites = roster.job, roster.active()
    resting = dict(state.arrays)
    sent = {HEAD_CENTER: resting.pop(HEAD_CENTER)}

    def accept(site: Site, reply: Reply) -> Reply:
        if isinstance(reply, TrainReply):
            check_update(reply, sent, job)
        return reply

    content = encode_request(TRAIN, roster.request(0, state.arrays))
    messages = [Message(content, node_id, TRAIN, group_id="0") for node_id in sites]
    outcome = roster.ask(messages, accept, doing="the release of the head's centre")

    replies = {name: reply for name, reply in outcome.replies.items() if isinstance(reply, TrainReply)}
    shares = {site.name: site.share for site in sites.values()}
    arrays = {name: reply.arrays for name, reply in replies.items()}
    updates = defend(job, arrays, shares, sent, {**roster.frozen, **resting}).updates
    pooled = weighted_mean(list(updates.values()), [shares[name] for name in updates])
    spending = dict(state.memory.spending)
    for name, reply in replies.items():
        spending[name] = spending[name].model_copy(update={"epsilon": reply.epsilon})
    return replace(state, arrays={**resting, **pooled}).remembering(spending=spending), outcome
