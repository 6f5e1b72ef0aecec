"""What sites do to a run: one is killed and comes back, one hangs, one comes late, one did not approve."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.deploy.stack import SEEDED, SITES, job_of

pytestmark = pytest.mark.xdist_group("deploy")

SHORT = {"deadline": "10s"}


def states(folder, site: str) -> list[str]:
    """Of a site in each training round."""
    return [record.sites[site] for record in folder.read_rounds()[1:]]


def test_a_node_that_is_killed_in_a_round_comes_back_and_nothing_changes(stack):
    undisturbed = stack.run_to_end(job_of("whole", privacy=SEEDED))
    path = stack.write_job(job_of("cut", privacy=SEEDED))
    stack.approve(path)
    run = stack.submit(path)
    stack.until(lambda: stack.run(run)["round"] >= 1, 300)
    stack.kill("north")
    stack.start("north")
    folder = stack.ended(run)
    assert states(folder, "north") == ["sent"] * 3
    ours, theirs = (load_file(one.adapter / "model.safetensors") for one in (folder, undisturbed))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert folder.read_result().metrics == undisturbed.read_result().metrics


def test_a_site_that_hangs_is_late_and_the_others_go_on(stack):
    path = stack.write_job(job_of("hung", rounds=2, privacy=SEEDED, federation=SHORT))
    stack.approve(path)
    run = stack.submit(path)
    stack.until(lambda: stack.run(run)["status"] == "running" and stack.run(run)["round"] >= 1, 300)
    os.kill(stack.processes["south"].pid, signal.SIGSTOP)
    try:
        folder = stack.ended(run)
    finally:
        os.kill(stack.processes["south"].pid, signal.SIGCONT)
    assert states(folder, "south")[-1] == "late"
    assert states(folder, "north") == ["sent", "sent"]


def test_a_site_that_comes_late_is_set_up_and_takes_part(stack):
    assert stack.stop("west") == 0
    path = stack.write_job(job_of("late", rounds=4, privacy=SEEDED, federation=SHORT))
    stack.approve(path)
    run = stack.submit(path)
    try:
        stack.until(lambda: stack.run(run)["round"] >= 1, 300)
    finally:
        stack.start("west")
    folder = stack.ended(run)
    assert (states(folder, "west")[0], states(folder, "west")[-1]) == ("late", "sent")


def test_a_site_that_did_not_approve_refuses_and_is_not_blamed(stack):
    path = stack.write_job(job_of("unasked", rounds=4, privacy=SEEDED))
    stack.approve(path, SITES[:2])
    folder = stack.ended(stack.submit(path))
    assert states(folder, SITES[2]) == ["refused"] * 4
    assert {refusal.code for record in folder.read_rounds() for refusal in record.refusals} == {"SEC-611"}
    assert folder.read_rounds()[-1].quarantined == []
