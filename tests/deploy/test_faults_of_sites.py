"""What sites do to a run: one is killed and comes back, one hangs, is slow, comes late, did not approve, sends rubbish, is a stranger."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.deploy.stack import SEEDED, SITES, job_of

from fedethos.cli import run as fedethos
from fedethos.control.calling import call_control

pytestmark = pytest.mark.xdist_group("deploy")

SHORT = {"deadline": "6s"}  # enough for sites whose workers run already, as they do after ``undisturbed``


def is_late(stack, run: str, site: str, round: int) -> bool:
    """Whether the training of ``round`` is over without ``site``."""
    now = stack.run(run)
    return now["round"] == round and now["sites"][site] == "late"


def states(folder, site: str) -> list[str]:
    """Of a site in each training round."""
    return [record.sites[site] for record in folder.read_rounds()[1:]]


def test_a_node_that_is_killed_in_a_round_comes_back_and_nothing_changes(stack, undisturbed):
    path = stack.write_job(job_of("cut", rounds=4, privacy=SEEDED))
    stack.approve(path)
    run = stack.submit(path)
    stack.until(lambda: stack.run(run)["round"] >= 1, 300)
    stack.kill("north")
    stack.start("north")
    stack.until(lambda: stack.run(run)["round"] >= 3)
    os.kill(stack.processes["north"].pid, signal.SIGSTOP)
    stack.until(lambda: {stack.run(run)["sites"][site] for site in ("south", "west")} == {"sent"})
    stack.kill("north")  # with whatever the gateway handed to it meanwhile
    stack.start("north")
    folder = stack.ended(run)
    assert states(folder, "north") == ["sent"] * 4
    ours, theirs = (load_file(one.adapter / "model.safetensors") for one in (folder, undisturbed))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert folder.read_result().metrics == undisturbed.read_result().metrics


def test_a_site_that_hangs_is_late_and_the_others_go_on(stack, undisturbed):
    path = stack.write_job(job_of("hung", rounds=2, privacy=SEEDED, federation=SHORT))
    stack.approve(path)
    run = stack.submit(path)
    stack.until(lambda: stack.run(run)["status"] == "running" and stack.run(run)["round"] >= 1, 300)
    os.kill(stack.processes["south"].pid, signal.SIGSTOP)
    try:
        stack.until(lambda: is_late(stack, run, "south", 2))
    finally:
        os.kill(stack.processes["south"].pid, signal.SIGCONT)
    folder = stack.ended(run)
    assert states(folder, "south")[-1] == "late"
    assert states(folder, "north") == ["sent", "sent"]


def test_a_slow_site_is_waited_for(stack):
    path = stack.write_job(job_of("slow", rounds=2, privacy=SEEDED))
    stack.approve(path)
    run = stack.submit(path)
    stack.until(lambda: stack.run(run)["status"] == "running" and stack.run(run)["round"] >= 1, 300)
    os.kill(stack.processes["west"].pid, signal.SIGSTOP)
    time.sleep(3.0)
    os.kill(stack.processes["west"].pid, signal.SIGCONT)
    assert states(stack.ended(run), "west") == ["sent", "sent"]


def test_a_site_that_comes_late_is_set_up_and_takes_part(stack, undisturbed):
    assert stack.stop("west") == 0
    path = stack.write_job(job_of("late", rounds=5, privacy=SEEDED, federation=SHORT))
    stack.approve(path)
    run = stack.submit(path)
    try:
        stack.until(lambda: is_late(stack, run, "west", 1))
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


def test_a_site_whose_updates_are_rubbish_is_quarantined_and_both_sides_see_why(stack, capsys):
    assert stack.stop("west") == 0
    stack.start("west", Path(__file__).with_name("spoiling_node.py"))
    try:
        folder = stack.run_to_end(job_of("spoiled", rounds=4, privacy=SEEDED))
        training = folder.read_rounds()[1:]
        assert [record.sites.get("west", "not asked") for record in training] == ["refused", "refused", "not asked", "not asked"]
        assert [record.sites["north"] for record in training] == ["sent"] * 4
        assert {(one.site, one.code) for record in training for one in record.refusals} == {("west", "AGG-703")}
        assert [(one.site, one.code) for one in training[-1].quarantined] == [("west", "AGG-703")]
        assert stack.run(folder.path.name)["quarantined"] == {"west": "AGG-703"}
        assert fedethos(["server", "status", *stack.server]) == 0
        assert "west is quarantined" in capsys.readouterr().out

        socket = stack.folder / "west" / "state" / "control.sock"
        stack.until(lambda: call_control(socket, "status", {})["quarantined"])
        assert fedethos(["client", "status", str(stack.folder / "west" / "site.yaml")]) == 0
        shown = capsys.readouterr().out
        assert "AGG-703" in shown and "asks this site no more" in shown
    finally:
        assert stack.stop("west") == 0
        stack.start("west")


def test_a_key_that_is_not_in_trust_is_let_in_by_nobody_and_says_so(stack):
    stack.add_stranger()
    stack.start("stranger")
    try:
        socket = stack.folder / "stranger" / "state" / "control.sock"
        stack.until(lambda: socket.exists() and call_control(socket, "status", {})["problem"])
        status = call_control(socket, "status", {})
        assert status["problem"]["code"] == "NET-543" and not status["connected"]
        assert "NET-531" in (stack.state / "superlink" / "superlink.log").read_text()
        assert [site["name"] for site in stack.status()["sites"]] == list(SITES)
    finally:
        assert stack.stop("stranger") == 0
